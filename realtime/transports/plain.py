"""Plain WebSockets, without the kernel: a blocking function per connection.

::

    def echo(ws):
        for data in ws:
            ws.send(data)

    with serve(echo, port=8765) as server:
        server.serve_forever()
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import gevent
from gevent.event import Event

from realtime.codes import CloseCode
from realtime.config import Heartbeat, Limits
from realtime.drain import SIGNALS
from realtime.errors import ConnectionClosed, TimedOut
from realtime.flusher import Flusher
from realtime.outbox import Outbox
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.http import Request
from realtime.routing import check_function
from realtime.transports.channel import Channel
from realtime.transports.http import TLSOptions
from realtime.transports.server import ServerOptions, WebSocketServer
from realtime.transports.upgrades import Authenticate, Opening

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["PlainServer", "WebSocket", "serve"]

log = logging.getLogger("realtime.websocket")


class WebSocket:
    """One connection, for one handler. Its methods park only the greenlet that calls them.

    ``request`` is the handshake's, ``identity`` what ``authenticate`` returned, ``subprotocol`` the agreed one
    or None. ``close_code`` and ``close_reason`` tell how it ended, once it has; until then the code is None.
    """

    def __init__(self, opening: Opening, flusher: Flusher, limits: Limits) -> None:
        self.request: Request = opening.request
        self.identity = opening.identity
        self.subprotocol = opening.accepted.subprotocol
        self.remote_address = opening.request.remote_address
        self.close_code: int | None = None
        self.close_reason = ""
        self._channel: Channel = opening.channel
        self._limits = limits
        self._outbox = Outbox(opening.channel, flusher, limits)
        self._inbox: deque[tuple[bytes, bool]] = deque()
        self._inbox_bytes = 0
        self._hung_up = False
        self._receiving = False
        self._changed = Event()  # something came, or the connection ended
        self._ended = Event()

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more; ``receive`` may still have messages."""
        return self.close_code is not None

    def receive(self, timeout: float | None = None) -> str | bytes:
        """Return the next message: str for text, bytes for binary. Switches greenlets.

        What was received before the other side closed, or broke the protocol, is returned first and can still be
        answered: the connection ends when ``receive`` is called after it.

        :param timeout: seconds; None waits as long as the connection lives.
        :raises ConnectionClosed: it is closed and every message has been returned.
        :raises TimedOut: nothing came in time.
        """
        self._receiving = True
        try:
            self._wait_for_message(timeout)
        finally:
            self._receiving = False
        data, is_text = self._inbox.popleft()
        self._inbox_bytes -= len(data)
        if len(self._inbox) < self._limits.inbox:
            self._channel.resume_reading()
        return data.decode() if is_text else data

    def _wait_for_message(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._inbox:
            self._channel.release_end()
            if self.close_code is not None:
                raise ConnectionClosed(self.close_code, self.close_reason)
            self._changed.clear()
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._changed.wait(remaining) and not self._inbox:
                raise TimedOut(f"no message within {timeout} s")

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterate over the messages until the connection is closed, however that happens."""
        while True:
            try:
                message = self.receive()
            except ConnectionClosed:
                return
            yield message

    def send(self, data: str | bytes | bytearray | memoryview) -> None:
        """Send a text (str) or binary message. Parks while too much waits already: switches greenlets.

        :raises ConnectionClosed: it is closed; with 4008 if the other side took nothing for
            ``Limits.backpressure_timeout`` seconds.
        :raises TypeError: neither text nor bytes. ValueError: text that is not valid Unicode.
        """
        if isinstance(data, str):
            is_text, payload = True, data.encode()
        elif isinstance(data, (bytes, bytearray, memoryview)):
            is_text, payload = False, bytes(data)
        else:
            raise TypeError(f"a message is str or bytes, not {type(data).__name__}")
        outbox = self._outbox
        if not outbox.wait_for_room(self._limits.backpressure_timeout, len(payload)):
            self._channel.overflowed()
        if self.close_code is not None:
            raise ConnectionClosed(self.close_code, self.close_reason)
        # encoded only now: with compression, frames must leave in the order they were compressed in
        protocol = self._channel.protocol
        outbox.put_unbounded(protocol.encode_text(payload) if is_text else protocol.encode_binary(payload))

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Close, and wait for the other side to agree: ``Limits.close_handshake`` seconds at most. Switches.

        :raises ValueError: a code or reason that no close frame can carry.
        """
        self._channel.close(code, reason)
        self._ended.wait(self._limits.close_handshake + 1)

    # What the channel tells ---------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the inbox takes now; 0 if the other side has left behind more than may wait."""
        limits = self._limits
        if not self._hung_up:
            return max(1, limits.inbox - len(self._inbox))
        is_full = self._inbox_bytes >= limits.inbox * limits.message_size  # more than waits at any other time
        return 0 if is_full else max(0, min(limits.inbox, limits.inbox_at_end - len(self._inbox)))

    def message_received(self, data: bytes, is_text: bool) -> None:
        """Keep it for ``receive``; stop reading when enough wait."""
        self._inbox.append((data, is_text))
        self._inbox_bytes += len(data)
        if len(self._inbox) >= self._limits.inbox:
            self._channel.pause_reading()
        self._changed.set()

    def is_done(self) -> bool:
        """Whether the handler has taken every message, answered it if it wants to, and waits for more."""
        return self._receiving and not self._inbox

    def hung_up(self) -> None:
        """Keep what is left, as far as ``Limits`` allow."""
        self._hung_up = True

    def channel_closed(self, code: int, reason: str) -> None:
        """Wake whoever waits."""
        self.close_code = code
        self.close_reason = reason
        self._changed.set()

    def socket_closed(self) -> None:
        """The close handshake is over."""
        self._ended.set()


class PlainServer:
    """What ``serve`` returns: a running server. Leaving its ``with`` block stops it."""

    def __init__(self, handler: Callable[[WebSocket], object], options: ServerOptions) -> None:
        check_function(handler, 1, f"handler {handler!r}", "(ws)")
        asked = options.compression
        deflate = asked if isinstance(asked, DeflateOptions) else DeflateOptions() if asked else None
        self._handler = handler
        self._options = options
        self._counters: Counter[str] = Counter()
        self._handlers: dict[gevent.Greenlet[..., None], WebSocket] = {}
        self._sockets: dict[Channel, WebSocket] = {}
        self._server = WebSocketServer(options, self, deflate=deflate)
        self._flusher = Flusher(gevent.get_hub(), self._counters)
        self._stopped = Event()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.port

    @property
    def url(self) -> str:
        """The address for a client."""
        return self._server.url(self._options.path or "/")

    def start(self) -> None:
        """Listen. Raises PortInUse or ConfigurationError."""
        self._server.start()

    def serve_forever(self) -> None:
        """Serve until SIGINT, SIGTERM or ``stop``. Blocks; switches greenlets."""
        watchers = [gevent.signal_handler(number, self._stopped.set) for number in SIGNALS]
        try:
            self._stopped.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
            self.stop()

    def stop(self, timeout: float = 10.0) -> None:
        """Accept nobody, close everybody with 1001, and end what is left after ``timeout`` seconds. Switches."""
        self._stopped.set()
        deadline = time.monotonic() + timeout
        self._server.drain()
        self._server.close_all(CloseCode.GOING_AWAY, "server stopping")
        gevent.joinall(self._other_handlers(), timeout=timeout)
        while self._server.open_channels and time.monotonic() < deadline:
            gevent.sleep(0.01)
        gevent.killall(self._other_handlers(), timeout=1.0)
        self._server.stop()

    def _other_handlers(self) -> list[gevent.Greenlet[..., None]]:
        """Those of all connections, but for one that is itself stopping the server."""
        return [greenlet for greenlet in self._handlers if greenlet is not gevent.getcurrent()]

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        stats = self._server.stats()
        stats["counters"].update(self._counters)
        return {**stats, "handlers": len(self._handlers)}

    def __enter__(self) -> PlainServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    # What the server asks -----------------------------------------------------------------------------

    def owner_of(self, opening: Opening) -> tuple[WebSocket, Outbox]:
        """Make the WebSocket the handler gets."""
        websocket = WebSocket(opening, self._flusher, self._options.limits)
        opening.channel.on_end(websocket.socket_closed)
        return websocket, websocket._outbox

    def opened(self, owner: WebSocket) -> None:
        """Run the handler in a greenlet of its own."""
        greenlet = gevent.Greenlet(self._run, owner)
        self._handlers[greenlet] = owner
        greenlet.rawlink(self._handlers.pop)
        greenlet.start()

    def _run(self, websocket: WebSocket) -> None:
        try:
            self._handler(websocket)
            websocket.close()
        except ConnectionClosed as error:
            log.debug("a handler ended with its connection: %s", error)
        except gevent.GreenletExit:
            websocket._channel.close(CloseCode.GOING_AWAY, "server stopping")
        except BaseException:  # a gevent.Timeout or sys.exit() of its own too: the client must hear of it
            log.exception("the handler of a WebSocket failed")
            self._counters["handler_errors"] += 1
            websocket.close(CloseCode.INTERNAL_ERROR, "internal error")


def serve(
    handler: Callable[[WebSocket], object],
    port: int = 8080,
    *,
    host: str = "127.0.0.1",
    path: str | None = None,
    app: WSGIApplication | None = None,
    authenticate: Authenticate | None = None,
    allowed_origins: Sequence[str] | str | None = None,
    subprotocols: Sequence[str] = (),
    tls: TLSOptions | tuple[str, str] | None = None,
    compression: DeflateOptions | bool = False,
    reuse_port: bool = False,
    limits: Limits | None = None,
    heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008  # frozen
) -> PlainServer:
    """Start a WebSocket server that runs ``handler(ws)`` in a greenlet for each connection, and return it.

    Call ``serve_forever()`` on it to block. When the handler returns the connection is closed with 1000; when it
    raises, with 1011.

    :param path: where WebSockets connect; None for any path. The other options are those of
        :class:`~realtime.transports.server.ServerOptions`.
    :raises PortInUse, ConfigurationError: it cannot start.
    """
    options = ServerOptions(
        host=host,
        port=port,
        path=path,
        app=app,
        authenticate=authenticate,
        allowed_origins=allowed_origins,
        subprotocols=subprotocols,
        tls=tls,
        compression=compression,
        reuse_port=reuse_port,
        limits=limits if limits is not None else Limits(),
        heartbeat=heartbeat,
    )
    server = PlainServer(handler, options)
    server.start()
    return server
