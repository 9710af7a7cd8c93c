"""A WebSocket server: HTTP in front, what becomes of the upgrades behind it.

What ``WebSocketTransport`` and the plain ``serve`` share.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from realtime.errors import ConfigurationError
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.http import Request
from realtime.transports.http import HttpServer, TLSOptions
from realtime.transports.upgrades import Opener, UpgradeOptions, Upgrades, check_path

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["ServerOptions", "WebSocketServer"]

log = logging.getLogger("realtime.websocket")


@dataclass(frozen=True, kw_only=True)
class ServerOptions(UpgradeOptions):
    """What a WebSocket server can be told. Raises ConfigurationError for what cannot work."""

    host: str = "127.0.0.1"
    """Address to listen on; ``"0.0.0.0"`` for every IPv4 address of the machine, ``"::"`` for IPv6."""

    port: int = 8080
    """Port to listen on; 0 picks a free one, told by ``.port`` once started."""

    path: str | None = None
    """The path WebSockets connect to; None for every path."""

    app: WSGIApplication | None = None
    """Any WSGI application, for every other path; without one they are answered 404."""

    tls: TLSOptions | tuple[str, str] | None = None
    """``(certfile, keyfile)``, PEM: then it is ``wss://`` and ``https://``."""

    reuse_port: bool = False
    """Let several processes share the port (``SO_REUSEPORT``)."""

    def __post_init__(self) -> None:
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port={self.port!r}: must be a whole number from 0 to 65535")
        if not isinstance(self.host, str) or not self.host:
            raise ConfigurationError(f"host={self.host!r}: must be an address or a name; '0.0.0.0' or '::' means all")
        if self.path is not None:
            check_path(self.path)
        if self.app is not None and not callable(self.app):
            raise ConfigurationError(f"app={self.app!r}: must be a WSGI application")
        super().__post_init__()
        self.tls_options()

    def tls_options(self) -> TLSOptions | None:
        """Return ``tls`` as options."""
        if self.tls is None or isinstance(self.tls, TLSOptions):
            return self.tls
        try:
            certfile, keyfile = self.tls
        except (TypeError, ValueError):
            raise ConfigurationError(f"tls={self.tls!r}: must be (certfile, keyfile)") from None
        return TLSOptions(certfile=certfile, keyfile=keyfile)


class WebSocketServer:
    """Listens, upgrades, and keeps the channels.

    :param options: see :class:`ServerOptions`.
    :param opener: makes the owner of each connection.
    :param deflate: what to agree on where the client offers compression; None for never.
    :param listening: a socket that listens already, to be used instead of opening one.
    :param files: see :class:`HttpServer`.
    """

    def __init__(
        self,
        options: ServerOptions,
        opener: Opener,
        *,
        deflate: DeflateOptions | None,
        listening: socket.socket | None = None,
        files: Mapping[str, WSGIApplication] | None = None,
    ) -> None:
        self._options = options
        self._upgrades = Upgrades(options, opener, deflate=deflate)
        self._http = HttpServer(
            host=options.host,
            port=options.port,
            path=options.path,
            upgrade=self._upgrade,
            app=options.app,
            files=files,
            tls=options.tls_options(),
            limits=options.limits,
            reuse_port=options.reuse_port,
            listening=listening,
            logger=log,
        )

    @property
    def port(self) -> int:
        """The port; with ``port=0`` the one the system picked, once started."""
        return self._http.port

    @property
    def host(self) -> str:
        """The address it listens on."""
        return self._http.host

    def url(self, path: str = "/", *, websocket: bool = True) -> str:
        """Return the address of ``path`` on this server."""
        scheme = ("ws" if websocket else "http") + ("s" if self._options.tls else "")
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.host)
        return f"{scheme}://{host if ':' not in host or host[0] == '[' else f'[{host}]'}:{self.port}{path}"

    def start(self) -> None:
        """Listen. Raises PortInUse or ConfigurationError. May switch greenlets."""
        self._http.start()
        self._upgrades.start()

    def drain(self) -> None:
        """Accept nobody any more."""
        self._upgrades.drain()
        self._http.stop_accepting()

    @property
    def open_channels(self) -> int:
        """Connections whose socket is not closed yet."""
        return self._upgrades.open_channels

    @property
    def requests(self) -> int:
        """Requests in progress, those that become a WebSocket included."""
        return self._http.unfinished

    def stop(self) -> None:
        """Close everything now, requests in progress included. Switches greenlets."""
        self.drain()
        self._http.stop(timeout=0)
        self._upgrades.stop()

    def close_all(self, code: int, reason: str) -> None:
        """Begin the close handshake on every channel."""
        self._upgrades.close_all(code, reason)

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        counters = {**self._http.counters, **self._upgrades.counters}
        return {"connections": self.open_channels, "in_http": self._http.active, "counters": counters}

    def _upgrade(self, request: Request, sock: Any, leftover: bytes) -> None:
        """In the HTTP server's greenlet: handshake, authenticate, open. Raises HandshakeError."""
        accepted = self._upgrades.accept(request)
        identity = self._upgrades.authenticate(request)
        self._upgrades.open(request, accepted, identity, sock, leftover)
