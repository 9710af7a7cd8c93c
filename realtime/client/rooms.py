"""The rooms a Client joined by itself, and what it says of itself: both again after every reconnect."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from realtime.client.calls import Pending, Repetition
from realtime.errors import BadMessage, CallFailed, ConnectionClosed, RealtimeError

__all__ = ["ClientPresence", "ClientRooms"]

log = logging.getLogger("realtime.client")


class _Asking(Protocol):
    def call(self, type: str, payload: Any = None, *, room: str | None = None, timeout: float | None = None) -> Any:
        """Ask and wait."""

    def _ask_again(self, call: Pending, type: str, payload: Any = None, *, room: str | None = None) -> None:
        """Ask on a connection that has just begun, without waiting."""


class _Place:
    """One room: ``joined`` once the server has let us in."""

    def __init__(self) -> None:
        self.joined = False


class ClientRooms:
    """Which rooms to come back to."""

    def __init__(self, client: _Asking, on_left: Callable[[dict[str, Any]], None]) -> None:
        self._client = client
        self._on_left = on_left
        self._places: dict[str, _Place] = {}

    def join(self, room: str, timeout: float | None) -> Any:
        """Ask to be let in, and remember the room."""
        place = self._places.setdefault(room, _Place())
        try:
            result = self._client.call("system:join", room=room, timeout=timeout)
        except BaseException:
            if not place.joined:
                self._forget(room, place)
            raise
        place.joined = True
        return result

    def leave(self, room: str, timeout: float | None) -> Any:
        """Leave, and come back no more, also if this request is lost."""
        self._places.pop(room, None)
        return self._client.call("system:leave", room=room, timeout=timeout)

    def rejoin(self) -> None:
        """After a reconnect."""
        for room, place in list(self._places.items()):
            if place.joined:  # else its request waits in the queue
                self._client._ask_again(self._again(room, place), "system:join", room=room)

    def _again(self, room: str, place: _Place) -> Repetition:
        def failed(error: RealtimeError) -> None:
            if isinstance(error, ConnectionClosed):
                return  # the next connection tries again
            self._forget(room, place)
            code = error.code if isinstance(error, CallFailed) else "rejected"
            message = error.message if isinstance(error, CallFailed) else str(error)
            self._on_left({"room": room, "code": code, "message": message})

        return Repetition(lambda: None, failed)

    def _forget(self, room: str, place: _Place) -> None:
        if self._places.get(room) is place:
            del self._places[room]


class ClientPresence:
    """Who is here, and what this client says of itself: ``client.presence``."""

    def __init__(self, client: _Asking) -> None:
        self._client = client
        self._own: dict[str, Any] | None = None

    def list(self, room: str, *, timeout: float | None = None) -> dict[str, Any]:
        """Return who is in a room that this client is in: ``{"members": [{"id", "metadata"}], "total"}``.

        :raises CallFailed: ``forbidden`` outside of the room; and as ``Client.call``.
        """
        result: dict[str, Any] = self._client.call("system:presence", room=room, timeout=timeout)
        return result

    def update(self, metadata: Mapping[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        """Merge something into what others see of this client; return the own entry. Repeated after a reconnect.

        :raises CallFailed: ``forbidden`` where the server does not allow it; and as ``Client.call``.
        """
        if not isinstance(metadata, Mapping):
            raise BadMessage(f"presence.update({metadata!r}): must be a mapping")
        entry: dict[str, Any] = self._client.call(
            "system:presence", {"metadata": dict(metadata)}, timeout=timeout
        )
        self._own = {**(self._own or {}), **metadata}
        return entry

    def repeat(self) -> None:
        """After a reconnect: say it again."""
        if self._own is None:
            return

        def failed(error: RealtimeError) -> None:
            if not isinstance(error, ConnectionClosed):
                log.warning("the presence is not as it was: %s", error)

        self._client._ask_again(Repetition(lambda: None, failed), "system:presence", {"metadata": self._own})
