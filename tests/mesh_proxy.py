"""Loopback as a network of nodes: each is reached through a proxy that holds back, or counts, what passes.

What a node says first on a connection tells who it is, so that one direction of one link can be held: it is read no
more, as of a TCP connection whose packets are lost, and goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gevent
import gevent.socket
import msgpack
from gevent.event import Event
from gevent.pool import Group
from gevent.server import StreamServer

from realtime.protocols.mesh_frames import Kind

__all__ = ["LoopbackNetwork"]

_BODIES = (Kind.DATA, Kind.NEWS)  # kinds of frames that announce bytes as their last field


@dataclass
class _Pipe:
    """One direction of one connection."""

    sender: str
    receiver: str
    open: Event = field(default_factory=Event)
    frames: list[bytes] = field(default_factory=list)
    """The bodies of data frames that passed."""


class _Frames:
    """Reads the frames of a stream without TLS, with nothing of ours but the numbers of two kinds."""

    def __init__(self, found: list[bytes]) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=1 << 26)
        self._found = found
        self._missing = 0
        self._body = b""
        self._is_data = False

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        self._unpacker.feed(data)
        while self._take_body() and (frame := next(self._unpacker, None)) is not None:
            if frame[0] in _BODIES:
                self._missing, self._body, self._is_data = frame[-1], b"", frame[0] == Kind.DATA

    def _take_body(self) -> bool:
        if not self._missing:
            return True
        piece = self._unpacker.read_bytes(self._missing)
        self._body += piece
        self._missing -= len(piece)
        if self._missing:
            return False
        if self._is_data:
            self._found.append(self._body)
        return True


class LoopbackNetwork:
    """Proxies in front of nodes, and which directions between them are cut. Close it."""

    def __init__(self) -> None:
        self._servers: list[StreamServer] = []
        self._pipes: list[_Pipe] = []
        self._cut: set[tuple[str, str]] = set()
        self._pumps = Group()
        self._sockets: set[gevent.socket.socket] = set()

    def in_front_of(self, node: str, port: Callable[[], int]) -> str:
        """Return the address of a proxy before a node.

        :param port: tells where the node listens, once it is connected to.
        """

        def serve(client: gevent.socket.socket, address: object) -> None:
            self._serve(client, node, port())

        server = StreamServer(("127.0.0.1", 0), serve)
        server.start()
        self._servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    def cut(self, sender: str, receiver: str) -> None:
        """Let nothing pass from one node to another any more. ``"*"`` is any node."""
        self._cut.add((sender, receiver))
        self._update()

    def heal(self) -> None:
        """Let everything pass, also what was held."""
        self._cut.clear()
        self._update()

    def break_all(self) -> None:
        """End every connection, with whatever is on its way."""
        for sock in tuple(self._sockets):
            _end(sock)

    def frames(self, sender: str, receiver: str) -> list[bytes]:
        """Return the bodies of the data frames that one node has sent to another, over all their links."""
        return [
            body for pipe in self._pipes if (pipe.sender, pipe.receiver) == (sender, receiver) for body in pipe.frames
        ]

    def close(self) -> None:
        """End everything."""
        for server in self._servers:
            server.stop(0)
        self._pumps.kill()

    def _is_open(self, pipe: _Pipe) -> bool:
        ways = {(sender, receiver) for sender in (pipe.sender, "*") for receiver in (pipe.receiver, "*")}
        return self._cut.isdisjoint(ways)

    def _update(self) -> None:
        for pipe in self._pipes:
            if self._is_open(pipe):
                pipe.open.set()
            else:
                pipe.open.clear()

    def _serve(self, client: gevent.socket.socket, node: str, port: int) -> None:
        with client:
            first, hello = _hello_of(client)
            if hello is None:
                return
            dialler = hello[3]
            there, back = _Pipe(dialler, node), _Pipe(node, dialler)
            self._pipes += (there, back)
            self._update()
            try:
                server = gevent.socket.create_connection(("127.0.0.1", port))
            except OSError:
                return
            with server:
                self._sockets |= {client, server}
                pumps = [
                    self._pumps.spawn(self._pump, client, server, there, first),
                    self._pumps.spawn(self._pump, server, client, back, b""),
                ]
                try:
                    gevent.joinall(pumps)
                finally:
                    self._sockets -= {client, server}
                    gevent.killall(pumps)

    @staticmethod
    def _pump(source: gevent.socket.socket, target: gevent.socket.socket, pipe: _Pipe, data: bytes) -> None:
        """Pass bytes on while the pipe is open; the end as well."""
        frames = _Frames(pipe.frames)
        try:
            while True:
                pipe.open.wait()
                if data:
                    frames.feed(data)  # first: who has received a message finds it among those that passed
                    target.sendall(data)
                data = source.recv(65536)
                if not data:
                    pipe.open.wait()
                    target.shutdown(gevent.socket.SHUT_WR)
                    return
        except OSError:
            for sock in (source, target):  # the other direction ends with this one
                _end(sock)


def _hello_of(client: gevent.socket.socket) -> tuple[bytes, Any]:
    """Return what came with the first frame, and the frame; None if it ends before."""
    unpacker, came = msgpack.Unpacker(), b""
    while data := client.recv(65536):
        came += data
        unpacker.feed(data)
        if (frame := next(unpacker, None)) is not None:
            return came, frame
    return came, None


def _end(sock: gevent.socket.socket) -> None:
    try:
        sock.shutdown(gevent.socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended
