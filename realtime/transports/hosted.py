"""WebSocket clients whose connections another server has accepted, and hands over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from realtime.config import Heartbeat
from realtime.errors import HandshakeError
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.handshake import Accepted
from realtime.protocols.http import Request
from realtime.transports.base import Transport
from realtime.transports.channel import Channel
from realtime.transports.upgrades import Authenticate, UpgradeOptions, Upgrades
from realtime.transports.websocket_clients import SUBPROTOCOLS, ClientOpener, shared_compression

__all__ = ["HostedTransport"]


class HostedTransport(Transport):
    """Takes connections that come with their request already read. It listens nowhere itself.

    The options are those of :class:`~realtime.transports.websocket.WebSocketTransport`.

    :raises ConfigurationError: an option that cannot work.
    """

    name = "websocket"

    def __init__(
        self,
        *,
        authenticate: Authenticate | None = None,
        allowed_origins: Sequence[str] | str | None = None,
        compression: DeflateOptions | bool = False,
        heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008  # frozen
    ) -> None:
        self._settings: dict[str, Any] = {
            "authenticate": authenticate,
            "allowed_origins": allowed_origins,
            "compression": compression,
            "heartbeat": heartbeat,
            "subprotocols": SUBPROTOCOLS,
        }
        self._deflate = shared_compression(compression)
        self._heartbeat = heartbeat
        self._upgrades: Upgrades | None = None
        self._requests = 0
        self._counters: Counter[str] = Counter()
        UpgradeOptions(**self._settings)  # complains now, not at the start

    def on_start(self) -> None:
        """Take connections."""
        options = UpgradeOptions(limits=self.hub.limits, **self._settings)
        opener = ClientOpener(self.hub, self._heartbeat, self._deflate)
        self._upgrades = Upgrades(options, opener, deflate=self._deflate)
        self._upgrades.start()

    def on_drain(self) -> None:
        """Tell whoever still comes to come back."""
        if self._upgrades is not None:
            self._upgrades.drain()

    def closing(self) -> int:
        """Sockets that are still open, and requests that are to become one."""
        return self._upgrades.open_channels + self._requests if self._upgrades is not None else 0

    def on_stop(self) -> None:
        """Close everything that is left."""
        if self._upgrades is not None:
            self._upgrades.stop()
            self._counters += self._upgrades.counters
            self._upgrades = None

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        upgrades = self._upgrades
        if upgrades is None:
            return {"name": self.name}
        counters = self._counters + upgrades.counters
        return {"name": self.name, "connections": upgrades.open_channels, "counters": dict(counters)}

    # What the host's side asks, in the order of a request -------------------------------------------------

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request that may become a connection is in progress: stopping waits for it."""
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    def accept(self, request: Request) -> Accepted:
        """Check the handshake. From any thread. Raises HandshakeError: 503 if the kernel does not run."""
        return self._running().accept(request)

    def authenticate(self, request: Request, *, interruptible: bool) -> Any:
        """Return the identity. From any thread. Raises HandshakeError: see :meth:`Upgrades.authenticate`."""
        return self._running().authenticate(request, interruptible=interruptible)

    def open(
        self,
        request: Request,
        accepted: Accepted,
        identity: Any,
        sock: Any,
        leftover: bytes,
        on_end: Callable[[], None],
    ) -> Channel:
        """Make the client's connection: see :meth:`Upgrades.open`. Raises HandshakeError if the kernel has stopped."""
        channel = self._running().open(request, accepted, identity, sock, leftover, on_end)
        self._counters["upgrades"] += 1
        return channel

    def refused(self) -> None:
        """Count a request that became no connection."""
        self._counters["upgrades_refused"] += 1

    def _running(self) -> Upgrades:
        if self._upgrades is None:
            raise HandshakeError(503, "The server is stopping: come back.", {"Retry-After": "1"})
        return self._upgrades
