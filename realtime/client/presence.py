"""Who is in a Client's rooms, and what it says of itself: again where a reconnect resumed no session."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from realtime.client.calls import Repetition
from realtime.client.rooms import Asking
from realtime.client.wire import ClientMessage
from realtime.errors import BadMessage, ConnectionClosed, RealtimeError

__all__ = ["ClientPresence"]

log = logging.getLogger("realtime.client")

Presences = Mapping[str, Any]
"""By key: ``{"metas": [{"id", ...}]}``. Replaced and never changed, as any thread may look."""


class _View:
    """What was told of one room."""

    def __init__(self, presences: Presences | None, total: int) -> None:
        self.presences = presences
        """None where only their number is told."""
        self.total = total


class ClientPresence:
    """Who is here, and what this client says of itself: ``client.presence``."""

    def __init__(self, client: Asking) -> None:
        self._client = client
        self._own: dict[str, Any] | None = None
        self._views: dict[str, _View] = {}

    def state(self, room: str) -> dict[str, Any] | None:
        """Return who is in a room that was joined with ``presence=True``, as far as it was told: it changes by itself.

        ``{"presences": {key: {"metas": [{"id", ...}]}}, "total"}``: one key for all connections of an identity, or
        the id of a client without one. Of a crowded room there is only ``"total"``: ``page`` tells more. None if
        nothing was told. Each change is also told to ``"client:presence"`` handlers, with payload
        ``{"room", "joins", "leaves", "updates", "total"}``, the three in the shape of presences, or of a crowded room
        ``{"room", "total"}``; also what has changed when the room was joined again after a reconnect.
        """
        view = self._views.get(room)
        if view is None:
            return None
        if view.presences is None:
            return {"total": view.total}
        return {"presences": dict(view.presences), "total": view.total}

    def page(self, room: str, after: str | None = None, *, timeout: float | None = None) -> dict[str, Any]:
        """Return a part of who is in a room, as ``state`` shows it.

        :param after: what the part before had as ``"page"``; it has none where it was the last.
        :raises CallFailed: ``forbidden`` outside of the room; and as ``Client.call``.
        """
        result: dict[str, Any] = self._client._ask("system:presence", {"page": after}, room=room, timeout=timeout)
        return result

    def list(self, room: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return who is in a room that this client is in: ``{"members": [{"id", "metadata"}], "total"}``.

        :raises CallFailed: ``forbidden`` outside of the room; and as ``Client.call``.
        """
        result: dict[str, Any] = self._client._ask("system:presence", None, room=room, timeout=timeout)
        return result

    def update(self, metadata: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Merge something into what others see of this client; return the own entry. After a reconnect it is as it was.

        :raises CallFailed: ``forbidden`` where the server does not allow it; and as ``Client.call``.
        """
        if not isinstance(metadata, Mapping):
            raise BadMessage(f"presence.update({metadata!r}): must be a mapping")
        entry: dict[str, Any] = self._client._ask(
            "system:presence", {"metadata": dict(metadata)}, room=None, timeout=timeout
        )
        self._own = {**(self._own or {}), **metadata}
        return entry

    # In the thread that reads ----------------------------------------------------------------------------

    def repeat(self) -> None:
        """Say it again."""
        if self._own is None:
            return

        def failed(error: RealtimeError) -> None:
            if not isinstance(error, ConnectionClosed):
                log.warning("the presence is not as it was: %s", error)

        self._client._ask_again(Repetition(lambda result: None, failed), "system:presence", {"metadata": self._own})

    def forget(self, room: str) -> None:
        """We are not there any more."""
        self._views.pop(room, None)

    def forget_all_but(self, rooms: Collection[str]) -> None:
        """We are somebody else now, who comes back to these rooms alone."""
        for room in self._views.keys() - rooms:
            self.forget(room)

    def take(self, message: ClientMessage) -> dict[str, Any] | None:
        """A message came: return what has changed, None if it tells no such thing."""
        room, told = message.room, message.payload
        if room is None or not isinstance(told, dict) or type(told.get("total")) is not int:
            return None
        before = self._views.get(room)
        if message.type == "presence:state":
            view = _View(_presences(told.get("presences")), told["total"])
        elif message.type == "presence:diff" and before is not None:
            view = _changed(before, told)
        else:
            return None
        self._views[room] = view
        return {"room": room, **_difference(before, view), "total": view.total}


def _presences(told: Any) -> Presences | None:
    return told if isinstance(told, dict) else None


def _changed(view: _View, diff: Mapping[str, Any]) -> _View:
    if view.presences is None:
        return _View(None, diff["total"])
    joins, leaves, updates = (_presences(diff.get(name)) or {} for name in ("joins", "leaves", "updates"))
    staying = {key: shown for key, shown in view.presences.items() if key not in leaves}
    return _View({**staying, **joins, **updates}, diff["total"])


def _difference(before: _View | None, after: _View) -> dict[str, Presences]:
    """Return joins, leaves and updates from one view to the other; nothing where only a number is known."""
    if after.presences is None:
        return {}
    old = (before.presences if before is not None else None) or {}
    new = after.presences
    return {
        "joins": {key: shown for key, shown in new.items() if key not in old},
        "leaves": {key: shown for key, shown in old.items() if key not in new},
        "updates": {key: shown for key, shown in new.items() if key in old and old[key] != shown},
    }
