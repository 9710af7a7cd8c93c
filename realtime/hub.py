"""The hub: every connection, what comes in from it, and delivery to it.

Transports hand clients over with ``connect``, ``receive`` and ``disconnect``. The hub keeps each client's
messages in order, one at a time, lets answers to ``call`` and ``wait_for`` past the waiting ones, and delivers
one encoded message to any number of outboxes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import gevent

from realtime import conversation
from realtime.cluster import Alone, Cluster
from realtime.codes import CloseCode, ErrorCode
from realtime.config import KiB, Limits, MiB
from realtime.connection import Connection, Context
from realtime.delivery import NO_OPTIONS, DeliveryOptions, delivery_from
from realtime.errors import (
    BadMessage,
    ConfigurationError,
    ConnectionClosed,
    MessageTooBig,
    NotRunning,
)
from realtime.events import CLIENT_CONNECTED, CLIENT_DISCONNECTED, REQUESTS, is_reserved
from realtime.history import History
from realtime.lanes import WAITING, Lanes, LaneUser, Turn
from realtime.live_presence import LivePresence
from realtime.message import MSGPACK, Codec, Message, Outbound, Wire
from realtime.outbox import Flusher, Outbox, stall
from realtime.presence import PresenceStore
from realtime.presence_diff import key_of
from realtime.rooms import RoomManager
from realtime.session_wire import read_wish
from realtime.sessions import Sessions
from realtime.workers import Workers

__all__ = ["Hub", "HubUser"]

VERSION_OF_WIRE = 1
FRAME_ROOM = 2 * KiB  # for a frame's header, and the longest cursor
READ_AHEAD = 16  # messages of one client a worker handles before the next client's turn


def _always(outbox: Outbox) -> bool:
    """Whoever publishes here stalls for every crowded member."""
    return True


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


class Hub:
    """Connections and delivery. Belongs to one thread; everything here runs in its event loop."""

    def __init__(self, limits: Limits, user: HubUser) -> None:
        self.limits = limits
        self.counters: Counter[str] = Counter()
        self.connections: dict[str, Connection] = {}
        self._codecs: Counter[Codec] = Counter()  # of the clients that are here
        self.draining = False
        """Read nothing more from clients, but for what handlers wait for."""
        self.on_gone: list[Callable[[Context, int], None]] = []
        """Told of each client that has gone, with the close code, at once and whatever its handlers are doing;
        ``context.rooms`` are those it was in. Must not wait, nor raise."""
        self.on_detached: list[Callable[[Context, int], None]] = []
        """Told of each client that lost its connection and may resume its session, with the close code: ``on_resumed``
        at this node or another, or ``on_gone`` follows. As ``on_gone``."""
        self.on_resumed: list[Callable[[Context], None]] = []
        """Told of each such client that is back. As ``on_gone``."""
        self.on_moved: list[Callable[[Context], None]] = []
        """Told of each client that is one of another node now, instead of ``on_gone``. As that."""
        self.on_found: list[Callable[[str, Collection[str]], None]] = []
        """Told of each client of another node, and its rooms, that was there before that node was known here: what
        its node told those who share the rooms did not reach this node's clients. Must not wait."""
        self.on_lost: list[Callable[[str, Collection[str]], None]] = []
        """Told of each client of another node that is gone with its node, and the rooms it was in: its node could
        not tell those who share them. Must not wait."""
        self.node_operations: dict[str, Callable[[Mapping[str, Any]], Any]] = {}
        """What services let other nodes ask of this one, by name, with ``Cluster.ask_node``: from the question's
        arguments to the answer, in a greenlet of its own."""
        self.rooms = RoomManager(limits, self.connections.__contains__)
        self.presence = PresenceStore(limits, self.rooms)
        self.live_presence = self.rooms.watch = self.presence.watch = LivePresence(self)
        self.cluster: Cluster = Alone()
        """The other nodes."""
        self.history = self.rooms.keeper = History(
            limits,
            self.rooms.rules,
            self.counters,
            cluster=lambda: self.cluster,
            deliver=lambda room, message, skip: self.deliver_to(self.rooms.each_member(room), message, skip),
            has_msgpack=lambda: MSGPACK in self._codecs,
            lost=self._send_back,
            check=self._check_for_all,
        )
        self.sessions = Sessions(self)
        self._user = user
        self._lanes: Lanes | None = None  # until a handler wants one
        self._workers: Workers | None = None
        self._flusher: Flusher | None = None

    def join_cluster(self, cluster: Cluster) -> None:
        """Be one node of a cluster from now on.

        :raises ConfigurationError: the kernel is in one already.
        """
        if not isinstance(self.cluster, Alone):
            raise ConfigurationError(f"the kernel is in a cluster already: {type(self.cluster).__name__}")
        self.cluster = self.rooms.cluster = self.presence.cluster = cluster

    def leave_cluster(self) -> None:
        """Be alone again."""
        self.cluster = self.rooms.cluster = self.presence.cluster = Alone()

    def wants(self, event: str) -> bool:
        """Tell whether an event has handlers."""
        return self._user.wants(event)

    def open_lanes(self) -> None:
        """A handler wants its messages one at a time: from now on each is asked for its lane."""
        if self._lanes is None:
            self._lanes = Lanes(self, self._user, self._take_turn)

    def lane_stats(self) -> dict[str, Any]:
        """Return how many lanes are held, and how many messages wait for one."""
        return self._lanes.stats() if self._lanes is not None else {"held": 0, "waiting": 0}

    # Lifecycle -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Bind to the event loop of the current thread."""
        hub = gevent.get_hub()
        self.draining = False
        self._workers = Workers(hub)
        self._flusher = Flusher(hub, self.counters)
        self.sessions.start()
        self.history.start()

    def stop(self, timeout: float) -> None:
        """End the workers. Switches greenlets."""
        self.sessions.stop()
        self.history.stop()
        if self._workers is not None:
            self._workers.stop(timeout)
            self._workers = self._flusher = None
        if self._lanes is not None:
            self._lanes.clear()

    @property
    def workers(self) -> Workers:
        """The greenlets that handlers run in. Raises NotRunning."""
        if self._workers is None:
            raise NotRunning("the kernel is not running: call start() or run() first")
        return self._workers

    @property
    def flusher(self) -> Flusher:
        """What flushes outboxes once per loop turn. Raises NotRunning."""
        if self._flusher is None:
            raise NotRunning("the kernel is not running: call start() or run() first")
        return self._flusher

    # What transports call ------------------------------------------------------------------------

    def connect(self, connection: Connection) -> None:
        """A client is there: give it presence and an outbox, and tell ``client:connected``."""
        if not hasattr(connection, "outbox"):
            connection.outbox = Outbox(connection, self.flusher, self.limits)
        connection._rooms_for = self.rooms.rooms_for
        self.connections[connection.id] = connection
        self._codecs[connection.wire.codec] += 1
        self._show(connection)
        self.counters["connected"] += 1
        if self._user.wants(CLIENT_CONNECTED):
            connection.greeting = True
            self.receive_event(connection, Message(CLIENT_CONNECTED, {"transport": connection.transport}))

    def _show(self, connection: Connection) -> None:
        key = key_of(connection.identity, connection.id)
        self.presence.add(connection.id, connection.metadata, connection.connected_at, key)
        self.cluster.client_came(
            connection.id, connection.metadata, connection.connected_at, connection.wire.codec.name, key
        )

    def receive(self, connection: Connection, data: bytes | Mapping[str, Any]) -> None:
        """A client sent a message: its payload bytes, or an object from a transport that has no bytes.

        Never switches and never raises for what a client sent: it is answered instead.
        """
        line = connection.line
        if line is not None:
            connection = line.session.client
        if connection.closed or (line is not None and not line.current):
            self.counters["received_after_close"] += 1
            return
        self.counters["received"] += 1
        try:
            codec = connection.wire.codec
            if not isinstance(data, bytes):
                data = codec.encode(data)
            message = codec.decode(data)
        except BadMessage as error:
            if line is not None:
                self.sessions.count(line.session, "", len(data))
            self._refuse(connection, error.message, error.ack)
            return
        if line is not None:
            self.sessions.count(line.session, message.type, len(data))
        if is_reserved(message.type):
            if message.type in REQUESTS:
                self._enqueue(connection, message, len(data))
            else:
                self._receive_system(connection, message)
            return
        waiters = connection.waiters
        if waiters:
            for waiter in waiters:
                if waiter.takes(message):
                    waiters.remove(waiter)
                    waiter.result.set(message)
                    return
        self._enqueue(connection, message, len(data))

    def refuse(self, connection: Connection, text: str) -> None:
        """Answer something that came in place of a message with ``bad_message``; the connection lives on."""
        line = connection.line
        if line is not None:
            if not line.current:
                return
            self.sessions.count(line.session, "", 0)
        self._refuse(connection.client, text)

    def _refuse(self, connection: Connection, text: str, ack: str | int | None = None) -> None:
        self.counters["refused_bad_message"] += 1
        self.send_error(connection, text, ErrorCode.BAD_MESSAGE, ack=ack)

    def room_for(self, connection: Connection) -> int:
        """Return how many messages a transport may hand over before it is asked to pause; at least 1."""
        limits = self.limits
        if connection.line is not None:
            connection = connection.line.session.client
        most = limits.inbox_while_waiting if connection.is_awaited else limits.inbox
        return max(1, most - len(connection.inbox))

    def receive_event(self, connection: Connection, message: Message, size: int = 0) -> None:
        """Put an event of the server's own, such as ``client:connected``, in line with a client's messages.

        :param size: bytes of one that another node sent.
        """
        connection.enqueue(message, size)
        self._schedule(connection)

    def disconnect(self, connection: Connection, reason: str = "", *, code: int = CloseCode.ABNORMAL) -> None:
        """A connection has ended, and with it the client is gone: see ``remove``. A second call does nothing.

        One that has a session and did not say goodbye (code 1006 or 4009) keeps its place for
        ``Limits.session_grace`` seconds.

        :param reason: for people, shown in ``message.payload["reason"]``.
        :param code: the close code (RFC 6455 section 7.4); 1006 if it just vanished.
        """
        if connection.line is None or self.sessions.ended(connection.line, reason, int(code)):
            self.remove(connection.client, reason, code=code)

    def close(self, connection: Connection, code: int, reason: str) -> None:
        """Close a client's connection after what waits for it, and end its session. Must be called in the loop."""
        if connection.line is None:
            connection.end(code, reason)
        else:
            self.sessions.close(connection.line.session, code, reason)

    def remove(self, connection: Connection, reason: str = "", *, code: int = CloseCode.ABNORMAL) -> None:
        """A client is gone: it leaves its rooms and presence at once; ``client:disconnected`` follows after
        the messages it had sent. A second call does nothing.
        """
        if connection.closed:
            return
        connection.closed = True
        connection.end_code = int(code)
        known = self.connections.pop(connection.id, None) is not None
        connection.last_rooms = self.rooms.forget(connection.id)
        self.presence.remove(connection.id)
        conversation.give_up(connection, ConnectionClosed(code, reason))
        if not known:
            return
        self.cluster.client_went(connection.id)
        self._speaks(connection.wire.codec, -1)
        if connection.line is not None:
            self.sessions.forget(connection.line.session)
        self.counters["disconnected"] += 1
        for tell in self.on_gone if self._workers is not None else ():
            tell(connection.context, int(code))
        if self._user.wants(CLIENT_DISCONNECTED) and self._workers is not None:
            payload = {"reason": reason, "code": int(code), "rooms": list(connection.last_rooms)}
            self.receive_event(connection, Message(CLIENT_DISCONNECTED, payload))

    def adopt(self, connection: Connection, rooms: Iterable[str]) -> None:
        """A client of another node is one of this node now, in these rooms; it is not told to anybody as new."""
        connection._rooms_for = self.rooms.rooms_for
        self.connections[connection.id] = connection
        self._speaks(connection.wire.codec, 1)
        self._show(connection)
        for room in rooms:
            self.rooms.adopt(room, connection.id)

    def release(self, connection: Connection) -> None:
        """A client is one of another node now; nobody is told that it has gone."""
        del self.connections[connection.id]
        connection.last_rooms = self.rooms.forget(connection.id)
        self.presence.remove(connection.id)
        self._speaks(connection.wire.codec, -1)
        self.cluster.client_moved(connection.id)
        for tell in self.on_moved:
            tell(connection.context)

    def _send_back(self, room: str, skip: Collection[str]) -> None:
        """Messages of a room are lost: have its members here join again, to be told so where they are missing."""
        for client_id in tuple(self.rooms.each_member(room)):
            connection = self.connections.get(client_id)
            if connection is not None and client_id not in skip:
                self.close(connection, CloseCode.REPLACED, "messages were lost between nodes: join your rooms again")

    def rewire(self, connection: Connection, wire: Wire) -> None:
        """A client has come back by a connection that may speak another codec."""
        self._speaks(connection.wire.codec, -1)
        self._speaks(wire.codec, 1)
        connection.wire = wire

    def _speaks(self, codec: Codec, change: int) -> None:
        """One client more, or less, speaks a codec."""
        self._codecs[codec] += change
        self._codecs += Counter()  # forgets those at 0

    # In order, one at a time -----------------------------------------------------------------------

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
        if len(connection.inbox) >= max(limits.inbox, limits.inbox_while_waiting):
            return not connection.leaving
        if connection.is_awaited:
            return connection.inbox_bytes >= limits.inbox_bytes
        # what was read before reading stopped is kept: a message of any size, and the rest of one read
        return connection.inbox_bytes >= limits.inbox_bytes + limits.message_size + MiB and not connection.leaving

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

    # The protocol's own messages --------------------------------------------------------------------

    def _receive_system(self, connection: Connection, message: Message) -> None:
        name = message.type
        if name in ("system:ack", "system:error"):
            self._take_answer(connection, message)
        elif name == "system:hello":
            self._greet(connection, message)
        elif name == "system:received":
            self._confirm(connection, message)
        elif name == "system:cancel":
            self._cancel(connection, message)
        else:
            self.counters["refused_reserved_type"] += 1
            text = f"{name!r} is reserved: clients send names outside system:, client: and mesh:"
            self.send_error(connection, text, ErrorCode.RESERVED_TYPE, ack=message.ack)

    def _take_answer(self, connection: Connection, message: Message) -> None:
        """A client answers a ``call``: wake the handler that waits, ahead of everything in the inbox."""
        try:
            if not conversation.take_answer(connection, message):
                self.counters["late_answers"] += 1
        except BadMessage as error:
            self._refuse(connection, error.message)

    def _confirm(self, connection: Connection, message: Message) -> None:
        """A client says how many messages of its session it has."""
        try:
            self.sessions.confirm(connection, message.payload)
        except BadMessage as error:
            self._refuse(connection, error.message, message.ack)

    def _cancel(self, connection: Connection, message: Message) -> None:
        """A client wants no more of a streamed answer, or never to begin with it."""
        ack = message.payload.get("ack") if isinstance(message.payload, dict) else None
        if not isinstance(ack, (str, int)) or isinstance(ack, bool):
            self._refuse(connection, 'a cancellation is {"ack": id} with the id of what was asked', message.ack)
            return
        for index, (waiting, *_) in enumerate(connection.inbox):
            if waiting.ack == ack:
                connection.dequeue(index)
                self.resume_if_room(connection)
                self.send_error(connection, "cancelled", ErrorCode.CANCELLED, ack=ack)
                return
        if not self._user.cancel(connection, ack):
            self.counters["late_cancellations"] += 1

    def _greet(self, connection: Connection, message: Message) -> None:
        """A client says hello: welcome it, and begin or resume a session if it asks for one."""
        try:
            wish = read_wish(message.payload)
        except BadMessage as error:
            self._refuse(connection, error.message, message.ack)
            return
        if wish is not None and connection.line is None:
            self.sessions.greet(connection, wish, message.ack)
            return
        welcome = self.outbound({"type": "system:welcome", "payload": self.welcome(connection, connection)})
        self.counters["sent"] += 1
        connection.outbox.put_apart(self._finished(welcome, connection.wire))
        self.acknowledge(connection, message.ack)

    def acknowledge(self, connection: Connection, ack: str | int | None) -> None:
        """Answer what has no result, if an answer was asked for."""
        if ack is not None:
            self.put(connection, self.outbound({"type": "system:ack", "payload": {"ack": ack}}))

    def welcome(self, client: Connection, carrier: Connection) -> dict[str, Any]:
        """Return what a client is told of itself and of what carries it."""
        limits, beat = self.limits, carrier.heartbeat
        return {
            "id": client.id,
            "version": VERSION_OF_WIRE,
            "codec": carrier.wire.codec.name,
            "heartbeat": {"interval": beat.interval, "timeout": beat.timeout} if beat else None,
            "limits": {
                "message_size": limits.message_size,
                "rooms_per_client": limits.rooms_per_client,
                "room_name": limits.room_name,
            },
        }

    # Delivery ----------------------------------------------------------------------------------------

    def outbound(
        self,
        message: Mapping[str, Any] | Message,
        options: DeliveryOptions = NO_OPTIONS,
        *,
        room: str | None = None,
        ack: str | int | None = None,
    ) -> Outbound:
        """Stamp a message with the time. Raises BadMessage, and TypeError for an unknown delivery option."""
        now = int(time.time() * 1000)
        if not options:
            return Outbound(message, now, room=room, ack=ack)
        delivery = delivery_from(options)
        ttl = delivery.ttl if delivery is not None else None
        expires = time.monotonic() + ttl if ttl is not None else None
        return Outbound(message, now, room=room, ack=ack, delivery=delivery, expires=expires)

    def put(self, connection: Connection, outbound: Outbound) -> None:
        """Put into one outbox without waiting: where it does not fit, its policy decides.

        :raises MessageTooBig, BadMessage: it cannot be sent.
        """
        frame = self._finished(outbound, connection.wire)
        if connection.outbox.put(frame):
            self.counters["sent"] += 1

    def send_error(
        self,
        connection: Connection,
        message: str,
        code: str,
        *,
        ack: str | int | None = None,
        details: str | None = None,
    ) -> None:
        """Answer with ``system:error`` without waiting."""
        payload: dict[str, Any] = {"message": _printable(message), "code": _printable(code)}
        if ack is not None:
            payload["ack"] = ack
        if details is not None:
            payload["details"] = _printable(details)
        if not connection.closed:
            self.put(connection, self.outbound({"type": "system:error", "payload": payload}))

    def _finished(self, outbound: Outbound, wire: Wire) -> bytes:
        """Return the frame for a wire. Raises MessageTooBig, BadMessage."""
        frame = outbound.finished(wire)
        if len(frame) > self.limits.outbox:
            raise MessageTooBig(
                f"a message of {len(frame)} bytes does not fit into an outbox of {self.limits.outbox} (Limits.outbox)"
            )
        return frame

    def _check_for_all(self, outbound: Outbound) -> None:
        """Raise MessageTooBig, BadMessage unless every client here can be sent a message, and a cursor with it."""
        for codec in self._codecs:
            size = len(outbound.encoded(codec)) + FRAME_ROOM
            if size > self.limits.outbox:
                text = f"a message of {size} bytes as {codec.name} does not fit into an outbox of {self.limits.outbox}"
                raise MessageTooBig(f"{text} (Limits.outbox)")

    def deliver(self, connection: Connection, outbound: Outbound, *, patience: float | None = None) -> None:
        """Send to one client. Parks while its outbox is crowded, at most ``patience`` seconds: switches.

        A message that may be dropped does not park.

        :param patience: ``Limits.park_timeout`` if not given.
        :raises ConnectionClosed: the client has gone.
        :raises MessageTooBig: larger than the whole outbox.
        :raises BadMessage: the payload cannot be encoded.
        """
        if connection.closed:
            raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
        outbox = connection.outbox
        frame = self._finished(outbound, connection.wire)
        if not outbox.has_room(len(frame)) and not outbound.may_drop:
            outbox.wait_for_room(self.limits.park_timeout if patience is None else patience, len(frame))
            if connection.closed:
                raise ConnectionClosed(CloseCode.ABNORMAL, "the client has disconnected")
        if outbox.put(frame):
            self.counters["sent"] += 1

    def _deliver_to_full(
        self, full: list[tuple[Outbox, bytes]], deadline: float, waits_for: Callable[[Outbox], bool]
    ) -> int:
        """Put a frame where it does not fit now: wait for room, until ``deadline`` for all together, then put."""
        delivered = 0
        for outbox, frame in full:
            if waits_for(outbox):
                outbox.wait_for_room(deadline - time.perf_counter(), len(frame))
            delivered += outbox.put(frame)
        return delivered

    def deliver_to(
        self,
        client_ids: Iterable[str],
        outbound: Outbound,
        skip: Collection[str] = (),
        *,
        waits_for: Callable[[Outbox], bool] = _always,
    ) -> int:
        """Put one message into many outboxes; return to how many clients it went.

        Where members are above the high-water mark the caller stalls, at most ``Limits.stall`` in all, so
        that a fast publisher cannot cut healthy members off: only then, and for no volatile message, does this
        switch.

        :param waits_for: tells of an outbox that is above it whether to stall for it.
        :raises MessageTooBig: larger than a whole outbox, in the codec of one of them.
        :raises BadMessage: the payload cannot be encoded.
        """
        if len(self._codecs) > 1:  # all or nobody: what one codec cannot carry is found before anyone has it
            for codec in self._codecs:
                outbound.encoded(codec)
        connections = self.connections
        crowded: list[Outbox] = []
        full: list[tuple[Outbox, bytes]] = []
        wire = None
        frame = b""
        count = 0
        for client_id in tuple(client_ids):
            connection = connections.get(client_id)
            if connection is None or client_id in skip:
                continue
            if connection.wire is not wire:
                wire = connection.wire
                frame = self._finished(outbound, wire)
            outbox = connection.outbox
            if outbox.size + len(frame) > self.limits.outbox and not outbound.may_drop:
                full.append((outbox, frame))
                continue
            if outbox.put(frame):
                count += 1
            if outbox.size > outbox.park_at:
                crowded.append(outbox)
        crowded = [] if outbound.volatile else [outbox for outbox in crowded if waits_for(outbox)]
        if full or crowded:
            self.counters["stalls"] += 1
            deadline = time.perf_counter() + self.limits.stall  # for both kinds together
            count += self._deliver_to_full(full, deadline, waits_for)
            stall(crowded, deadline - time.perf_counter())
        self.counters["sent"] += count
        return count


def _printable(text: str) -> str:
    """Return ``text`` without what UTF-8 cannot carry: an exception's text may hold anything."""
    return text.encode(errors="backslashreplace").decode()
