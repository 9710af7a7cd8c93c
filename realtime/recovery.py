"""Recovery: joining a room from where somebody was, with what was missed first and nothing twice; and its history."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent

from realtime.codes import ErrorCode
from realtime.connection import Connection
from realtime.cursors import Position, read_cursor
from realtime.errors import BadMessage, MessageTooBig, Reject, UnknownClient
from realtime.history import kept_message
from realtime.message import CODECS
from realtime.room_log import Entry, Missed, RoomLog

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["MOST_REPLAYED", "HistoryPage", "Recovery", "Replay"]

log = logging.getLogger("realtime.history")

LOOK = 0.01  # seconds between looks at where a client is that moves
MOST_REPLAYED = 300  # messages that one request replays; the rest is there for the next


class Recovery(NamedTuple):
    """What became of joining a room with a cursor."""

    recovered: bool
    """Everything that was missed has been sent, in order, and nothing twice; or, with ``more``, the first part."""
    reason: str | None = None
    """Why not."""
    replayed: int = 0
    """How many messages were sent."""
    more: bool = False
    """There is more than that: the client is not in the room yet. Join again with the last cursor."""
    cursor: str | None = None
    """How far the client is now."""
    joined: bool = False
    """Whether the client is in the room because of this."""


class HistoryPage(NamedTuple):
    """Messages of a room, the oldest first."""

    messages: Sequence[dict[str, Any]]
    """As clients get them: ``{"type", "payload", "room", "timestamp", "cursor"}``."""
    cursor: str | None
    """Right after the last of them."""
    more: bool = False
    """There are newer ones."""
    recovered: bool = True
    """With ``since``: nothing is missing between it and the first of them."""
    reason: str | None = None
    """Why not."""


class _Departed(Exception):
    """The client's session goes on at another node: whatever it is sent, it is sent there."""


class Replay:
    """What clients and handlers ask of the history of rooms."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._history = hub.history

    def place(self, client_id: str, room: str) -> str | None:
        """Return how far a member is; None if the room is not recoverable. Parks for one that came from another node,
        until it was sent what it missed on its way.

        :raises TimedOut: that takes too long.
        """
        self._history.holds.wait_until_let_go(room, client_id)
        return self.cursor(room)

    def cursor(self, room: str) -> str | None:
        """Return how far a room is, for somebody who has everything; None if it is not recoverable."""
        one = self._history.log_of(room)
        return None if one is None or not one.recover else one.cursor

    def join(self, connection: Connection, room: str, since: object, presence: bool | None = None) -> Recovery:
        """Put a client of this node into a room, after it was sent what it missed. Parks.

        :param since: the cursor of the last message it has.
        :param presence: as for ``RoomManager.join``.
        :raises BadRoom, TooManyRooms, UnknownClient: as ``RoomManager.join``.
        :raises ConnectionClosed: it went meanwhile.
        :raises TimedOut: it has just come from another node, and is still being sent what it missed on its way.
        """
        rooms, history = self._hub.rooms, self._history
        one = history.log_of(room)
        if one is None or not one.recover:
            joined = rooms.join(room, connection.id, presence=presence)
            return Recovery(False, "the room is not recoverable", joined=joined)
        position = read_cursor(one.tag, since)
        history.holds.wait_until_let_go(room, connection.id)
        if rooms.contains_here(room, connection.id):
            return self._stay(connection, one, position)
        if position is None:
            joined = rooms.join(room, connection.id, presence=presence)
            return Recovery(False, "it is no cursor of this room", cursor=self.cursor(room), joined=joined)
        if not history.is_current(room):
            history.sync(room)
        sent = 0
        try:
            left = MOST_REPLAYED
            while True:  # while it reads, more may come: as much as may be is sent before it is a member
                missed = self._missed(one, room, position)
                if missed.reason is not None or not missed.entries:
                    break
                if not left:
                    return Recovery(True, None, sent, more=True, cursor=one.cursor_at(position))
                entries = missed.entries[:left]
                left -= len(entries)
                sent += self._send(connection, one, entries, position)
            with history.holds.hold(room, connection.id, position):
                self._check_is_here(connection)
                joined = rooms.join(room, connection.id, presence=presence)
                recovery = self._catch_up(connection, room, position, joined)
                return recovery._replace(replayed=sent + recovery.replayed)
        except _Departed:
            return self._join_elsewhere(connection.id, room, one.cursor_at(position), presence, sent)
        except (BadMessage, MessageTooBig) as error:
            log.warning("what client %s missed of room %r cannot be sent to it: %s", connection.id, room, error)
            joined = rooms.join(room, connection.id, presence=presence)
            reason = "what was missed cannot be sent to this client"
            return Recovery(False, reason, sent, cursor=one.cursor, joined=joined)

    def _join_elsewhere(self, client_id: str, room: str, since: str, presence: bool | None, sent: int) -> Recovery:
        """The client has moved meanwhile: its new node sends it the rest, and this one knows no longer what is new.

        :raises UnknownClient: it is nowhere.
        """
        hub = self._hub
        question = {"room": room, "since": since, "presence": presence}
        deadline = time.monotonic() + hub.limits.ack_timeout
        while True:
            hub.sessions.departures.wait_until_seen(client_id)
            back = hub.connections.get(client_id)
            try:
                if back is not None and not back.departed:
                    recovery = self.join(back, room, since, presence)
                else:
                    recovery = Recovery(*hub.cluster.ask(client_id, "join", question, hub.limits.ack_timeout))
                return recovery._replace(replayed=sent + recovery.replayed)
            except UnknownClient:
                if time.monotonic() >= deadline:
                    raise
                gevent.sleep(LOOK)  # it has moved on, and is not seen yet where it is

    def _stay(self, connection: Connection, one: RoomLog, position: Position | None) -> Recovery:
        """It is in the room already, perhaps put there by a handler before it could say how far it was."""
        if position is None:
            return Recovery(False, "it is no cursor of this room", cursor=one.cursor)
        if one.was_sent(connection.id, one.missed(position, time.time())):
            return Recovery(True, cursor=one.cursor)
        return Recovery(False, "it was put into the room before, without a cursor", cursor=one.cursor)

    def carry_on(self, connection: Connection, room: str, position: Position) -> Recovery | None:
        """Send a client that came here with its place in a room what it has missed on the way. Parks.

        The caller holds it in the room, and joined it to it. None: it has moved on, and its next node does that.
        """
        self._history.entered(room, connection.id)
        try:
            return self._catch_up(connection, room, position, True)
        except _Departed:
            return None

    def _catch_up(self, connection: Connection, room: str, position: Position, joined: bool) -> Recovery:
        """Replay until there is nothing more: then what is new goes to the member, with no switch in between."""
        one = self._history.log_of(room)  # which stays from now on; the one before may have expired while it was read
        if one is None:
            return Recovery(False, "the room keeps no history here", joined=joined)
        if one.is_behind(position):  # the client was faster than what it had seen on another node
            self._history.sync(room)
        replayed = 0
        while True:
            missed = self._missed(one, room, position)
            self._check_is_here(connection)
            if missed.reason is not None:
                return Recovery(False, missed.reason, replayed, cursor=one.cursor, joined=joined)
            if not missed.entries:
                one.members[connection.id] = 0
                return Recovery(True, None, replayed, cursor=one.cursor, joined=joined)
            replayed += self._send(connection, one, missed.entries, position)

    def _missed(self, one: RoomLog, room: str, position: Position) -> Missed:
        """Return what somebody has not seen. Parks while the rest of it is on its way, which goes to no member."""
        if one.meeting:
            self._history.sync(room)
        return one.missed(position, time.time())

    def _send(
        self, connection: Connection, one: RoomLog, entries: Sequence[Entry], position: Position
    ) -> int:
        """Send kept messages to one client, which moves ``position``; return how many. Parks.

        :raises _Departed: it has moved to another node, which goes on from the position.
        """
        sent = 0
        patience = self._hub.limits.backpressure_timeout
        for entry in entries:
            if connection.id not in entry.except_ids:
                outbound = kept_message(one, entry, {**position, entry.origin: entry.sequence})
                self._hub.wait_for_room(connection, outbound, patience=patience)
                self._check_is_here(connection)
                self._hub.put(connection, outbound)
                sent += 1
                self._hub.counters["replayed"] += 1
            position[entry.origin] = entry.sequence
        return sent

    @staticmethod
    def _check_is_here(connection: Connection) -> None:
        if connection.departed:
            raise _Departed

    def page(self, room: str, limit: int = 50, since: str | None = None) -> HistoryPage:
        """Return what a room keeps: the newest ``limit`` messages, or the first ``limit`` after a cursor. Parks.

        :raises Reject: ``bad_message``: ``limit`` is no number from 1 to 300.
        """
        if type(limit) is not int or not 1 <= limit <= MOST_REPLAYED:
            raise Reject(f"limit={limit!r}: must be from 1 to {MOST_REPLAYED}", code=ErrorCode.BAD_MESSAGE)
        self._hub.rooms.check_name(room)
        one = self._history.log_of(room)
        if one is None:
            return HistoryPage((), None, recovered=since is None, reason="the room keeps no history")
        if not self._history.is_current(room):
            self._history.sync(room)
        return self._since(room, one, limit, since) if since is not None else self._newest(room, one, limit)

    def _newest(self, room: str, one: RoomLog, limit: int) -> HistoryPage:
        skipped = max(0, len(one.entries) - limit)
        messages = [
            self._shown(one, entry, position)
            for number, (entry, position) in enumerate(one.walk(time.time()))
            if number >= skipped
        ]
        return HistoryPage(messages, self.cursor(room))

    def _since(self, room: str, one: RoomLog, limit: int, since: str) -> HistoryPage:
        position = read_cursor(one.tag, since)
        if position is None:
            page = self._newest(room, one, limit)
            return page._replace(recovered=False, reason="it is no cursor of this room")
        missed = one.missed(position, time.time())
        if missed.reason is not None:
            return self._newest(room, one, limit)._replace(recovered=False, reason=missed.reason)
        messages = []
        for entry in missed.entries[:limit]:
            position[entry.origin] = entry.sequence
            messages.append(self._shown(one, entry, position))
        return HistoryPage(messages, one.cursor_at(position), more=len(missed.entries) > limit)

    def _shown(self, one: RoomLog, entry: Entry, position: Position) -> dict[str, Any]:
        return kept_message(one, entry, position).shown(CODECS[entry.codec])
