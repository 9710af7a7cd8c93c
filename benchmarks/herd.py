"""A thundering herd: many clients that connect in the same moment, anew or back to where they were."""

from __future__ import annotations

import itertools
import json
import select
import socket
import struct
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

from benchmarks.clients import Target
from benchmarks.dialects import request
from benchmarks.frames import TEXT, client_frame, walk

__all__ = ["Back", "Visitor", "arrive", "cut", "p99", "publish", "subscribe"]

ROOM = "kept:herd"
MISSED = 10
"""Messages that each missed while it was away."""
PATIENCE = 60.0
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST
_BIND_ADDRESS_NO_PORT = 24
_sources = itertools.cycle(f"127.0.0.{number}" for number in range(1, 201))


class Back(Enum):
    """How clients come back."""

    RESET = "with their tokens, after a reset"
    SILENT = "with their tokens, the old connections look alive"
    CURSOR = "without sessions, by the cursors of their room"


class HerdFailed(Exception):
    """Somebody was not served, or not as it was asked for."""


class Visitor:
    """One client: what it holds of the connection before, and how far it is with this one."""

    def __init__(self) -> None:
        self.token = ""
        self.received = 0
        self.cursor = ""
        self.sock: socket.socket | None = None
        self.old: socket.socket | None = None
        self.data = b""
        self.asks = b""
        self.upgraded = False
        self.began = 0.0

    def asks_for(self, back: Back | None) -> None:
        """Decide what to say once the connection is there."""
        wish: object = True
        if back in (Back.RESET, Back.SILENT):
            wish = {"token": self.token, "received": self.received}
        elif back is Back.CURSOR:
            wish = False
        self.asks = _frame({"type": "system:hello", "payload": {"session": wish}})
        if back is None:
            self.asks += _frame({"type": "system:join", "room": ROOM, "ack": 1})
        elif back is Back.CURSOR:
            self.asks += _frame({"type": "system:join", "room": ROOM, "payload": {"since": self.cursor}, "ack": 1})

    def connect(self, port: int) -> int:
        """Begin; return the descriptor."""
        sock = self.sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
        sock.bind((next(_sources), 0))
        sock.setblocking(False)
        self.data, self.upgraded = b"", False
        self.began = time.perf_counter()
        sock.connect_ex(("127.0.0.1", port))
        return sock.fileno()

    def take(self, back: Back | None) -> bool:
        """Read; tell whether it is served: welcome, and in the room with all that was missed."""
        assert self.sock is not None
        self.data += self.sock.recv(1 << 16)
        if not self.upgraded:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return False
            if not self.data.startswith(b"HTTP/1.1 101"):
                raise HerdFailed(f"refused: {self.data[:100]!r}")
            self.upgraded, self.data = True, self.data[end + 4 :]
            self.sock.send(self.asks)
        if back is None or back is Back.CURSOR:
            if b'"system:ack"' not in self.data:
                return False
            return back is None or self.data.count(b'"type":"chat"') >= MISSED
        return b'"system:welcome"' in self.data and self.data.count(b'"type":"chat"') >= MISSED

    def learn(self, back: Back | None) -> None:
        """Read what was said, and check it: outside of what is measured."""
        numbers = []
        for _, payload, _ in walk(self.data):
            message = json.loads(payload)
            told = message.get("payload")
            if message["type"] == "system:welcome":
                session = told.get("session", {})
                if back is not Back.CURSOR:
                    self.token = session["token"]
                    if session["resumed"] is not (back is not None):
                        raise HerdFailed(f"the session: {session}")
                continue
            self.received += 1
            if message["type"] == "system:ack":
                if back is Back.CURSOR and told["result"]["recovered"] is not True:
                    raise HerdFailed(f"the room: {told}")
                self.cursor = told["result"]["cursor"]
            elif message["type"] == "chat":
                numbers.append(told)
                self.cursor = message["cursor"]
            else:
                raise HerdFailed(f"unexpected: {message}")
        if numbers != list(range(MISSED) if back is not None else ()):
            raise HerdFailed(f"missed {MISSED} messages, got {numbers}")
        if self.received and back in (Back.RESET, Back.SILENT):
            self.confirm()

    def confirm(self) -> None:
        """Tell the server what has come."""
        assert self.sock is not None
        self.sock.send(_frame({"type": "system:received", "payload": {"count": self.received}}))


def _frame(message: dict[str, object]) -> bytes:
    return client_frame(json.dumps(message, separators=(",", ":")).encode())


def arrive(target: Target, visitors: Sequence[Visitor], back: Back | None) -> array[float]:
    """All connect at once; return the seconds until each was served, from its own connect on."""
    for visitor in visitors:
        visitor.asks_for(back)
    epoll = select.epoll()
    by_fd: dict[int, Visitor] = {}
    wants = request(target.dialect.path, f"127.0.0.1:{target.port}")
    took = array("d")
    try:
        for visitor in visitors:
            fd = visitor.connect(target.port)
            by_fd[fd] = visitor
            epoll.register(fd, select.EPOLLOUT)
        deadline = time.perf_counter() + PATIENCE
        while by_fd:
            if time.perf_counter() > deadline:
                raise HerdFailed(f"{len(by_fd)} of {len(visitors)} were not served within {PATIENCE:.0f} s")
            for fd, event in epoll.poll(1.0):
                visitor = by_fd[fd]
                assert visitor.sock is not None
                if event & select.EPOLLOUT:
                    visitor.sock.send(wants)
                    epoll.modify(fd, select.EPOLLIN)
                elif visitor.take(back):
                    took.append(time.perf_counter() - visitor.began)
                    del by_fd[fd]
                    epoll.unregister(fd)
    finally:
        epoll.close()
    for visitor in visitors:
        visitor.learn(back)
        _close(visitor.old, reset=True)
        visitor.old = None
    return took


def cut(visitors: Sequence[Visitor], back: Back) -> None:
    """Everybody loses the connection; with ``SILENT`` the server is not told, and with ``CURSOR`` they leave."""
    for visitor in visitors:
        if back is Back.SILENT:
            visitor.old = visitor.sock
        else:
            _close(visitor.sock, reset=True)
        visitor.sock = None


def _close(sock: socket.socket | None, *, reset: bool) -> None:
    if sock is not None:
        with suppress(OSError):
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()


def subscribe(target: Target) -> socket.socket:
    """Return the connection of somebody who publishes and is no member."""
    sock = socket.create_connection(("127.0.0.1", target.port), PATIENCE)
    sock.sendall(request(target.dialect.path, f"127.0.0.1:{target.port}"))
    while not (data := sock.recv(4096)).endswith(b"\r\n\r\n"):
        if not data:
            raise HerdFailed("the publisher was refused")
    return sock


def publish(publisher: socket.socket) -> None:
    """Send what everybody misses, and wait until the server has it."""
    for number in range(MISSED):
        publisher.sendall(_frame({"type": "chat", "room": ROOM, "payload": number, "ack": number}))
    data = b""
    while data.count(b'"system:ack"') < MISSED:
        data += publisher.recv(1 << 16)
    if any(opcode != TEXT or b'"system:error"' in payload for opcode, payload, _ in walk(data)):
        raise HerdFailed(f"the publisher: {data[:300]!r}")


def p99(seconds: array[float]) -> float:
    """The 99th percentile, in milliseconds."""
    return sorted(seconds)[len(seconds) * 99 // 100] * 1000
