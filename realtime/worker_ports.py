"""The listening sockets of a pool: for each address one per slot, kept while its processes come and go.

The system gives each connection to one of the sockets that share the port (``SO_REUSEPORT``), where it waits until
the process of that slot accepts it. The pool holds the socket, so it waits on when that process ends. Where the next
one does not come the socket is withdrawn: the system gives nothing more to it, and resets what waits.
"""

from __future__ import annotations

import socket
from collections.abc import Collection

from realtime.errors import ConfigurationError
from realtime.transports.ports import open_port, require_free
from realtime.worker_channel import Wanted

__all__ = ["WorkerPorts"]

BACKLOG = 1024  # connections that wait in each slot, as in a Listener

_Address = tuple[str, int, int]


class WorkerPorts:
    """Opens the sockets, and closes those that nobody wants any more."""

    def __init__(self) -> None:
        self._sockets: dict[_Address, dict[int, socket.socket]] = {}
        self._closed = False

    def open(self, index: int, wanted: Wanted) -> socket.socket:
        """Return the socket of a slot: the one there is, or a new one. Blocks while a host name is resolved.

        :raises PortInUse, ConfigurationError: nobody can listen there, or the pool is stopping.
        """
        if self._closed:
            raise ConfigurationError("the pool is stopping")
        address = _address(wanted)
        by_slot = self._sockets.get(address, {})
        if index not in by_slot:
            port = next((_port_of(sock) for sock in by_slot.values()), wanted.port)
            if wanted.exclusive and not self._is_ours(port):
                require_free(wanted.host, port, resolve=socket.getaddrinfo)
            sock = open_port(wanted.host, port, backlog=BACKLOG, reuse_port=True, resolve=socket.getaddrinfo)
            self._sockets.setdefault(address, by_slot)[index] = sock
        return by_slot[index]

    def keep(self, index: int, wanted: Collection[Wanted]) -> None:
        """Close the sockets of a slot that are not among the wanted ones: new code listens elsewhere."""
        addresses = {_address(one) for one in wanted}
        for address in [address for address in self._sockets if address not in addresses]:
            by_slot = self._sockets[address]
            sock = by_slot.pop(index, None)
            if sock is not None:
                sock.close()
            if not by_slot:
                del self._sockets[address]

    def withdraw(self, index: int) -> bool:
        """Close the sockets of a slot where others have some for the address; tell whether there were any."""
        shared = [by_slot for by_slot in self._sockets.values() if index in by_slot and len(by_slot) > 1]
        for by_slot in shared:
            by_slot.pop(index).close()
        return bool(shared)

    def close(self) -> None:
        """Close all, for good: who connects now is refused instead of left waiting."""
        self._closed = True
        for by_slot in self._sockets.values():
            for sock in by_slot.values():
                sock.close()
        self._sockets.clear()

    def sockets(self) -> list[socket.socket]:
        """Return all that are open."""
        return [sock for by_slot in self._sockets.values() for sock in by_slot.values()]

    def _is_ours(self, port: int) -> bool:
        return any(_port_of(sock) == port for sock in self.sockets())


def _address(wanted: Wanted) -> _Address:
    return wanted.host, wanted.port, wanted.ordinal


def _port_of(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port
