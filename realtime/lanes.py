"""Lanes: messages of many clients handled one at a time, such as all moves of one game.

``kernel.on("move", handler, serial="room")`` gives each room a lane; a function ``(message, context)`` may return any
other key, and whatever has an equal key shares a lane. A message goes through its lane whole: middleware, handlers,
the answer, a stream to its last item; ``call`` and ``wait_for`` inside it hold the lane.

A lane changes nothing in a client's own order: a message comes to its lane when the client's earlier ones are done,
and the later ones wait for it as for any other. Of the messages that have come to a lane the one that arrived first
at this node is next. What waits for a lane holds no other lane and no greenlet, and what holds a lane waits for
none: there is no deadlock. A lane exists while a message is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Protocol

from realtime.codes import ErrorCode
from realtime.connection import Connection, next_arrival
from realtime.message import Message

if TYPE_CHECKING:
    from realtime.inboxes import Inboxes

__all__ = ["WAITING", "LaneUser", "Lanes", "Turn"]


class LaneUser(Protocol):
    """Who knows the handlers."""

    def lane_key(self, connection: Connection, message: Message) -> Hashable:
        """Return the key of the lane a message goes through, None for none. May raise what a key function raises."""

    def answer_failure(self, connection: Connection, message: Message, error: BaseException) -> None:
        """Tell a client what went wrong with its message."""


class Turn:
    """A message that has its lane for itself."""

    __slots__ = ("key", "message")

    def __init__(self, key: Hashable, message: Message | None) -> None:
        self.key = key
        self.message = message


WAITING = Turn(None, None)
"""Instead of a turn: it will come."""
_REFUSED = Turn(None, None)

_Entry = tuple[int, Message, Callable[[Turn], None]]  # when it arrived: no two numbers are equal


class Lanes:
    """The lanes of one node. Nothing here switches greenlets, but for a key function that does what it must not.

    :param resume: called with a client whose first message has waited for its turn, and has it now.
    """

    def __init__(self, hub: Inboxes, user: LaneUser, resume: Callable[[Connection, Turn], None]) -> None:
        self._hub = hub
        self._user = user
        self._resume = resume
        self._waiting: dict[Hashable, list[_Entry]] = {}  # of each lane that is held: a heap

    def stats(self) -> dict[str, Any]:
        """Return how many lanes are held, and how many messages wait for one."""
        return {"held": len(self._waiting), "waiting": sum(map(len, self._waiting.values()))}

    def clear(self) -> None:
        """Everything has been stopped."""
        self._waiting.clear()

    def admit(self, connection: Connection, turn: Turn | None) -> Turn | None:
        """Say whether the first message in a client's inbox may be handled now.

        :param turn: the one that the client has; over, unless it is this very message's.
        :returns: its turn, None if it needs none or there is no message, or WAITING.
        """
        inbox = connection.inbox
        if turn is not None and inbox and inbox[0][0] is turn.message:
            return turn
        following = None
        while inbox:
            message, _, arrival = inbox[0]
            following = self._enter(connection, message, arrival, partial(self._resume, connection))
            if following is not _REFUSED:
                break
            connection.dequeue()
            following = None
        if turn is None:
            return following
        # only now, so that the client's own next message takes part as well
        entry = self._leave(turn)
        if entry is not None:
            granted = Turn(turn.key, entry[1])
            if following is WAITING and entry[1] is inbox[0][0]:
                return granted
            entry[2](granted)
        return following

    def start_beside(self, connection: Connection, message: Message, job: Callable[[], None]) -> bool:
        """Run the job of a message that need not wait for the client's others, once it has its turn.

        False if enough of them run beside already, or wait to: see ``Inboxes.run_beside``.
        """
        if connection.concurrent >= self._hub.limits.concurrent - 1:
            return False

        def start(turn: Turn) -> None:
            def run() -> None:
                try:
                    job()
                finally:
                    connection.concurrent -= 1
                    self._pass_on(turn)

            self._hub.workers.submit(run)

        turn = self._enter(connection, message, next_arrival(), start)
        if turn is None:
            return self._hub.run_beside(connection, job)
        if turn is not _REFUSED:
            connection.concurrent += 1
            if turn is not WAITING:
                start(turn)
        return True

    def _enter(
        self, connection: Connection, message: Message, arrival: int, start: Callable[[Turn], None]
    ) -> Turn | None:
        """Bring a message to its lane: its turn if the lane is free, else ``start`` is called with it later."""
        try:
            key = self._user.lane_key(connection, message)
            if key is None:
                return None
            waiting = self._waiting.get(key)
        except Exception as error:
            self._user.answer_failure(connection, message, error)
            return _REFUSED
        if waiting is None:
            self._waiting[key] = []
            return Turn(key, message)
        if len(waiting) >= self._hub.limits.lane:
            self._hub.counters["refused_lane_full"] += 1
            text = f"{len(waiting)} messages wait for the same lane already"
            self._hub.send_error(connection, text, ErrorCode.LANE_FULL, ack=message.ack)
            return _REFUSED
        heappush(waiting, (arrival, message, start))
        return WAITING

    def _leave(self, turn: Turn) -> _Entry | None:
        """A turn is over: return whose it is now. Nobody's: there is no such lane any more."""
        waiting = self._waiting.get(turn.key)
        if waiting:
            return heappop(waiting)
        self._waiting.pop(turn.key, None)
        return None

    def _pass_on(self, turn: Turn) -> None:
        entry = self._leave(turn)
        if entry is not None:
            entry[2](Turn(turn.key, entry[1]))
