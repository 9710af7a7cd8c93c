"""The seam between the kernel and what clients come by."""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from realtime.errors import ConfigurationError, NotRunning
from realtime.hub import Hub

__all__ = ["ListenAddress", "Transport"]


class ListenAddress(NamedTuple):
    """Where a transport wants to listen."""

    host: str
    port: int
    """0 for one that the system picks."""

    exclusive: bool = True
    """Whether it is an error that programs which do not belong together listen there."""


class Transport(ABC):
    """Extend this to bring clients to the kernel another way.

    Implement ``on_start`` and ``on_stop``; hand each client, a :class:`realtime.connection.Connection`, over
    with ``self.hub.connect(connection)``, ``self.hub.receive(connection, data)`` and
    ``self.hub.disconnect(connection, reason)``. ``realtime.testing.TransportConformance`` proves it.
    """

    name = "custom"
    """Shown in ``kernel.stats()``."""

    joins_nodes = False
    """Whether it brings other nodes and no clients: such ones are started first, so that the first client finds the
    cluster joined."""

    _hub: Hub | None = None

    @property
    def hub(self) -> Hub:
        """The kernel's hub. Raises NotRunning before the transport was given to a kernel."""
        if self._hub is None:
            raise NotRunning(f"{type(self).__name__} belongs to no kernel: pass it to RealtimeKernel(transports=[...])")
        return self._hub

    def attach(self, hub: Hub) -> None:
        """Belong to a kernel: called once, by the kernel."""
        if self._hub is not None and self._hub is not hub:
            raise ConfigurationError(f"{type(self).__name__} belongs to another kernel already")
        self._hub = hub

    @abstractmethod
    def on_start(self) -> None:
        """Begin to take clients; return when they can come. May switch greenlets.

        :raises ConfigurationError: it cannot.
        """

    @abstractmethod
    def on_stop(self) -> None:
        """Release everything, clients that are left included. May switch greenlets."""

    def on_drain(self) -> None:
        """Take no more clients; those that are here stay."""

    def shared_address(self) -> ListenAddress | None:
        """Return where to listen if several processes can do so side by side, each on a socket of its own.

        Then ``listen_on`` is called with such a socket before the start in each worker of a WorkerPool. None: every
        process starts the transport as it is, which fails in the second one if it listens on a port of its own.
        """
        return None

    def listen_on(self, sock: socket.socket) -> None:
        """Take connections from this listening socket at the next start, and own it from now on.

        :raises ConfigurationError: the transport cannot.
        """
        raise ConfigurationError(f"{type(self).__name__} cannot listen on a socket that is given to it")

    def closing(self) -> int:
        """Return how many clients were told to go and are not gone yet: ``kernel.stop`` waits for them."""
        return 0

    def stats(self) -> dict[str, Any]:
        """Return named numbers for ``kernel.stats()``."""
        return {"name": self.name}
