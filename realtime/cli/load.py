"""Many clients that ask one server at once, each one question after the other. In greenlets: the process is patched."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from realtime.cli.common import printable
from realtime.cli.tally import Tally
from realtime.codes import CloseCode, ErrorCode
from realtime.errors import CallFailed, ConnectionClosed, RealtimeError, TimedOut

if TYPE_CHECKING:
    from realtime.client import Client, ClientMessage

__all__ = ["Load", "Question"]

AT_ONCE = 64  # connections that are made at a time
RAMP = 30.0  # seconds until those that are not connected count as failed
AFTER_ERROR = 0.05  # seconds a client waits then, so that a server that is gone is not asked in a tight loop
FAREWELL = 10.0  # seconds for all clients to close
TEXT = 100  # characters of what a server says that tell its errors apart
LOOK = 0.1  # seconds between two words about the progress


class Question(NamedTuple):
    """What every client asks. Without a type it is one that no handler takes: its refusal is an answer as well."""

    type: str | None
    payload: Any
    room: str | None

    @property
    def name(self) -> str:
        """What goes over the wire."""
        return self.type if self.type is not None else "realtime:bench"

    def ask(self, client: Client) -> None:
        """Ask, and wait for the answer. Raises RealtimeError."""
        try:
            client.call(self.name, self.payload, room=self.room)
        except CallFailed as error:
            if self.type is not None or error.code != ErrorCode.UNKNOWN_TYPE:
                raise


class Load:
    """One run.

    :param make: makes a client, not connected.
    :param clients: how many.
    """

    def __init__(self, make: Callable[[], Client], question: Question, clients: int) -> None:
        from gevent.event import Event
        from gevent.lock import BoundedSemaphore
        from gevent.pool import Pool

        self._make = make
        self._question = question
        self._wanted = clients
        self.tally = Tally()
        self._greenlets = Pool()
        self._door = BoundedSemaphore(AT_ONCE)
        self._begin = Event()
        self._deadline = 0.0
        self._clients: list[Client] = []
        self._arrived = 0  # connected, or failed to
        self.connected = 0
        self.seconds = 0.0
        self.own_cpu = 0.0
        """The share of a core that this process took."""

    def connect(self, told: Callable[[int], None]) -> None:
        """Connect all clients; ``told`` hears now and then how many are.

        :raises RealtimeError: not even one can.
        """
        first = self._new_client()
        first.connect()
        self._arrived = self.connected = 1
        self._greenlets.spawn(self._ask, first)
        for _ in range(self._wanted - 1):
            self._greenlets.spawn(self._join)
        self._wait(lambda: self._arrived == self._wanted, RAMP, lambda: told(self.connected))
        for _ in range(self._wanted - self._arrived):
            self.tally.failed(f"not connected within {RAMP:g} s")

    def run(self, seconds: float, told: Callable[[float], None]) -> None:
        """Ask for so many seconds; ``told`` hears now and then how many have passed."""
        started, cpu = time.perf_counter(), time.process_time()
        self._deadline = started + seconds
        self._begin.set()
        try:
            self._wait(lambda: False, seconds, lambda: told(time.perf_counter() - started))
        finally:
            self.seconds = time.perf_counter() - started
            self.own_cpu = (time.process_time() - cpu) / self.seconds
            self._deadline = 0.0

    def close(self) -> None:
        """Let all clients go, within FAREWELL seconds."""
        from gevent.pool import Pool

        leaving = Pool()
        for client in self._clients:
            client.off("client:state", self._state_changed)
            leaving.spawn(client.close)
        leaving.join(FAREWELL)
        leaving.kill(timeout=1)
        self._greenlets.kill(timeout=1)

    # Clients -----------------------------------------------------------------------------------------

    def _new_client(self) -> Client:
        client = self._make()
        client.on("client:state", self._state_changed)
        client.on("system:error", lambda message: None)  # counted where it answers; the client need not log it
        self._clients.append(client)
        return client

    def _join(self) -> None:
        """The greenlet of a client, from its connection on."""
        with self._door:
            client = self._new_client()
            try:
                client.connect()
            except RealtimeError as error:
                self._arrived += 1
                self.tally.failed(f"no connection: {_kind(error)}")
                return
        if self._begin.is_set():
            return  # too late: counted as failed
        self._arrived += 1
        self.connected += 1
        self._ask(client)

    def _ask(self, client: Client) -> None:
        """Ask until time is up."""
        import gevent

        self._begin.wait()
        ask, add, clock = self._question.ask, self.tally.durations.add, time.perf_counter
        while (started := clock()) < self._deadline:
            try:
                ask(client)
            except RealtimeError as error:
                if clock() < self._deadline:
                    self.tally.failed(_kind(error))
                    gevent.sleep(AFTER_ERROR)
                continue
            ended = clock()
            if ended < self._deadline:
                add(ended - started)

    def _state_changed(self, message: ClientMessage) -> None:
        told = message.payload
        if told["name"] in ("waiting", "closed") and self._begin.is_set():
            code = told["code"]
            self.tally.closed(f"{code} {CloseCode(code).name.lower()}" if code in _CODES else str(code))

    @staticmethod
    def _wait(done: Callable[[], bool], seconds: float, look: Callable[[], None]) -> None:
        import gevent

        deadline = time.perf_counter() + seconds
        while not done() and (left := deadline - time.perf_counter()) > 0:
            look()
            gevent.sleep(min(LOOK, left))
        look()


_CODES = frozenset(int(code) for code in CloseCode)


def _kind(error: RealtimeError) -> str:
    """Return a name for an error that is the same for all of its kind."""
    if isinstance(error, CallFailed):
        return printable(str(error)[:TEXT])
    if isinstance(error, TimedOut):
        return "no answer in time"
    if isinstance(error, ConnectionClosed):
        return "connection lost" if error.__cause__ is None else printable(error.reason[:TEXT])
    return type(error).__name__
