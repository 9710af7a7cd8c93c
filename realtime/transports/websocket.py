"""The kernel's own WebSocket server, and the plain layer (``serve``) that it stands on too."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from realtime.config import Heartbeat
from realtime.errors import ConfigurationError
from realtime.protocols.deflate import DeflateOptions
from realtime.transports.base import ListenAddress, Transport
from realtime.transports.files import javascript_client
from realtime.transports.http import TLSOptions
from realtime.transports.plain import PlainServer, WebSocket, serve
from realtime.transports.ports import check_listening
from realtime.transports.server import ServerOptions, WebSocketServer
from realtime.transports.upgrades import Authenticate
from realtime.transports.websocket_clients import SUBPROTOCOLS, ClientOpener, shared_compression

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["PlainServer", "WebSocket", "WebSocketTransport", "serve"]

log = logging.getLogger("realtime.websocket")


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
        self._deflate = shared_compression(compression)
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
        options = ServerOptions(app=self.app, limits=self.hub.limits, subprotocols=SUBPROTOCOLS, **self._settings)
        opener = ClientOpener(self.hub, options.heartbeat, self._deflate)
        listening, self._listening = self._listening, None
        files = {f"{self._path.rstrip('/')}/client.js": javascript_client()}
        server = WebSocketServer(options, opener, deflate=self._deflate, listening=listening, files=files)
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
