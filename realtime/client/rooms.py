"""The rooms a Client joined by itself, and what it says of itself: both again where a reconnect resumed no session."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from realtime.client.calls import Pending, Repetition
from realtime.client.wire import ClientMessage
from realtime.errors import BadMessage, CallFailed, ConnectionClosed, RealtimeError

__all__ = ["ClientPresence", "ClientRooms"]

log = logging.getLogger("realtime.client")

CURSORS = 10_000  # rooms in which it is remembered how far we are

_Heard = Callable[[Any], None]


class _Asking(Protocol):
    def _ask(
        self, type: str, payload: Any, *, room: str | None, timeout: float | None, heard: _Heard | None = None
    ) -> Any:
        """Ask and wait."""

    def _ask_again(self, call: Pending, type: str, payload: Any = None, *, room: str | None = None) -> None:
        """Ask in the thread that reads, without waiting."""

    def _tell(self, type: str, payload: dict[str, Any]) -> None:
        """Tell handlers."""

    def _seconds(self, timeout: float | None) -> float:
        """Return how long to wait."""


class _Place:
    """One room: ``joined`` once the server has let us in."""

    def __init__(self) -> None:
        self.joined = False
        self.replayed = 0
        """Messages, in coming back."""
        self.settled = threading.Event()
        """Not set while coming back."""
        self.settled.set()


class ClientRooms:
    """Which rooms to come back to, and how far we are in those that are recoverable."""

    def __init__(self, client: _Asking) -> None:
        self._client = client
        self._places: dict[str, _Place] = {}
        self._cursors: dict[str, str] = {}

    def cursor(self, room: str) -> str | None:
        """Return how far we are; None in a room that is not recoverable."""
        return self._cursors.get(room)

    def note(self, message: ClientMessage) -> None:
        """A message came: called by the thread that reads."""
        if message.cursor is not None and message.room is not None:
            self._reached(message.room, message.cursor)

    def _reached(self, room: str, cursor: object) -> None:
        if not isinstance(cursor, str):
            return
        if len(self._cursors) >= CURSORS and room not in self._cursors:
            forgotten = next((one for one in self._cursors if one not in self._places), None)
            if forgotten is not None:
                del self._cursors[forgotten]
        self._cursors[room] = cursor

    def join(self, room: str, since: str | None, timeout: float | None) -> Any:
        """Ask to be let in, as often as there is more that was missed, and remember the room."""
        place = self._places.setdefault(room, _Place())
        # a request without a cursor would pass over what is still to be replayed
        place.settled.wait(min(self._client._seconds(timeout), threading.TIMEOUT_MAX))
        try:
            result = self._enter(room, since, timeout)
        except BaseException:
            if not place.joined:
                self._forget(room, place)
            raise
        place.joined = True
        return result

    def _enter(self, room: str, since: str | None, timeout: float | None) -> Any:
        replayed = 0
        while True:
            payload = None if since is None else {"since": since}
            result = self._client._ask("system:join", payload, room=room, timeout=timeout, heard=self._heard(room))
            if since is None or not isinstance(result, dict) or "recovered" not in result:
                return result
            replayed += _replayed(result)
            if not result.pop("more", False):
                return {**result, "replayed": replayed}
            since = result.get("cursor")

    def _heard(self, room: str) -> _Heard:
        """Where the server says that we are counts before what comes after it."""
        return lambda result: self._reached(room, result.get("cursor") if isinstance(result, dict) else None)

    def leave(self, room: str, timeout: float | None) -> Any:
        """Leave, and come back no more, also if this request is lost."""
        place = self._places.pop(room, None)
        if place is not None:
            place.settled.set()
        try:
            return self._client._ask("system:leave", None, room=room, timeout=timeout)
        finally:
            if room not in self._places:
                self._cursors.pop(room, None)

    def rejoin(self) -> None:
        """Come back to all, in the thread that reads."""
        for room, place in list(self._places.items()):
            if place.joined:  # else its request waits in the queue
                place.replayed = 0
                place.settled.clear()
                self._come_back(room, place)

    def _come_back(self, room: str, place: _Place) -> None:
        cursor = self._cursors.get(room)
        payload = None if cursor is None else {"since": cursor}
        self._client._ask_again(self._again(room, place), "system:join", payload, room=room)

    def _again(self, room: str, place: _Place) -> Repetition:
        def succeeded(result: Any) -> None:
            if self._places.get(room) is not place:
                return  # left meanwhile
            self._heard(room)(result)
            if isinstance(result, dict) and "recovered" in result:
                place.replayed += _replayed(result)
                if result.get("more"):
                    self._come_back(room, place)
                    return
                self._client._tell("client:recovered", _news(room, result, place.replayed))
            place.settled.set()

        def failed(error: RealtimeError) -> None:
            place.settled.set()
            if isinstance(error, ConnectionClosed) or self._places.get(room) is not place:
                return  # the next connection tries again
            self._forget(room, place)
            code = error.code if isinstance(error, CallFailed) else "rejected"
            message = error.message if isinstance(error, CallFailed) else str(error)
            self._client._tell("client:left", {"room": room, "code": code, "message": message})

        return Repetition(succeeded, failed)

    def _forget(self, room: str, place: _Place) -> None:
        if self._places.get(room) is place:
            del self._places[room]
            self._cursors.pop(room, None)


def _replayed(result: dict[str, Any]) -> int:
    count = result.get("replayed")
    return count if type(count) is int else 0


def _news(room: str, result: dict[str, Any], replayed: int) -> dict[str, Any]:
    news = {"room": room, "recovered": bool(result["recovered"]), "replayed": replayed}
    return {**news, "reason": result["reason"]} if "reason" in result else news


class ClientPresence:
    """Who is here, and what this client says of itself: ``client.presence``."""

    def __init__(self, client: _Asking) -> None:
        self._client = client
        self._own: dict[str, Any] | None = None

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

    def repeat(self) -> None:
        """Say it again, in the thread that reads."""
        if self._own is None:
            return

        def failed(error: RealtimeError) -> None:
            if not isinstance(error, ConnectionClosed):
                log.warning("the presence is not as it was: %s", error)

        self._client._ask_again(Repetition(lambda result: None, failed), "system:presence", {"metadata": self._own})
