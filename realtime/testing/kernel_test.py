"""A kernel under test: started without its own transports, reached by clients without sockets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent

from realtime.errors import TimedOut
from realtime.kernel import RealtimeKernel, TransportLike
from realtime.transports.memory import MemoryClient, MemoryTransport
from realtime.transports.memory_client import PATIENCE

__all__ = ["KernelTest"]


class KernelTest:
    """Runs a kernel with nothing but a MemoryTransport, for the length of a ``with`` block.

    The kernel's own transports stay out of it: no port is bound. A kernel can be tested many times.

    :param kernel: with the handlers to test; it must not be running.
    :param stop_timeout: seconds that handlers get to finish when the block ends.
    """

    def __init__(self, kernel: RealtimeKernel, *, stop_timeout: float = 1.0) -> None:
        self.kernel = kernel
        self.transport = MemoryTransport()
        self._stop_timeout = stop_timeout
        self._own_transports: list[TransportLike] = []

    def __enter__(self) -> KernelTest:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the kernel; for fixtures that have no ``with`` block."""
        self._own_transports, self.kernel._transports = self.kernel._transports, []
        try:
            self.kernel.use_transport(self.transport)
            self.kernel.start()
        except BaseException:
            self.kernel._transports = self._own_transports
            raise

    def stop(self) -> None:
        """Stop the kernel and give it its own transports back. Switches greenlets."""
        try:
            self.kernel.stop(self._stop_timeout)
        finally:
            self.kernel._transports = self._own_transports

    def connect(
        self,
        *,
        identity: Any = None,
        metadata: Mapping[str, Any] | None = None,
        codec: str = "json",
        remote_address: str | None = None,
    ) -> MemoryClient:
        """Connect a client: see ``MemoryTransport.connect``."""
        return self.transport.connect(identity=identity, metadata=metadata, codec=codec, remote_address=remote_address)

    def settle(self, timeout: float = PATIENCE) -> None:
        """Wait until no handler runs and all they sent has arrived: then what did not come will not come.

        :raises TimedOut: a handler still runs, or waits for a client.
        """
        if not self.kernel.hub.workers.wait_quiet(timeout):
            raise TimedOut(f"{self.kernel.hub.workers.busy} handler(s) still at work after {timeout:g} s")
        gevent.sleep(0)  # the flush of what they sent last is due before us
