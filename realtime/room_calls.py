"""A question to every member of a room, and their answers as they come: ``toolkit.rooms.call``.

The message goes out once, with the same ``ack`` id for all members; each answers as it answers ``toolkit.call``. A
node asks the members it has and passes their answers on to the node that wants to know, a few in one go.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from realtime.cluster import RoomAnswers
from realtime.connection import Connection
from realtime.errors import CallFailed, ConfigurationError
from realtime.message import Message
from realtime.threads import HomeThread, on_home_thread

if TYPE_CHECKING:
    from realtime.hub import Hub

__all__ = ["RoomCall", "answers_to_pass_on"]

# Counted down, as a client's own calls are counted up, and from anywhere: a client whose session moves to another node
# takes open questions along, which must not meet that node's. JavaScript has integers of 53 bits.
_next_ack = itertools.count(-1 - random.getrandbits(52), -1).__next__


class _Slot:
    """Where the answer of one member goes."""

    __slots__ = ("_call", "_client_id")

    def __init__(self, call: RoomCall, client_id: str) -> None:
        self._call = call
        self._client_id = client_id

    @property
    def deadline(self) -> float:
        """When the call ends."""
        return self._call._deadline

    def set(self, result: Any) -> None:
        """It answered."""
        self._call._take_here(self._client_id, result)

    def set_exception(self, error: BaseException) -> None:
        """It answered with an error, or went away."""
        if isinstance(error, CallFailed):
            self._call._take_here(self._client_id, error)
        else:
            self._call._lost_here(self._client_id)


class RoomCall(Iterator[tuple[str, Any]], RoomAnswers):
    """Iterate over it for ``(client_id, result)``, in the order in which members answer; each step may park.

    Where a member answers with an error the result is the ``CallFailed`` that ``toolkit.call`` would raise. It ends
    when everybody has answered or gone, or at the timeout; ``missing`` then tells who has not answered. Good for one
    greenlet at a time; works from any native thread.
    """

    def __init__(self, hub: Hub, home: HomeThread, timeout: float) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < float("inf"):
            raise ConfigurationError(f"timeout={timeout!r}: must be seconds, above 0")
        self._hub = hub
        self._home = home
        self._timeout = timeout
        self._ack = _next_ack()
        self._answers: deque[tuple[str, Any]] = deque()
        self._missing: dict[str, None] = {}
        self._here: dict[str, Connection] = {}  # members of this node that are to answer
        self._nodes: dict[str, dict[str, None]] = {}  # nodes that are to say more, with those of whom nothing is known
        self._forget_elsewhere: Callable[[], None] | None = None
        self._asked = False
        self._over = False
        self._wake = Event()
        self._timer = gevent.get_hub().loop.timer(timeout)
        self._deadline = 0.0

    def ask(
        self, room: str, message: Mapping[str, Any] | Message, except_ids: Collection[str], *, elsewhere: bool
    ) -> None:
        """Send the question. May switch as a broadcast does, and raise what one raises."""
        hub = self._hub
        outbound = hub.outbound(message, room=room, ack=self._ack)
        self._deadline = time.monotonic() + self._timeout
        self._timer.start(self._finish)
        try:
            departures = hub.sessions.departures
            departures.wait_for_members(room, self._timeout)
            if not elsewhere:
                self._missing.update(dict.fromkeys(departures.moved_from(room, except_ids)))
            for client_id in tuple(hub.rooms.each_member(room)) if not self._over else ():
                connection = hub.connections.get(client_id)
                if connection is not None and client_id not in except_ids:
                    self._expect(connection)
            receivers = hub.hand_out(tuple(self._here), outbound)
            try:
                left = self._deadline - time.monotonic()
                if elsewhere and left > 0:
                    plain = _plain(message)
                    self._forget_elsewhere = hub.cluster.call_room(room, plain, except_ids, left, self)
            finally:
                hub.settle(receivers)
        except BaseException:
            self._finish()
            raise
        self._asked = True
        if self._over and self._forget_elsewhere is not None:  # the time was over before that returned
            self._forget_elsewhere()
        self._finish_if_done()

    def _expect(self, connection: Connection) -> None:
        if connection.calls is None:
            connection.calls = {}
        connection.calls[self._ack] = _Slot(self, connection.id)
        self._here[connection.id] = connection
        self._missing[connection.id] = None
        self._hub.resume_if_room(connection)

    # For whoever asked ----------------------------------------------------------------------------------

    @property
    def missing(self) -> list[str]:
        """The ids of members that have not answered: final when the iteration has ended."""
        return list(self._missing)

    @on_home_thread
    def __next__(self) -> tuple[str, Any]:
        """Return the next answer. Parks until there is one. Raises StopIteration."""
        while not self._answers:
            if self._over:
                raise StopIteration
            self._wake.clear()
            with self._hub.workers.parked():
                self._wake.wait()
        return self._answers.popleft()

    def ready(self) -> list[tuple[str, Any]]:
        """Return the answers that are there, without waiting."""
        answers = list(self._answers)
        self._answers.clear()
        return answers

    @on_home_thread
    def close(self) -> None:
        """Wait for no more answers. By itself it ends at the timeout."""
        self._finish()

    # What comes -----------------------------------------------------------------------------------------

    def _take_here(self, client_id: str, result: Any) -> None:
        if self._here.pop(client_id, None) is not None:
            self._take(client_id, result)
            self._finish_if_done()

    def _lost_here(self, client_id: str) -> None:
        self._here.pop(client_id, None)
        self._finish_if_done()

    def asked(self, node: str, members: Collection[str]) -> None:
        """Members of another node are being asked."""
        self._nodes[node] = dict.fromkeys(members)
        self._missing.update(self._nodes[node])

    def answered(self, node: str, answers: Collection[tuple[str, Any]]) -> None:
        """Members of another node have answered."""
        unknown = self._nodes.get(node)
        if unknown is None:
            return
        for client_id, result in answers:
            unknown.pop(client_id, None)
            self._take(client_id, result)

    def ended(self, node: str, missing: Collection[str] | None) -> None:
        """A node has no more answers: ``missing`` tells whose, None that it is not known."""
        unknown = self._nodes.pop(node, None)
        if unknown is None:
            return
        if missing is not None:
            for client_id in unknown:  # those that were not there any more were not asked
                self._missing.pop(client_id, None)
            self._missing.update(dict.fromkeys(missing))
        self._finish_if_done()

    def _take(self, client_id: str, result: Any) -> None:
        self._missing.pop(client_id, None)
        self._answers.append((client_id, result))
        self._wake.set()

    def _finish_if_done(self) -> None:
        if self._asked and not self._here and not self._nodes:
            self._finish()

    def _finish(self) -> None:
        """Nobody is waited for any more."""
        if self._over:
            return
        self._over = True
        self._timer.close()
        for connection in self._here.values():
            if connection.calls:
                connection.calls.pop(self._ack, None)
        self._here.clear()
        self._nodes.clear()
        if self._forget_elsewhere is not None:
            self._forget_elsewhere()
        self._wake.set()


def _plain(message: Mapping[str, Any] | Message) -> dict[str, Any]:
    """Return a message as another node takes it."""
    if isinstance(message, Message):
        return {"type": message.type, "payload": message.payload}
    return dict(message)


def answers_to_pass_on(call: RoomCall) -> Generator[list[tuple[str, Any]], None, list[str]]:
    """Yield answers as they come, those that are there in one go, and return who has not answered. Parks."""
    try:
        for first in call:
            yield [first, *call.ready()]
        return call.missing
    finally:
        call.close()
