"""A TCP proxy in front of a server, whose connections can be cut at any byte, for both sides or for one."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import gevent
import gevent.socket
from gevent.pool import Group
from gevent.server import StreamServer

__all__ = ["CuttingProxy"]

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class _Way:
    """One client's way to the server and back."""

    def __init__(self, client: gevent.socket.socket, server: gevent.socket.socket) -> None:
        self.client = client
        self.server = server
        self.pumps: list[gevent.Greenlet[..., None]] = []
        self.silent = False
        """Nothing passes any more, and the server is not told."""
        self.lost = False
        """Nothing passes any more, and nobody is told."""

    def close(self) -> None:
        """End it on both sides, or on the client's if it is silent; with RST where that was asked for."""
        gevent.killall(self.pumps)  # before their sockets: libev does not take descriptors that are closed
        self.client.close()
        if not self.silent:
            self.server.close()


class CuttingProxy:
    """Use as a context manager; ``port`` is where clients connect.

    :param port: tells where the server listens, for each connection.
    """

    def __init__(self, port: Callable[[], int], *, seed: int = 0) -> None:
        self._target = port
        self._random = random.Random(seed)
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._pumps = Group()
        self._ways: list[_Way] = []
        self._refusing = False

    def __enter__(self) -> CuttingProxy:
        self._server.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.stop(0)
        self._pumps.kill()
        for way in self._ways:
            way.silent = False
            way.close()

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def cut(self, *, silently: bool = False) -> None:
        """Reset every connection, within a message perhaps.

        :param silently: for the clients alone; the server goes on believing that they are there.
        """
        for way in self._ways[:]:
            if way.silent:
                continue
            way.silent = silently
            if not silently:
                self._ways.remove(way)
                _reset_on_close(way.server)
            _reset_on_close(way.client)
            way.close()

    def fall_silent(self) -> None:
        """Pass nothing more on for those that are connected, and tell neither side."""
        for way in self._ways:
            way.lost = True

    def refuse(self, refusing: bool) -> None:
        """Let nobody connect; or everybody again."""
        self._refusing = refusing

    def _serve(self, client: gevent.socket.socket, address: object) -> None:
        if self._refusing:
            client.close()
            return
        try:
            server = gevent.socket.create_connection(("127.0.0.1", self._target()))
        except OSError:
            client.close()
            return
        way = _Way(client, server)
        self._ways.append(way)
        way.pumps = [self._pumps.spawn(self._pump, way, *ends) for ends in ((client, server), (server, client))]
        try:
            gevent.joinall(way.pumps)
        finally:
            way.close()

    def _pump(self, way: _Way, source: gevent.socket.socket, target: gevent.socket.socket) -> None:
        """Pass bytes on, in pieces that end anywhere."""
        try:
            while data := source.recv(self._random.choice((7, 100, 5000, 65536))):
                if not way.lost:
                    target.sendall(data)
            target.shutdown(gevent.socket.SHUT_WR)
        except OSError:
            pass


def _reset_on_close(sock: gevent.socket.socket) -> None:
    try:
        sock.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_LINGER, _RESET)
    except OSError:
        pass  # closed already
