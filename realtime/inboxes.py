"""Inboxes: each client's messages in order, one at a time, in workers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from realtime.codes import ErrorCode
from realtime.config import Limits, MiB
from realtime.connection import Connection
from realtime.errors import NotRunning
from realtime.events import CLIENT_CONNECTED
from realtime.lanes import WAITING, Lanes, LaneUser, Turn
from realtime.message import Message
from realtime.outgoing import Outgoing
from realtime.workers import Workers

__all__ = ["HubUser", "Inboxes"]

READ_AHEAD = 16  # messages of one client a worker handles before the next client's turn


class HubUser(LaneUser, Protocol):
    """What the hub asks of the kernel that owns it."""

    def handle(self, connection: Connection, message: Message) -> None:
        """Run the handlers of a message and answer it; never raises."""

    def is_concurrent(self, message: Message) -> bool:
        """Tell whether a message need not wait for the ones before it."""

    def wants(self, event: str) -> bool:
        """Tell whether a lifecycle event has handlers."""

    def cancel(self, connection: Connection, ack: str | int) -> bool:
        """End a streamed answer whose asker wants no more; False if none is under way."""


class Inboxes(Outgoing):
    """What a hub does with messages until they are handled: they wait in line, in lanes, or go beside.

    Reading from a client stops when enough of its messages wait, and what comes all the same is refused.
    """

    def __init__(self, limits: Limits, user: HubUser) -> None:
        super().__init__(limits)
        self.draining = False
        """Read nothing more from clients, but for what handlers wait for."""
        self._user = user
        self._lanes: Lanes | None = None  # until a handler wants one
        self._workers: Workers | None = None

    @property
    def workers(self) -> Workers:
        """The greenlets that handlers run in. Raises NotRunning."""
        if self._workers is None:
            raise NotRunning("the kernel is not running: call start() or run() first")
        return self._workers

    def open_lanes(self) -> None:
        """A handler wants its messages one at a time: from now on each is asked for its lane."""
        if self._lanes is None:
            self._lanes = Lanes(self, self._user, self._take_turn)

    def lane_stats(self) -> dict[str, Any]:
        """Return how many lanes are held, and how many messages wait for one."""
        return self._lanes.stats() if self._lanes is not None else {"held": 0, "waiting": 0}

    def room_for(self, connection: Connection) -> int:
        """Return how many messages a transport may hand over before it is asked to pause; at least 1.

        0 means that nothing more is taken of a client that has hung up: the transport ends its connection then.
        """
        limits = self.limits
        if connection.line is not None:
            connection = connection.line.session.client
        if connection.leaving:
            return self._room_at_the_end(connection)
        most = limits.inbox_while_waiting if connection.is_awaited else limits.inbox
        return max(1, most - len(connection.inbox))

    def _room_at_the_end(self, connection: Connection) -> int:
        """What is read last is not paused for, so it has a bound of its own: a few at a time, as bytes count too."""
        limits = self.limits
        room = limits.inbox_at_end - len(connection.inbox)
        if room <= 0 or connection.inbox_bytes >= self._most_bytes_read:
            self.counters["cut_off_at_end"] += 1
            return 0
        return min(room, limits.inbox)

    @property
    def _most_bytes_read(self) -> int:
        """What was read before reading stopped is kept: a message of any size, and the rest of one read."""
        return self.limits.inbox_bytes + self.limits.message_size + MiB

    def receive_event(self, connection: Connection, message: Message, size: int = 0) -> None:
        """Put an event of the server's own, such as ``client:connected``, in line with a client's messages.

        :param size: bytes of one that another node sent.
        """
        connection.enqueue(message, size)
        self._schedule(connection)

    def _enqueue(self, connection: Connection, message: Message, size: int) -> None:
        """Put a message in line; stop reading when enough wait, refuse it when far too much does."""
        if self._user.is_concurrent(message) and not connection.greeting and self._start_beside(connection, message):
            return
        if self._is_overfull(connection):
            self.counters["refused_inbox_full"] += 1
            text = f"{len(connection.inbox)} messages wait already"
            self.send_error(connection, text, ErrorCode.INBOX_FULL, ack=message.ack)
            return
        connection.enqueue(message, size)
        if not connection.paused and not self._has_room(connection):
            connection.pause()
        if not connection.busy:
            self._schedule(connection)

    def _is_overfull(self, connection: Connection) -> bool:
        """Tell whether a message can only be refused, because reading must go on or cannot be stopped."""
        limits = self.limits
        if connection.leaving:
            return False  # there is room: its transport has asked
        if len(connection.inbox) >= max(limits.inbox, limits.inbox_while_waiting):
            return True
        return connection.inbox_bytes >= (limits.inbox_bytes if connection.is_awaited else self._most_bytes_read)

    def _has_room(self, connection: Connection) -> bool:
        """Tell whether to go on reading from a client: also past the limit while a handler waits for it."""
        if connection.is_awaited:
            return True
        if self.draining:
            return False
        return len(connection.inbox) < self.limits.inbox and connection.inbox_bytes < self.limits.inbox_bytes

    def _schedule(self, connection: Connection) -> None:
        if not connection.busy:
            connection.busy = True
            if self._lanes is None:
                self.workers.submit(partial(self._serve, connection))
            else:
                self._go_on(connection, None)

    def _go_on(self, connection: Connection, turn: Turn | None) -> None:
        """Have a worker handle what waits in a client's inbox, once the first of it has its turn in its lane."""
        if self._lanes is not None:
            turn = self._lanes.admit(connection, turn)
            if turn is WAITING:
                return
        if connection.inbox:
            self.workers.submit(partial(self._serve, connection, turn))
        else:
            connection.busy = False

    def _take_turn(self, connection: Connection, turn: Turn) -> None:
        """A client's first message has waited for its turn, and has it now."""
        self.workers.submit(partial(self._serve, connection, turn))

    def put_back(self, connection: Connection, message: Message) -> None:
        """Put a message that was taken out of line back at its head."""
        connection.enqueue(message, 0)
        connection.inbox.rotate(1)
        self._schedule(connection)

    def _serve(self, connection: Connection, turn: Turn | None = None) -> None:
        """In a worker: handle what waits in a client's inbox, a few at a time so that others get a turn."""
        user = self._user
        lanes = self._lanes
        inbox = connection.inbox
        try:
            for _ in range(READ_AHEAD):
                if lanes is not None:
                    turn = lanes.admit(connection, turn)
                    if turn is WAITING:
                        break
                if not inbox:
                    break
                message = connection.dequeue()
                if turn or not user.is_concurrent(message) or not self._start_beside(connection, message):
                    user.handle(connection, message)
                if message.type == CLIENT_CONNECTED:
                    connection.greeting = False
                if connection.paused:
                    self.resume_if_room(connection)
        finally:
            if not inbox and turn is None:
                connection.busy = False
            elif turn is not WAITING:
                self._go_on(connection, turn)

    def _start_beside(self, connection: Connection, message: Message) -> bool:
        """Handle a message whose handlers all are ``concurrent=True`` now, in a worker of its own.

        False if that would leave none of ``Limits.concurrent`` for the one in line: then it waits its turn.
        """
        job = partial(self._user.handle, connection, message)
        if self._lanes is not None:
            return self._lanes.start_beside(connection, message, job)
        return self.run_beside(connection, job)

    def run_beside(self, connection: Connection, job: Callable[[], None]) -> bool:
        """Run a job beside the client's messages, in a worker; False if enough of them do."""
        if connection.concurrent >= self.limits.concurrent - 1:
            return False
        connection.concurrent += 1

        def run() -> None:
            try:
                job()
            finally:
                connection.concurrent -= 1

        self.workers.submit(run)
        return True

    def resume_if_room(self, connection: Connection) -> None:
        """Read from a paused client again where its inbox has room or a handler waits for it."""
        if connection.paused and self._has_room(connection):
            connection.resume()
