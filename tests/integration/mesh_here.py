"""Nodes in this process, and strangers that speak the mesh's protocol as far as a test wants them to."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gevent
import gevent.socket
import gevent.subprocess

from realtime import (
    Limits,
    MeshOptions,
    Message,
    PeerMeshTransport,
    RealtimeKernel,
)
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_bodies import Event as EventBody
from realtime.protocols.mesh_bodies import encode
from realtime.protocols.mesh_frames import data_header, resume_frame
from realtime.protocols.mesh_handshake import ByeReceived, Hello, LinkEvent, Role

T = TypeVar("T")

PATIENCE = 60.0  # seconds any wait may take before the test fails
ROOT = Path(__file__).parents[2]
# a handshake takes no time, but this process may be held up in the middle of one
QUICK = MeshOptions(ping=0.05, suspect=5.0, down=10.0, backoff=0.05, backoff_max=0.1, authentication=PATIENCE)
LIMITS_OF_CALLS = Limits(inbox=8, ack_timeout=20.0)
HASTY = MeshOptions(ping=0.05, suspect=0.3, down=0.8, backoff=0.05, backoff_max=0.1, authentication=PATIENCE)


def until(condition: Callable[[], T], what: str) -> T:
    """Wait for a state that nothing announces; return what the condition returned."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.005)
    return found


class Node:
    """A kernel with nothing but a mesh, and what its handlers were given, in order."""

    def __init__(self, node_id: str | None, limits: Limits | None, log_level: str, **options: Any) -> None:
        options.setdefault("options", QUICK)
        self.mesh = PeerMeshTransport(options.pop("port", 0), node_id=node_id, **options)
        self.kernel = RealtimeKernel(transports=[self.mesh], log_level=log_level, limits=limits)
        self.seen: list[tuple[str, str, Any]] = []
        for event in ("mesh:joined", "mesh:left", "mesh:test"):
            self.kernel.on(event, self._note)

    def _note(self, message: Message, context: Any, toolkit: Any) -> None:
        assert context.transport == "mesh"
        self.seen.append((message.type, context.id, message.payload))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"

    @property
    def counters(self) -> Counter[str]:
        return Counter(self.mesh.stats()["counters"])

    def ids(self) -> list[str]:
        return [node.id for node in self.mesh.nodes()]

    def payloads(self, event: str, node: str) -> list[Any]:
        return [payload for name, id_, payload in self.seen if (name, id_) == (event, node)]

    def wait_for(self, event: str, node: str, count: int = 1) -> Any:
        """Wait until ``count`` such events were handled; return the last one's payload."""
        until(lambda: len(self.payloads(event, node)) >= count, f"{count} {event} of {node}; seen: {self.seen[-9:]}")
        return self.payloads(event, node)[count - 1]


Start = Callable[..., Node]


@contextmanager
def starting() -> Iterator[Start]:
    """Start nodes that are stopped at the end of a ``with`` block."""
    nodes: list[Node] = []

    def start_one(
        node_id: str | None = None, *, limits: Limits | None = None, log_level: str = "critical", **options: Any
    ) -> Node:
        node = Node(node_id, limits, log_level, **options)
        nodes.append(node)
        node.kernel.start()
        return node

    yield start_one
    for node in nodes:
        node.kernel.stop()


class Stranger:
    """A peer that speaks the protocol only as far as a test wants it to."""

    said = 0  # frames in the sequence

    def __init__(self, node: Node, node_id: str = "zoe", *, instance: bytes = b"z" * 16, secret: bytes = b"") -> None:
        self.sock = gevent.socket.create_connection(("127.0.0.1", node.mesh.port), timeout=PATIENCE)
        hello = Hello(node_id, node.mesh.cluster, instance, os.urandom(16))
        self.protocol = MeshProtocol(Role.DIALLER, hello, secret=secret, message_size=1 << 20)
        self.events: list[LinkEvent] = []

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *args: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hear(self, done: Callable[[], object]) -> bool:
        """Talk until ``done`` or the end of the connection; return whether it is done."""
        while not done():
            self.sock.sendall(self.protocol.data_to_send())
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return bool(done())
            self.protocol.receive_data(data)
            while (event := self.protocol.next_event()) is not None:
                self.events.append(event)
                if self.protocol.state is State.DECIDING:
                    self.protocol.start()
        self.sock.sendall(self.protocol.data_to_send())
        return True

    def open(self) -> Stranger:
        assert self.hear(lambda: self.protocol.state is State.OPEN), self.events
        return self

    def resume(self) -> Stranger:
        """Open the session, as one that has heard nothing yet."""
        self.send(resume_frame(7, 0, 0, False))
        return self

    def tell(self, *bodies: bytes) -> None:
        """Send events."""
        for body in bodies:
            packed = encode(EventBody(body))
            self.said += 1
            self.send(data_header(self.said, 0, len(packed)) + packed)

    def hear_bye(self) -> str:
        """Wait for the end; return the reason the node gave."""
        self.hear(lambda: any(isinstance(event, ByeReceived) for event in self.events))
        [bye] = [event for event in self.events if isinstance(event, ByeReceived)]
        return bye.reason


def drain(sock: gevent.socket.socket) -> bytes:
    """Read until the other side has closed the connection."""
    received = b""
    with gevent.Timeout(PATIENCE):
        while True:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data


def dials_within(seconds: float, node: Node) -> int:
    """Return how often a node tries to connect within the next seconds."""
    before = node.counters["dials"]
    gevent.sleep(seconds)
    return node.counters["dials"] - before
