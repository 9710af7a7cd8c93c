"""What clients may ask of rooms and presence by themselves: ``system:join``, ``leave``, ``history``, ``presence``.

These four are handled like any message: in line with the client's others, through middleware, and seen by
``"*"`` handlers. What they do is refused until the application allows it:

* ``kernel.rooms.configure("chat:*", join=True)``: clients may join rooms of such names;
* ``kernel.presence.configure(update=True)``: clients may change what presence shows of them.
"""

from __future__ import annotations

from typing import Any

from realtime.codes import ErrorCode
from realtime.config import Limits
from realtime.connection import Context
from realtime.errors import Reject
from realtime.live_presence import LivePresence
from realtime.message import JSON, Message
from realtime.presence import PresenceStore
from realtime.recovery import Replay
from realtime.rooms import RoomManager
from realtime.routing import decided
from realtime.toolkit import Toolkit

__all__ = ["ClientRequests"]


class ClientRequests:
    """The handlers of the four messages."""

    def __init__(
        self,
        rooms: RoomManager,
        presence: PresenceStore,
        live_presence: LivePresence,
        replay: Replay,
        limits: Limits,
    ) -> None:
        self._rooms = rooms
        self._presence = presence
        self._live_presence = live_presence
        self._replay = replay
        self._limits = limits
        self.handlers = {
            "system:join": self.join,
            "system:leave": self.leave,
            "system:history": self.history,
            "system:presence": self.presence,
        }

    def join(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Put the client into a room that a rule opens to it; return who is there.

        The ack's result is ``{"room", "id", "members": [{"id", "metadata"}], "total"}``, the client itself among
        the members; of a recoverable room also ``"cursor"``, how far it is. With ``payload["since"]``, a cursor, what
        the client missed is sent before the ack, and the result has ``"recovered", "replayed", "more"`` and
        ``"reason"``: see :class:`realtime.recovery.Recovery`. Parks meanwhile, and where the application's rule waits.

        With ``{"presence": true}`` as payload the client is told the room's presence, before the ack, and what
        changes, as long as it is in the room; with ``false`` it is not, whatever the room's rule says.

        :raises Reject: ``forbidden``, ``bad_room`` or ``bad_message``; and as ``RoomTools.join``.
        """
        room = _named_room(message)
        presence = _presence_wanted(message)
        self._rooms.check_name(room)
        rule = self._rooms.rules.rule_for(room)
        if rule is None or rule.join is False:
            raise Reject(
                f"clients may not join {room!r} by themselves: the server allows it with "
                "kernel.rooms.configure(pattern, join=True)",
                code=ErrorCode.FORBIDDEN,
            )
        if rule.join is not True and not decided(rule.join(context, room), "rooms.configure(join=...)"):
            raise Reject(f"you may not join {room!r}", code=ErrorCode.FORBIDDEN)
        since = message.payload.get("since") if isinstance(message.payload, dict) else None
        result: dict[str, Any] = {"room": room, "id": context.id}
        if since is None:
            toolkit.rooms.join(room, presence=presence)
            cursor = self._replay.place(context.id, room)
        else:
            recovery = toolkit.rooms.join(room, since=since, presence=presence)
            cursor = recovery.cursor
            result |= {"recovered": recovery.recovered, "replayed": recovery.replayed, "more": recovery.more}
            if recovery.reason is not None:
                result["reason"] = recovery.reason
        if cursor is not None:
            result["cursor"] = cursor
        return {**result, **self._members(room)}

    def history(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Return what a room that the client is in keeps: see ``RoomTools.history``.

        ``payload`` may have ``"limit"`` (50) and ``"since"``. The ack's result is ``{"messages", "cursor", "more"}``,
        with ``since`` also ``"recovered"`` and ``"reason"``. May park.

        :raises Reject: ``forbidden``, ``bad_room``, or ``bad_message``.
        """
        room = _named_room(message)
        if room not in context.rooms:
            raise Reject(f"you are not in {room!r}: join it first", code=ErrorCode.FORBIDDEN)
        payload = message.payload if isinstance(message.payload, dict) else {}
        since = payload.get("since")
        page = toolkit.rooms.history(room, payload.get("limit", 50), since)
        result: dict[str, Any] = {"messages": page.messages, "cursor": page.cursor, "more": page.more}
        if since is not None:
            result["recovered"] = page.recovered
        if page.reason is not None:
            result["reason"] = page.reason
        return result

    def leave(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """Take the client out of a room, however it came there; result ``{"room", "left": bool}``.

        :raises Reject: ``forbidden`` where a rule says so, or ``bad_room``.
        """
        room = _named_room(message)
        rule = self._rooms.rules.rule_for(room)
        if rule is not None and not rule.leave:
            raise Reject(f"clients may not leave {room!r} by themselves", code=ErrorCode.FORBIDDEN)
        return {"room": room, "left": toolkit.rooms.leave(room)}

    def presence(self, message: Message, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        """List a room that the client is in, or merge ``payload["metadata"]`` into its own presence.

        The ack's result is ``{"members": [{"id", "metadata"}], "total"}``, or the client's ``{"id", "metadata"}``.
        With ``{"page": null}`` as payload it is ``{"presences": {key: {"metas": [{"id", ...}]}}, "total"}``, as in
        ``presence:state``, sorted by key, and with a ``"page"`` to ask for next unless that was all.

        :raises Reject: ``forbidden``, ``bad_room``, or ``bad_message``.
        """
        if isinstance(message.payload, dict) and "metadata" in message.payload:
            return self._update(message.payload["metadata"], context, toolkit)
        room = _named_room(message)
        if room not in context.rooms:
            raise Reject(f"you are not in {room!r}: join it first", code=ErrorCode.FORBIDDEN)
        if isinstance(message.payload, dict) and "page" in message.payload:
            after = message.payload["page"]
            if after is not None and not isinstance(after, str):
                text = 'page: null asks for the first page, then what the one before had as "page"'
                raise Reject(text, code=ErrorCode.BAD_MESSAGE)
            return self._live_presence.page(room, after or "")
        return self._members(room)

    def _members(self, room: str) -> dict[str, Any]:
        entries = self._presence.list(room)
        return {"members": [_shown(entry) for entry in entries], "total": entries.total}

    def _update(self, metadata: Any, context: Context, toolkit: Toolkit) -> dict[str, Any]:
        rule = self._presence.update_rule
        if rule is not True and not (rule and decided(rule(context, metadata), "presence.configure(update=...)")):
            raise Reject("clients may not change this in their presence", code=ErrorCode.FORBIDDEN)
        if isinstance(metadata, dict):
            size, bound = len(JSON.encode({**context.metadata, **metadata})), self._limits.presence_metadata
            if size > bound:
                text = f"presence metadata may take {bound} bytes as JSON, got {size}"
                raise Reject(text, code=ErrorCode.BAD_MESSAGE)
        return _shown(toolkit.presence.update(metadata))


def _named_room(message: Message) -> str:
    if message.room is None:
        raise Reject(
            f'{message.type} needs a room: {{"type": "{message.type}", "room": "lobby"}}', code=ErrorCode.BAD_ROOM
        )
    return message.room


def _presence_wanted(message: Message) -> bool | None:
    """Return what a join says of presence; None if nothing."""
    wanted = message.payload.get("presence") if isinstance(message.payload, dict) else None
    if wanted is not None and not isinstance(wanted, bool):
        raise Reject("presence: must be true or false", code=ErrorCode.BAD_MESSAGE)
    return wanted


def _shown(entry: dict[str, Any]) -> dict[str, Any]:
    """What clients may see of one another: not the rooms somebody else is in."""
    return {"id": entry["id"], "metadata": entry["metadata"]}
