"""The hub: every connection, what comes in from it, and delivery to it.

Transports hand clients over with ``connect``, ``receive`` and ``disconnect``. Here the protocol's own messages are
answered, answers to ``call`` and ``wait_for`` let past the waiting ones. How messages wait until they are handled is
in ``realtime.inboxes``, how they are delivered in ``realtime.outgoing``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import gevent

from realtime import conversation
from realtime.cluster import Alone, Cluster
from realtime.codes import CloseCode, ErrorCode
from realtime.config import Limits
from realtime.connection import Connection, Context
from realtime.errors import BadMessage, ConfigurationError, ConnectionClosed, NotRunning
from realtime.events import CLIENT_CONNECTED, CLIENT_DISCONNECTED, REQUESTS, is_reserved
from realtime.flusher import Flusher
from realtime.history import History
from realtime.inboxes import HubUser, Inboxes
from realtime.live_presence import LivePresence
from realtime.message import MSGPACK, Message, Wire
from realtime.outbox import Outbox
from realtime.presence import PresenceStore
from realtime.presence_diff import key_of
from realtime.rooms import RoomManager
from realtime.session_wire import read_wish
from realtime.sessions import Sessions
from realtime.workers import Workers

__all__ = ["Hub"]

VERSION_OF_WIRE = 1


class Hub(Inboxes):
    """Every connection, from its coming to its end. Belongs to one thread; everything here runs in its event loop."""

    def __init__(self, limits: Limits, user: HubUser) -> None:
        super().__init__(limits, user)
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
            deliver=lambda room, messages: self.deliver_all(self.rooms.each_member(room), messages),
            has_msgpack=lambda: MSGPACK in self._codecs,
            lost=self._send_back,
            check=self._check_for_all,
        )
        self.sessions = Sessions(self)
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
