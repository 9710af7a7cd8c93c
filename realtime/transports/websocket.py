"""The kernel's own WebSocket server, and the plain layer (``serve``) that it stands on too."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from realtime.config import Heartbeat
from realtime.connection import Connection
from realtime.errors import ConfigurationError
from realtime.hub import Hub
from realtime.message import JSON, MSGPACK, MSGPACK_SUBPROTOCOL, Codec, Wire
from realtime.outbox import Outbox
from realtime.protocols.deflate import DeflateOptions, compress_once
from realtime.protocols.frames import Opcode, binary_frame, encode_frame, text_frame
from realtime.transports.base import ListenAddress, Transport
from realtime.transports.channel import Channel
from realtime.transports.files import javascript_client
from realtime.transports.http import TLSOptions
from realtime.transports.plain import PlainServer, WebSocket, serve
from realtime.transports.ports import check_listening
from realtime.transports.server import Authenticate, Opening, ServerOptions, WebSocketServer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["PlainServer", "WebSocket", "WebSocketTransport", "serve"]

log = logging.getLogger("realtime.websocket")

JSON_SUBPROTOCOL = "realtime.json.v1"
_JSON_FRAMES = Wire(JSON, text_frame)
_MSGPACK_FRAMES = Wire(MSGPACK, binary_frame)


class WebSocketConnection(Connection):
    """A client of the kernel on a WebSocket."""

    __slots__ = ("_binary", "_channel", "_hub", "heartbeat")

    transport = "websocket"

    def __init__(
        self, hub: Hub, channel: Channel, wire: Wire, identity: Any, address: Any, heartbeat: Heartbeat | None
    ) -> None:
        super().__init__(wire=wire, identity=identity, remote_address=address)
        self._hub = hub
        self._channel = channel
        self._binary = wire.codec is MSGPACK
        self.heartbeat = heartbeat
        self.outbox = Outbox(channel, hub.flusher, hub.limits)

    # What the channel tells --------------------------------------------------------------------------

    def room(self) -> int:
        """How many messages the inbox takes now."""
        return self._hub.room_for(self)

    def message_received(self, data: bytes, is_text: bool) -> None:
        """Hand a message to the hub; one of the wrong kind is refused there."""
        if is_text is self._binary:
            self._hub.refuse(self, f"this connection speaks {self.wire.codec.name}: send {self._expected()} frames")
        else:
            self._hub.receive(self, data)

    def _expected(self) -> str:
        return "binary" if self._binary else "text"

    def is_done(self) -> bool:
        """A client that ends leaves at once; what it had sent is handled all the same."""
        return True

    def hung_up(self) -> None:
        """Take what is left, whatever the inbox holds."""
        self.leaving = True

    def channel_closed(self, code: int, reason: str) -> None:
        """The client is gone."""
        self._hub.disconnect(self, reason, code=code)

    # What the hub wants ---------------------------------------------------------------------------------

    def transmit(self, frame: bytes) -> None:
        """Everything goes through the outbox, whose sink is the channel."""
        self.outbox.put(frame)

    def end(self, code: int, reason: str) -> None:
        """Begin the close handshake."""
        self._channel.close(code, reason)

    def pause_reading(self) -> None:
        """Let TCP push back."""
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._channel.resume_reading()


class WebSocketTransport(Transport):
    """A WebSocket server for the kernel's clients, and HTTP for everything else on the same port.

    :param port: 0 picks a free one, told by ``transport.port`` once started.
    :param path: where WebSockets connect; below it, at ``client.js``, browsers find the JavaScript client:
        ``import { connect } from "/realtime/client.js"``. Any other path goes to ``app``, or is answered 404.
    :param host: the address to listen on: ``"0.0.0.0"`` to be reached from other machines.
    :param app: any WSGI application.
    :param authenticate: ``authenticate(request)`` returns the identity or raises ``Reject("why", status=401)``.
    :param allowed_origins: None: pages of the same host; ``"*"``; or a list such as ``["https://app.example"]``.
    :param tls: ``(certfile, keyfile)``.
    :param compression: True or a DeflateOptions: permessage-deflate, compressed once per broadcast.
    :param reuse_port: let several processes share the port.
    :param heartbeat: ping interval and pong deadline; None for no pings.
    :raises ConfigurationError: an option that cannot work.

    Sizes and counts are bounded by the kernel's ``limits``. Clients speak JSON in text frames, or MessagePack in
    binary ones if they offer the subprotocol ``realtime.msgpack.v1``.
    """

    name = "websocket"

    def __init__(
        self,
        port: int = 8080,
        path: str = "/",
        *,
        host: str = "127.0.0.1",
        app: WSGIApplication | None = None,
        authenticate: Authenticate | None = None,
        allowed_origins: Sequence[str] | str | None = None,
        tls: TLSOptions | tuple[str, str] | None = None,
        compression: DeflateOptions | bool = False,
        reuse_port: bool = False,
        heartbeat: Heartbeat | None = Heartbeat(),  # noqa: B008  # frozen
    ) -> None:
        if path is None:
            raise ConfigurationError("path=None: must start with /")
        self.app = app
        """The WSGI application of the other paths; may be set until the kernel starts."""
        self._path = path
        self._settings: dict[str, Any] = {
            "port": port,
            "path": path,
            "host": host,
            "authenticate": authenticate,
            "allowed_origins": allowed_origins,
            "tls": tls,
            "compression": compression,
            "reuse_port": reuse_port,
            "heartbeat": heartbeat,
        }
        self._heartbeat = heartbeat
        self._deflate = _shared_compression(compression)
        self._wires: dict[tuple[Codec, int], Wire] = {}
        self._server: WebSocketServer | None = None
        self._listening: socket.socket | None = None
        ServerOptions(app=app, **self._settings)  # complains now, not at the start

    @property
    def port(self) -> int:
        """The port; with ``port=0`` the one the system picked, once started."""
        return self._server.port if self._server is not None else int(self._settings["port"])

    @property
    def path(self) -> str:
        """Where WebSockets connect."""
        return self._path

    @property
    def url(self) -> str:
        """The address for a client, once started."""
        return self._server.url(self._path) if self._server is not None else ""

    def listen_at(self, *, host: str | None = None, port: int | None = None, path: str | None = None) -> None:
        """Listen elsewhere from the next start on. What is None stays as it is.

        :raises ConfigurationError: a value that cannot work.
        """
        given = {"host": host, "port": port, "path": path}
        settings = {**self._settings, **{name: value for name, value in given.items() if value is not None}}
        ServerOptions(app=self.app, **settings)
        self._settings = settings
        self._path = settings["path"]

    def shared_address(self) -> ListenAddress:
        """Several processes can share the port."""
        settings = self._settings
        return ListenAddress(settings["host"], settings["port"], exclusive=not settings["reuse_port"])

    def listen_on(self, sock: socket.socket) -> None:
        """Take connections from this listening socket at the next start. Raises ConfigurationError."""
        check_listening(sock)
        self._listening = sock

    def on_start(self) -> None:
        """Listen. Raises PortInUse or ConfigurationError."""
        subprotocols = (MSGPACK_SUBPROTOCOL, JSON_SUBPROTOCOL)
        options = ServerOptions(app=self.app, limits=self.hub.limits, subprotocols=subprotocols, **self._settings)
        listening, self._listening = self._listening, None
        files = {f"{self._path.rstrip('/')}/client.js": javascript_client()}
        server = WebSocketServer(options, self, deflate=self._deflate, listening=listening, files=files)
        server.start()
        self._server = server
        log.info("WebSocket clients connect to %s", self.url)
        if self.app is not None:
            log.info("everything else is at %s", server.url("/", websocket=False))

    def on_drain(self) -> None:
        """Accept nobody any more."""
        if self._server is not None:
            self._server.drain()

    def closing(self) -> int:
        """Sockets that are still open, and requests in progress."""
        return self._server.open_channels + self._server.requests if self._server is not None else 0

    def on_stop(self) -> None:
        """Close everything that is left."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        return {"name": self.name, **(self._server.stats() if self._server is not None else {})}

    # What the server asks ---------------------------------------------------------------------------------

    def owner_of(self, opening: Opening) -> tuple[WebSocketConnection, Outbox]:
        """Make the kernel's connection."""
        connection = WebSocketConnection(
            self.hub,
            opening.channel,
            self._wire_for(opening),
            opening.identity,
            opening.request.remote_address,
            self._heartbeat,
        )
        return connection, connection.outbox

    def opened(self, owner: WebSocketConnection) -> None:
        """Introduce the client to the kernel."""
        self.hub.connect(owner)

    def _wire_for(self, opening: Opening) -> Wire:
        """One Wire per codec and compression, so that broadcasts are finished once for each."""
        binary = opening.accepted.subprotocol == MSGPACK_SUBPROTOCOL
        agreed = opening.accepted.deflate
        if agreed is None or self._deflate is None:
            return _MSGPACK_FRAMES if binary else _JSON_FRAMES
        codec: Codec = MSGPACK if binary else JSON
        key = (codec, agreed.send_window_bits)
        if key not in self._wires:
            self._wires[key] = Wire(codec, _deflating(self._deflate, binary, agreed.send_window_bits))
        return self._wires[key]


def _shared_compression(compression: DeflateOptions | bool) -> DeflateOptions | None:
    """Return options under which one compressed frame fits every member of a room."""
    if isinstance(compression, DeflateOptions):
        if not compression.server_no_context_takeover:
            raise ConfigurationError(
                "compression=DeflateOptions(...): the kernel compresses once per broadcast, which needs "
                "server_no_context_takeover=True"
            )
        return compression
    return DeflateOptions(server_no_context_takeover=True) if compression else None


def _deflating(options: DeflateOptions, binary: bool, window_bits: int) -> Callable[[bytes], bytes]:
    """Return the step from payload to compressed frame."""
    plain = binary_frame if binary else text_frame
    opcode = Opcode.BINARY if binary else Opcode.TEXT

    def finish(payload: bytes) -> bytes:
        if len(payload) < options.min_size:
            return plain(payload)
        compressed = compress_once(
            payload, window_bits=window_bits, level=options.level, memory_level=options.memory_level
        )
        return encode_frame(opcode, compressed, rsv1=True)

    return finish
