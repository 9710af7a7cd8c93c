"""Client connections of the load generator: opening many, and what is kept for each."""

from __future__ import annotations

import itertools
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.dialects import Dialect, OpeningFailed, request
from benchmarks.frames import CLOSE, client_frame

__all__ = ["Client", "Opener", "Target", "close_clients", "open_clients", "send_all"]

_NORMAL_CLOSE = client_frame((1000).to_bytes(2, "big"), CLOSE)
_IP_BIND_ADDRESS_NO_PORT = 24
_CONNECT_TIMEOUT = 10.0
_sources = itertools.cycle(f"127.0.0.{n}" for n in range(1, 201))


@dataclass(frozen=True)
class Target:
    """The server under load: one process, or several that serve as one."""

    pid: int
    port: int
    dialect: Dialect
    more_pids: tuple[int, ...] = ()
    """Further processes whose CPU time counts, whether or not clients connect to them."""
    more_ports: tuple[int, ...] = ()
    """Clients connect to these and ``port`` in turn."""

    @property
    def pids(self) -> tuple[int, ...]:
        """All its processes."""
        return (self.pid, *self.more_pids)

    @property
    def ports(self) -> tuple[int, ...]:
        """All its ports."""
        return (self.port, *self.more_ports)


class Client:
    """One connection. ``sent`` and ``received`` count the measurement's messages and deliveries."""

    __slots__ = ("fd", "received", "recv_into", "sent", "sock", "stage", "tail")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.recv_into = sock.recv_into
        self.tail = b""
        self.stage = 0
        self.sent = 0
        self.received = 0


def send_all(client: Client, data: bytes) -> None:
    """Send now. What is in flight is far smaller than a socket buffer, so waiting is an exception."""
    sent = client.sock.send(data)
    while sent < len(data):
        select.select((), (client.sock,), (), 5.0)
        sent += client.sock.send(data[sent:])


class Opener:
    """Opens sessions (TCP, upgrade, the dialect's greeting), several at a time; calls ``on_ready`` for each.

    Connections come from 200 loopback addresses, so that ports in TIME_WAIT do not run out.
    """

    def __init__(self, target: Target, on_ready: Callable[[Client], None]) -> None:
        self._target = target
        self._on_ready = on_ready
        self._request = request(target.dialect.path, f"127.0.0.1:{target.port}")
        self._ports = itertools.cycle(target.ports)
        self._epoll = select.epoll()
        self._opening: dict[int, Client] = {}
        self._closing: dict[int, Client] = {}

    def start(self) -> None:
        """Connect and send the request. A loopback connect is complete when it returns."""
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((next(_sources), 0))
        sock.settimeout(_CONNECT_TIMEOUT)
        sock.connect(("127.0.0.1", next(self._ports)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        client = Client(sock)
        sock.send(self._request)
        self._opening[client.fd] = client
        self._epoll.register(client.fd, select.EPOLLIN)

    def poll(self, timeout: float) -> None:
        """Take every session that has news one step further."""
        for fd, _ in self._epoll.poll(timeout):
            if fd in self._closing:
                self._finish_close(self._closing.pop(fd))
            else:
                self._step(self._opening[fd])

    def _step(self, client: Client) -> None:
        data = client.sock.recv(65536)
        if not data:
            raise OpeningFailed(f"the server hung up at stage {client.stage}")
        client.tail += data
        while client.stage >= 0 and client.tail:
            stage, reply, rest = self._target.dialect.open(client.stage, client.tail)
            if reply:
                client.sock.send(reply)
            if (stage, rest) == (client.stage, client.tail):
                return
            client.stage, client.tail = stage, rest
        if client.stage < 0:
            del self._opening[client.fd]
            self._epoll.unregister(client.fd)
            self._on_ready(client)

    def close_politely(self, client: Client) -> None:
        """Send a close frame, and close the socket once the server has answered or hung up."""
        client.sock.send(_NORMAL_CLOSE)
        self._closing[client.fd] = client
        self._epoll.register(client.fd, select.EPOLLIN)

    def _finish_close(self, client: Client) -> None:
        self._epoll.unregister(client.fd)
        client.sock.close()

    def stop(self) -> None:
        """Drop whatever is still opening or closing."""
        for client in (*self._opening.values(), *self._closing.values()):
            client.sock.close()
        self._epoll.close()


def open_clients(target: Target, count: int, *, at_once: int = 50, timeout: float = 60.0) -> list[Client]:
    """Open ``count`` sessions, ``at_once`` at a time: below every server's listen backlog.

    :raises OpeningFailed: if a server refuses one, or not all are open within ``timeout`` seconds.
    """
    ready: list[Client] = []
    opener = Opener(target, ready.append)
    deadline = time.monotonic() + timeout
    started = 0
    try:
        while len(ready) < count:
            while started < count and started - len(ready) < at_once:
                opener.start()
                started += 1
            opener.poll(1.0)
            if time.monotonic() > deadline:
                raise OpeningFailed(f"{len(ready)} of {count} sessions open after {timeout:.0f} s")
    except BaseException:
        close_clients(ready)
        raise
    finally:
        opener.stop()
    return ready


def close_clients(clients: list[Client]) -> None:
    """Say goodbye on every connection and close it, without waiting for answers."""
    for client in clients:
        with suppress(OSError):  # the server may have been first
            client.sock.send(_NORMAL_CLOSE)
        client.sock.close()
