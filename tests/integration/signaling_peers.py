"""Clients of the signaling bridge: the ``websockets`` library, which shares no code with us."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import gevent
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_websocket

from realtime import Limits, RealtimeKernel, WebRTCSignalingBridge, WebSocketTransport

__all__ = [
    "ANSWER",
    "CANDIDATE",
    "OFFER",
    "PATIENCE",
    "SDP",
    "Connect",
    "InThread",
    "Peer",
    "connecting",
    "serve",
    "stats_of",
    "wait_until",
]

PATIENCE = 60.0
SDP = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"
OFFER = {"type": "offer", "sdp": SDP}
ANSWER = {"type": "answer", "sdp": SDP}
CANDIDATE = {
    "candidate": "candidate:1 1 udp 2122260223 10.0.0.7 54321 typ host",
    "sdpMid": "0",
    "sdpMLineIndex": 0,
}

R = TypeVar("R")


class InThread(Protocol):
    def __call__(self, function: Callable[..., R], *args: Any, **kwargs: Any) -> R: ...


class Peer:
    """A client: the ``websockets`` library in native threads, driven from a greenlet."""

    def __init__(self, url: str, in_thread: InThread) -> None:
        self._in_thread = in_thread
        options: dict[str, Any] = {"proxy": None, "open_timeout": PATIENCE, "close_timeout": PATIENCE}
        # entered by hand, as a with-statement would: it lives from one call in a thread to the next
        self.socket: ClientConnection = in_thread(lambda: open_websocket(url, **options).__enter__())
        self.send("system:hello")
        self.id: str = self.receive("system:welcome")["payload"]["id"]

    def send(self, event: str, payload: Any = None, **fields: Any) -> None:
        self.send_all([{"type": event, "payload": payload, **fields}])

    def send_all(self, messages: list[dict[str, Any]]) -> None:
        """Send as fast as the socket takes it."""

        def burst() -> None:
            for message in messages:
                self.socket.send(json.dumps(message))

        self._in_thread(burst)

    def receive(self, event: str) -> dict[str, Any]:
        """Return the next message, which must be of this type."""
        message = json.loads(self._in_thread(self.socket.recv, PATIENCE))
        assert message["type"] == event, message
        return dict(message)

    def refused(self, event: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        """Send a signal; return the payload of the bridge's error."""
        self.send(event, payload, **fields)
        error: dict[str, Any] = self.receive(f"{event.partition(':')[0]}:error")["payload"]
        assert error["event"] == event
        assert isinstance(error.pop("message"), str)
        return error

    def join(self, room: str) -> None:
        """Enter a room of the kernel, through the handler of ``serve``."""
        self.send("join", room=room, ack="join")
        self.receive("system:ack")

    def join_call(self, room: str, **payload: Any) -> dict[str, Any]:
        """Enter a call; return the payload of ``webrtc:peers``."""
        self.send("webrtc:join", {"room": room, **payload})
        return dict(self.receive("webrtc:peers")["payload"])

    def expect_nothing(self) -> None:
        """Check that nothing has come before the answer to what is asked now."""
        self.send("join", room="nothing before this", ack="nothing")
        assert self.receive("system:ack")["payload"]["ack"] == "nothing"

    def drop(self) -> None:
        """Lose the connection: no close frame."""
        self.socket.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._in_thread(self.socket.__exit__, None, None, None)


Connect = Callable[[RealtimeKernel], Peer]


def serve(*bridges: WebRTCSignalingBridge, limits: Limits | None = None) -> RealtimeKernel:
    """Return a kernel that is not started, with bridges and a way to join rooms."""
    transport = WebSocketTransport(port=0, path="/realtime")
    kernel = RealtimeKernel([transport], log_level="warning", limits=limits)
    for bridge in bridges:
        assert bridge.attach(kernel) is bridge

    @kernel.on("join")
    def join(message: Any, context: Any, toolkit: Any) -> None:
        toolkit.rooms.join(message.room)

    return kernel


@contextmanager
def connecting(in_thread: InThread) -> Iterator[Connect]:
    """Connect clients to a kernel, which is started for the first; all is stopped at the end."""
    kernels: list[RealtimeKernel] = []
    peers: list[Peer] = []

    def connect_one(kernel: RealtimeKernel) -> Peer:
        if not kernel.running:
            kernels.append(kernel)
            kernel.start()
        (transport,) = kernel.transports
        assert isinstance(transport, WebSocketTransport)
        peers.append(Peer(transport.url, in_thread))
        return peers[-1]

    yield connect_one
    for peer in peers:
        peer.close()
    for kernel in kernels:
        kernel.stop()


def wait_until(done: Callable[[], bool]) -> None:
    with gevent.Timeout(PATIENCE):
        while not done():
            gevent.sleep(0.001)


def stats_of(kernel: RealtimeKernel) -> dict[str, Any]:
    """Return what the only bridge of a kernel counts."""
    (stats,) = kernel.stats()["services"]
    return dict(stats)
