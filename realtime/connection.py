"""One client as the hub sees it, whatever transport it came by."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from realtime.config import Heartbeat
from realtime.message import JSON, Message, Wire

if TYPE_CHECKING:
    from realtime.conversation import Answer, Waiter
    from realtime.dispatch import Stream
    from realtime.outbox import Outbox
    from realtime.session_line import Line

__all__ = ["Admission", "Connection", "Context", "RemoteClient", "next_arrival"]

PLAIN_JSON = Wire(JSON, bytes, bytes)
_NOTHING_WAITS: deque[tuple[Message, int, int]] = deque(maxlen=0)  # shared by idle connections: a deque takes 600 bytes


next_arrival = itertools.count(1).__next__
"""Numbers all messages in the order they arrived at this process."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What ``authenticate`` returns to have handlers see more of the handshake than the identity.

    Nothing is kept otherwise: a browser's request head takes more memory than the rest of an idle connection.
    """

    identity: Any
    """Shown as ``context.identity``."""

    handshake: Any
    """Shown as ``context.handshake`` for as long as the connection lives, such as the request itself."""


class Context:
    """What a handler may know of the client it serves; lives as long as the connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection | RemoteClient) -> None:
        self._connection = connection

    @property
    def id(self) -> str:
        """The client's id, unique among all clients of the cluster."""
        return self._connection.id

    @property
    def transport(self) -> str:
        """The name of the transport it came by: ``"websocket"``, ``"memory"``, ..."""
        return self._connection.transport

    @property
    def metadata(self) -> dict[str, Any]:
        """What presence shows of this client; change it with ``toolkit.presence.update``."""
        return self._connection.metadata

    @property
    def connected_at(self) -> float:
        """Seconds since the epoch."""
        return self._connection.connected_at

    @property
    def rooms(self) -> list[str]:
        """The rooms it is in; in ``client:disconnected`` the rooms it was in."""
        return self._connection.current_rooms()

    @property
    def identity(self) -> Any:
        """What ``authenticate`` returned for it; None without."""
        return self._connection.identity

    @property
    def handshake(self) -> Any:
        """What ``authenticate`` kept of its handshake by returning an ``Admission``; None otherwise."""
        return self._connection.handshake

    @property
    def remote_address(self) -> Any:
        """Its IP address as text; None where the transport has none."""
        return self._connection.remote_address

    def __repr__(self) -> str:
        return f"<Context {self.transport} client {self.id}>"


class RemoteClient:
    """A client of another node, as far as presence tells: what the filter of a broadcast looks at.

    :param entry: its entry in presence.
    """

    transport = "mesh"
    identity = None
    handshake = None
    remote_address = None

    def __init__(self, entry: dict[str, Any]) -> None:
        self.id: str = entry["id"]
        self.metadata: dict[str, Any] = entry["metadata"]
        self.connected_at: float = entry["connected_at"]
        self._rooms: list[str] = entry["rooms"]
        self.context = Context(self)

    def current_rooms(self) -> list[str]:
        """Return the rooms it is in."""
        return self._rooms


class Connection(ABC):
    """One client of a transport. A transport of one's own implements ``transmit`` and ``end``.

    :param wire: codec and framing of this connection; JSON payloads as they are if not given.
    :param identity: what authentication found; shown as ``context.identity``. Or an ``Admission``.
    :param remote_address: its IP address as text, or None.
    :param metadata: initial presence metadata.
    """

    __slots__ = (
        "_rooms_for",
        "answers",
        "busy",
        "calls",
        "closed",
        "concurrent",
        "connected_at",
        "context",
        "departed",
        "end_code",
        "greeting",
        "handshake",
        "id",
        "identity",
        "inbox",
        "inbox_bytes",
        "last_rooms",
        "leaving",
        "line",
        "metadata",
        "outbox",
        "paused",
        "remote_address",
        "streams",
        "waiters",
        "wire",
    )

    transport = "custom"
    """The transport's name, shown as ``context.transport``."""
    heartbeat: Heartbeat | None = None
    """Told to clients in ``system:welcome``."""

    outbox: Outbox
    """Where messages for this client go. Given by the hub on connect, unless the transport brought its own; once
    another connection has resumed the client's session it is that one's."""

    def __init__(
        self,
        *,
        wire: Wire = PLAIN_JSON,
        identity: Any = None,
        remote_address: Any = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.id = uuid4().hex
        self.wire = wire
        admission = identity if isinstance(identity, Admission) else Admission(identity, None)
        self.identity = admission.identity
        self.handshake = admission.handshake
        self.remote_address = remote_address
        self.metadata: dict[str, Any] = metadata if metadata is not None else {}
        self.connected_at = time.time()
        self.context = Context(self)
        # what follows belongs to the hub
        self.inbox: deque[tuple[Message, int, int]] = _NOTHING_WAITS  # with the bytes each came in, and its arrival
        self.inbox_bytes = 0
        self.busy = False  # a worker has this connection's inbox, or will
        self.paused = False  # reading stopped because the inbox is full
        self.closed = False
        self.departed = False  # its session goes on at another node
        self.greeting = False  # client:connected has not been handled yet
        self.leaving = False  # its transport knows that only what a socket holds can still come
        self.concurrent = 0  # handlers running beside the inbox
        self.waiters: list[Waiter] | None = None
        self.calls: dict[int, Answer] | None = None
        self.streams: dict[str | int, Stream] | None = None  # under way, by ack
        self.answers = 0  # ids given to calls so far
        self.last_rooms: Sequence[str] | None = None
        self.end_code = 0  # the close code, once it is closed
        self.line: Line | None = None  # what this connection is to a session
        self._rooms_for: Any = None

    def current_rooms(self) -> list[str]:
        """Return the rooms this client is in; once disconnected, those it was in."""
        if self.last_rooms is not None:
            return list(self.last_rooms)
        return list(self._rooms_for(self.id)) if self._rooms_for is not None else []

    def enqueue(self, message: Message, size: int) -> None:
        """Append to the inbox a message that came in ``size`` bytes."""
        if self.inbox is _NOTHING_WAITS:
            self.inbox = deque()
        self.inbox.append((message, size, next_arrival()))
        self.inbox_bytes += size

    def dequeue(self, index: int = 0) -> Message:
        """Take a message out of the inbox, the first if not told otherwise."""
        message, size, _ = self.inbox.popleft() if index == 0 else self.inbox[index]
        if index:
            del self.inbox[index]
        self.inbox_bytes -= size
        return message

    @property
    def is_awaited(self) -> bool:
        """Whether a handler is parked until this client sends something: then reading must go on."""
        return bool(self.waiters or self.calls)

    @property
    def client(self) -> Connection:
        """The client that this connection carries: itself, unless it resumed the session of another."""
        return self if self.line is None else self.line.session.client

    @property
    def carrier(self) -> Connection | None:
        """What carries this client: itself, another connection that resumed its session, or None for the moment."""
        return self if self.line is None else self.line.session.line.connection

    def pause(self) -> None:
        """Have no more read from this client."""
        self.paused = True
        carrier = self.carrier
        if carrier is not None:
            carrier.pause_reading()

    def resume(self) -> None:
        """Have it read again."""
        self.paused = False
        carrier = self.carrier
        if carrier is not None:
            carrier.resume_reading()

    # What a transport implements -----------------------------------------------------------------

    @abstractmethod
    def transmit(self, frame: bytes) -> None:
        """Send one finished frame. Called in the event loop: must not wait; raise OSError if broken."""

    @abstractmethod
    def end(self, code: int, reason: str) -> None:
        """Close the client's connection, after what waits in the outbox. Must not wait.

        The transport then tells ``hub.disconnect``, now or when the other side has answered.
        """

    def pause_reading(self) -> None:
        """The inbox is full: read no more until ``resume_reading``. Optional; without it the next
        messages past ``Limits.inbox_while_waiting`` are refused."""

    def resume_reading(self) -> None:
        """There is room in the inbox again."""

    # What an outbox needs of its sink; transports with partial writes override these ----------------

    def write(self, frames: list[bytes]) -> int:
        """Transmit every frame; return the bytes taken."""
        taken = 0
        for frame in frames:
            self.transmit(frame)
            taken += len(frame)
        return taken

    def watch_writable(self) -> None:
        """Never called where ``write`` takes everything."""

    def finished(self) -> None:
        """Nothing more will be written."""

    def broken(self, error: OSError) -> None:
        """A write failed: end the connection."""
        self.end(1006, str(error))

    def overflowed(self) -> None:
        """The client is too slow: end the connection with 4008."""
        self.end(4008, "slow consumer")
