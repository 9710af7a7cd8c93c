"""The rooms a Client joined by itself: joined again where a reconnect resumed no session, from where it was."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

from realtime.client.calls import Overtaken, Pending, Question, Repetition
from realtime.client.wire import ClientMessage
from realtime.codes import ErrorCode
from realtime.errors import CallFailed, ConnectionClosed, RealtimeError, TimedOut

__all__ = ["Asking", "ClientRooms"]

CURSORS = 10_000  # rooms in which it is remembered how far we are


class Asking(Protocol):
    """A client, for what asks the server by it."""

    def _ask(
        self, type: str, payload: Any, *, room: str | None, timeout: float | None, question: Question | None = None
    ) -> Any:
        """Ask and wait. Raises Overtaken if the question may not go."""

    def _ask_again(self, call: Pending, type: str, payload: Any = None, *, room: str | None = None) -> str:
        """Ask in the thread that reads, without waiting; return the id of the question."""

    def _forget(self, ack: str) -> None:
        """Whatever the answer to that question is, nobody wants it any more."""

    def _tell(self, type: str, payload: dict[str, Any]) -> None:
        """Tell handlers."""

    def _seconds(self, timeout: float | None) -> float:
        """Return how long to wait."""


class _Place:
    """One room: ``joined`` once the server has let us in."""

    def __init__(self) -> None:
        self.joined = False
        self.presence: bool | None = None
        """Whether we asked to be told who is there; None: as the server likes."""
        self.replayed = 0
        """Messages, in coming back."""
        self.asked = ("", 0.0)
        """The question that asks to be let in again, and when it was asked."""
        self.settled = threading.Event()
        """Not set while coming back."""
        self.settled.set()


class _Reached:
    """How far we are in a room."""

    __slots__ = ("cursor", "messages")

    def __init__(self, cursor: str) -> None:
        self.cursor = cursor
        self.messages = 0
        """Those with a cursor that have come."""


class ClientRooms:
    """Which rooms to come back to, and how far we are in those that are recoverable."""

    def __init__(self, client: Asking, on_left: Callable[[str], None]) -> None:
        self._client = client
        self._on_left = on_left
        self._places: dict[str, _Place] = {}
        self._cursors: dict[str, _Reached] = {}
        self._returning: dict[str, _Place] = {}  # those not settled: of the thread that reads alone

    def names(self) -> Collection[str]:
        """Return which rooms these are."""
        return self._places.keys()

    def cursor(self, room: str) -> str | None:
        """Return how far we are; None in a room that is not recoverable."""
        reached = self._cursors.get(room)
        return None if reached is None else reached.cursor

    def _came(self, room: str) -> int:
        """Return how many messages of a room have come."""
        reached = self._cursors.get(room)
        return 0 if reached is None else reached.messages

    def note(self, message: ClientMessage) -> None:
        """A message came: called by the thread that reads."""
        if message.cursor is not None and message.room is not None:
            self._reached(message.room, message.cursor).messages += 1

    def _reached(self, room: str, cursor: str) -> _Reached:
        reached = self._cursors.get(room)
        if reached is not None:
            reached.cursor = cursor
            return reached
        if len(self._cursors) >= CURSORS:
            forgotten = next((one for one in self._cursors if one not in self._places), None)
            if forgotten is not None:
                del self._cursors[forgotten]
        reached = self._cursors[room] = _Reached(cursor)
        return reached

    def join(self, room: str, since: str | None, presence: bool | None, timeout: float | None) -> Any:
        """Ask to be let in, as often as there is more that was missed, and remember the room."""
        place = self._places.setdefault(room, _Place())
        try:
            result = self._enter_in_turn(room, place, since, presence, timeout)
        except BaseException:
            if not place.joined:
                self._forget(room, place)
            raise
        place.joined = True
        place.presence = place.presence if presence is None else presence
        return result

    def _enter_in_turn(
        self, room: str, place: _Place, since: str | None, presence: bool | None, timeout: float | None
    ) -> Any:
        """Ask, but not while we come back: that would pass over what is still to be replayed."""
        seconds = self._client._seconds(timeout)
        deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX)
        while place.settled.wait(max(0.0, deadline - time.monotonic())):
            try:
                return self._enter(room, place, since, presence, timeout)
            except Overtaken:
                continue
        raise TimedOut(f"not back in room {room!r} within {seconds:g} s")

    def _enter(self, room: str, place: _Place, since: str | None, presence: bool | None, timeout: float | None) -> Any:
        replayed = 0
        while True:
            payload, question = _wish(since, presence), Question(heard=self._heard(room), may_go=place.settled.is_set)
            result = self._client._ask("system:join", payload, room=room, timeout=timeout, question=question)
            if since is None or not isinstance(result, dict) or "recovered" not in result:
                return result
            replayed += _replayed(result)
            if not result.pop("more", False):
                return {**result, "replayed": replayed}
            since = result.get("cursor")

    def _heard(self, room: str) -> Callable[[Any], None]:
        """Return what takes an answer to a question that is asked now.

        Where the server says that we are counts before what comes after it, unless the answer was overtaken: then
        messages came that it did not replay, and say better where we are.
        """
        before = self._came(room)

        def heard(result: Any) -> None:
            cursor = result.get("cursor") if isinstance(result, dict) else None
            if isinstance(cursor, str) and self._came(room) - before <= _replayed(result):
                self._reached(room, cursor)

        return heard

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
                self._on_left(room)

    def rejoin(self) -> None:
        """Come back to all, in the thread that reads."""
        for room, place in list(self._places.items()):
            if place.joined:  # else its request waits in the queue
                place.replayed = 0
                place.settled.clear()
                self._come_back(room, place, self.cursor(room))

    def ask_in_time(self, now: float, opened_at: float) -> float | None:
        """Ask once more where no answer has come in time, in the thread that reads.

        :param opened_at: when this connection was welcomed: before, no answer could come.
        :returns: the seconds until to look again; None if there is nothing to look for.
        """
        if not self._returning:
            return None
        timeout = self._client._seconds(None)
        for room, place in list(self._returning.items()):
            ack, asked_at = place.asked
            if self._places.get(room) is not place:
                del self._returning[room]
            elif now - max(asked_at, opened_at) >= timeout:
                self._client._forget(ack)
                self._come_back(room, place, self.cursor(room))
        asked = [max(place.asked[1], opened_at) for place in self._returning.values()]
        return max(0.0, min(asked) + timeout - now) if asked else None

    def _come_back(self, room: str, place: _Place, since: str | None) -> None:
        payload = _wish(since, place.presence)
        self._returning[room] = place
        ack = self._client._ask_again(self._again(room, place), "system:join", payload, room=room)
        place.asked = (ack, time.monotonic())

    def _settle(self, room: str, place: _Place) -> None:
        """There is no question under way any more."""
        if self._returning.get(room) is place:
            del self._returning[room]
        place.settled.set()

    def _again(self, room: str, place: _Place) -> Repetition:
        heard = self._heard(room)

        def succeeded(result: Any) -> None:
            if self._places.get(room) is not place:
                return  # left meanwhile
            heard(result)
            if isinstance(result, dict) and "recovered" in result:
                place.replayed += _replayed(result)
                if result.get("more"):  # from there, wherever else an answer has said meanwhile that we are
                    self._come_back(room, place, result.get("cursor"))
                    return
                self._client._tell("client:recovered", _news(room, result, place.replayed))
            self._settle(room, place)

        def failed(error: RealtimeError) -> None:
            code = error.code if isinstance(error, CallFailed) else "rejected"
            is_ours = self._places.get(room) is place
            if code == ErrorCode.TIMEOUT and is_ours:
                self._come_back(room, place, self.cursor(room))
                return
            self._settle(room, place)
            if isinstance(error, ConnectionClosed) or not is_ours:
                return  # the next connection tries again
            self._forget(room, place)
            message = error.message if isinstance(error, CallFailed) else str(error)
            self._client._tell("client:left", {"room": room, "code": code, "message": message})

        return Repetition(succeeded, failed)

    def _forget(self, room: str, place: _Place) -> None:
        if self._places.get(room) is place:
            del self._places[room]
            self._cursors.pop(room, None)
            self._on_left(room)


def _wish(since: str | None, presence: bool | None) -> dict[str, Any] | None:
    """Return the payload of a request to be let in."""
    wish = {"since": since, "presence": presence}
    return {name: value for name, value in wish.items() if value is not None} or None


def _replayed(result: dict[str, Any]) -> int:
    count = result.get("replayed")
    return count if type(count) is int else 0


def _news(room: str, result: dict[str, Any], replayed: int) -> dict[str, Any]:
    news = {"room": room, "recovered": bool(result["recovered"]), "replayed": replayed}
    return {**news, "reason": result["reason"]} if "reason" in result else news

