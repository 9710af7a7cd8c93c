"""Clients in the same process, without sockets: for tests.

What a client sends goes through the real codec, and what it gets came through the real outbox with its
bounds and overflow policies, so what holds for a WebSocket holds here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gevent

from realtime.codes import CloseCode
from realtime.connection import PLAIN_JSON, Connection
from realtime.errors import ConfigurationError, NotRunning
from realtime.message import MSGPACK, Wire
from realtime.outbox import Outbox
from realtime.transports.base import Transport
from realtime.transports.memory_client import Closing, MemoryClient

__all__ = ["MemoryClient", "MemoryTransport"]

_WIRES = {"json": PLAIN_JSON, "msgpack": Wire(MSGPACK, bytes, bytes)}


class _MemoryConnection(Connection):
    """The server's side of a memory client, and the sink of its outbox."""

    __slots__ = ("_client", "_hub", "_outbox", "_transport", "_wants_to_write")

    transport = "memory"

    def __init__(self, transport: MemoryTransport, client: MemoryClient, **options: Any) -> None:
        super().__init__(**options)
        self._transport = transport
        self._client = client
        self._hub = transport.hub
        self._wants_to_write = False
        self.outbox = self._outbox = Outbox(self, self._hub.flusher, self._hub.limits)

    # From the client ---------------------------------------------------------------------------------

    def received(self, data: bytes) -> None:
        """A message came in."""
        if len(data) > self._hub.limits.message_size and not self._outbox.closed:
            self._outbox.discard()
            self.end(CloseCode.MESSAGE_TOO_BIG, f"a message may have {self._hub.limits.message_size} bytes")
        else:
            self._hub.receive(self, data)

    def client_closed(self, code: int, reason: str) -> None:
        """The client said goodbye: what waits for it is still delivered."""
        self._finish_with(code, reason)
        self._hub.disconnect(self, reason or "closed by the client", code=code)

    def client_vanished(self, code: int, reason: str) -> None:
        """The client is gone without a word: what waits for it is dropped, and counted."""
        self._outbox.close()
        self._hub.disconnect(self, reason, code=code)
        self._transport.forget(self._client)

    # What the hub wants -----------------------------------------------------------------------------------

    def transmit(self, frame: bytes) -> None:
        """Everything goes through the outbox."""
        self._outbox.put(frame)

    def end(self, code: int, reason: str) -> None:
        """Close after what waits in the outbox; the kernel knows at once."""
        if not self._outbox.closed:
            self._finish_with(code, reason)
            self._hub.disconnect(self, reason, code=code)

    def _finish_with(self, code: int, reason: str) -> None:
        self._outbox.put_last(Closing.of(code, reason))
        self._outbox.flush()

    def pause_reading(self) -> None:
        """Leave what comes with the client."""
        self._client._server_reads = False

    def resume_reading(self) -> None:
        """Take what waits with the client, in a loop turn of its own: the hub is in the middle of something."""
        self._client._server_reads = True
        gevent.get_hub().loop.run_callback(self._client._hand_over)

    # The outbox's sink ----------------------------------------------------------------------------------------

    def write(self, frames: list[bytes]) -> int:
        """Give the client whole frames for as long as it reads."""
        taken = 0
        for frame in frames:
            if not self._client._takes():
                break
            self._client._take(frame)
            taken += len(frame)
        return taken

    def watch_writable(self) -> None:
        """The client does not read: go on once it does."""
        self._wants_to_write = True

    def writable(self) -> None:
        """The client reads again."""
        if self._wants_to_write:
            self._wants_to_write = False
            gevent.get_hub().loop.run_callback(self._outbox.resume)

    def finished(self) -> None:
        """The client has our last frame."""
        self._transport.forget(self._client)

    def broken(self, error: OSError) -> None:
        """What was to be written is no frame of ours."""
        self.client_vanished(CloseCode.ABNORMAL, str(error))

    def overflowed(self) -> None:
        """Cut the slow consumer off."""
        self._outbox.discard()
        self.end(CloseCode.SLOW_CONSUMER, "slow consumer")


class MemoryTransport(Transport):
    """Brings clients of the same process to a kernel: ``client = transport.connect()``.

    ``realtime.testing.KernelTest`` starts and stops a kernel around one.
    """

    name = "memory"

    def __init__(self) -> None:
        self._clients: dict[MemoryClient, _MemoryConnection] = {}
        self._open = False

    def connect(
        self,
        *,
        identity: Any = None,
        metadata: Mapping[str, Any] | None = None,
        codec: str = "json",
        remote_address: str | None = None,
    ) -> MemoryClient:
        """Connect a client.

        :param identity: what ``authenticate`` would have returned: ``context.identity``.
        :param metadata: what presence shows of it.
        :param codec: ``"json"`` or ``"msgpack"``.
        :raises NotRunning: the kernel was not started, or is stopping.
        :raises ConfigurationError: no such codec.
        """
        if not self._open:
            raise NotRunning("the kernel takes no clients: it was not started, or is stopping")
        if codec not in _WIRES:
            raise ConfigurationError(f"codec={codec!r}: must be one of {', '.join(_WIRES)}")
        client = MemoryClient(codec)
        client._connection = connection = _MemoryConnection(
            self,
            client,
            wire=_WIRES[codec],
            identity=identity,
            metadata=dict(metadata or {}),
            remote_address=remote_address,
        )
        self._clients[client] = connection
        self.hub.connect(connection)
        return client

    def forget(self, client: MemoryClient) -> None:
        """A client's connection is over."""
        self._clients.pop(client, None)

    def on_start(self) -> None:
        """Clients can connect."""
        self._open = True

    def on_drain(self) -> None:
        """They can no more."""
        self._open = False

    def on_stop(self) -> None:
        """Cut off who is left, such as a client that does not read its goodbye."""
        self._open = False
        for client, connection in list(self._clients.items()):
            client._end(CloseCode.ABNORMAL, "server stopped")
            connection.client_vanished(CloseCode.GOING_AWAY, "server stopped")

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        return {"name": self.name, "connections": len(self._clients)}
