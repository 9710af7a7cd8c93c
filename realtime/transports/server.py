"""A WebSocket server: HTTP in front, handshake and authentication, then channels and their heartbeats.

What ``WebSocketTransport`` and the plain ``serve`` share.
"""

from __future__ import annotations

import logging
import re
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gevent

from realtime.codes import CloseCode
from realtime.config import Heartbeat, Limits
from realtime.drain import come_back
from realtime.errors import ConfigurationError, HandshakeError, Reject
from realtime.outbox import Outbox
from realtime.protocols.deflate import DeflateOptions
from realtime.protocols.handshake import Accepted, accept_handshake, check_allowed_origins
from realtime.protocols.http import Request
from realtime.protocols.websocket import Role, WebSocketProtocol
from realtime.routing import check_function
from realtime.transports.channel import Channel, ChannelOwner
from realtime.transports.heartbeat import Heartbeats
from realtime.transports.http import HttpServer, TLSOptions

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["Opening", "ServerOptions", "WebSocketServer"]

log = logging.getLogger("realtime.websocket")

_PATH = re.compile(r"/[^\s?#]*")

Authenticate = Callable[[Request], Any]


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What a WebSocket server can be told. Raises ConfigurationError for what cannot work."""

    host: str = "127.0.0.1"
    """Address to listen on; ``"0.0.0.0"`` for every IPv4 address of the machine, ``"::"`` for IPv6."""

    port: int = 8080
    """Port to listen on; 0 picks a free one, told by ``.port`` once started."""

    path: str | None = None
    """The path WebSockets connect to; None for every path."""

    app: WSGIApplication | None = None
    """Any WSGI application, for every other path; without one they are answered 404."""

    authenticate: Authenticate | None = None
    """Called with the request before the upgrade; returns the identity or raises ``Reject("why", status=401)``.
    May wait, ``Limits.handshake`` seconds at most."""

    allowed_origins: Sequence[str] | str | None = None
    """Web pages that may connect: None for those of the same host, ``"*"`` for all, or a list of origins such
    as ``"https://app.example"``. Programs that are no browsers send no Origin and pass."""

    tls: TLSOptions | tuple[str, str] | None = None
    """``(certfile, keyfile)``, PEM: then it is ``wss://`` and ``https://``."""

    compression: DeflateOptions | bool = False
    """permessage-deflate (RFC 7692) for clients that offer it."""

    reuse_port: bool = False
    """Let several processes share the port (``SO_REUSEPORT``)."""

    subprotocols: Sequence[str] = ()
    """Spoken here, most wanted first."""

    limits: Limits = field(default_factory=Limits)
    heartbeat: Heartbeat | None = field(default_factory=Heartbeat)
    """None: no pings; a client that vanishes is then noticed only when something is sent to it."""

    def __post_init__(self) -> None:
        if isinstance(self.port, bool) or not isinstance(self.port, int) or not 0 <= self.port <= 65535:
            raise ConfigurationError(f"port={self.port!r}: must be a whole number from 0 to 65535")
        if not isinstance(self.host, str) or not self.host:
            raise ConfigurationError(f"host={self.host!r}: must be an address or a name; '0.0.0.0' or '::' means all")
        if self.path is not None and (not isinstance(self.path, str) or not _PATH.fullmatch(self.path)):
            raise ConfigurationError(f"path={self.path!r}: must start with / and have no ?, # or spaces")
        if self.authenticate is not None:
            check_function(self.authenticate, 1, f"authenticate={self.authenticate!r}", "(request)")
        if not isinstance(self.compression, (bool, DeflateOptions)):
            raise ConfigurationError(f"compression={self.compression!r}: must be True, False or DeflateOptions")
        if self.app is not None and not callable(self.app):
            raise ConfigurationError(f"app={self.app!r}: must be a WSGI application")
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"limits={self.limits!r}: must be a realtime.Limits")
        if self.heartbeat is not None and not isinstance(self.heartbeat, Heartbeat):
            raise ConfigurationError(f"heartbeat={self.heartbeat!r}: must be a realtime.Heartbeat or None")
        if isinstance(self.subprotocols, str):
            raise ConfigurationError(f"subprotocols={self.subprotocols!r}: must be a list of names")
        if self.allowed_origins is not None and not isinstance(self.allowed_origins, Sequence):
            raise ConfigurationError(f"allowed_origins={self.allowed_origins!r}: must be None, '*' or a list")
        check_allowed_origins(self.allowed_origins)
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


class Opening(NamedTuple):
    """A connection that is about to open."""

    channel: Channel
    request: Request
    accepted: Accepted
    identity: Any


class Opener(Protocol):
    """Who the server's connections are for."""

    def owner_of(self, opening: Opening) -> tuple[ChannelOwner, Outbox]:
        """Return who gets the messages, and the outbox to send by."""

    def opened(self, owner: Any) -> None:
        """Begin: called once the answer to the handshake is on its way, before the first message."""


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
        self._opener = opener
        self._deflate = deflate
        self._heartbeats = Heartbeats()
        self._channels: set[Channel] = set()
        self._draining = False
        self.counters: Counter[str] = Counter()
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
        self._draining = False
        self._http.start()
        self._heartbeats.start()

    def drain(self) -> None:
        """Accept nobody any more."""
        self._draining = True
        self._http.stop_accepting()

    @property
    def open_channels(self) -> int:
        """Connections whose socket is not closed yet."""
        return len(self._channels)

    @property
    def requests(self) -> int:
        """Requests in progress, those that become a WebSocket included."""
        return self._http.unfinished

    def stop(self) -> None:
        """Close everything now, requests in progress included. Switches greenlets."""
        self.drain()
        self._http.stop(timeout=0)
        for channel in list(self._channels):
            channel.abort(CloseCode.GOING_AWAY, "server stopped")
        self._heartbeats.stop()

    def close_all(self, code: int, reason: str) -> Iterable[Channel]:
        """Begin the close handshake on every channel; return them."""
        channels = list(self._channels)
        for channel in channels:
            channel.close(code, reason)
        return channels

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        counters = {**self._http.counters, **self.counters}
        return {"connections": len(self._channels), "in_http": self._http.active, "counters": counters}

    def _upgrade(self, request: Request, sock: Any, leftover: bytes) -> None:
        """In the HTTP server's greenlet: handshake, authenticate, open. Raises HandshakeError."""
        options = self._options
        accepted = accept_handshake(
            request,
            subprotocols=options.subprotocols,
            allowed_origins=options.allowed_origins,
            deflate=self._deflate,
        )
        identity = self._authenticate(request)
        protocol = WebSocketProtocol(
            Role.SERVER,
            message_size=options.limits.message_size,
            fragments=options.limits.fragments,
            deflate=accepted.deflate,
        )
        channel = Channel(
            sock,
            protocol,
            limits=options.limits,
            heartbeat=options.heartbeat,
            heartbeats=self._heartbeats,
        )
        self._channels.add(channel)
        channel.on_end(partial(self._channels.discard, channel))
        owner, outbox = self._opener.owner_of(Opening(channel, request, accepted, identity))
        channel.attach(owner, outbox, accepted.response)
        self._opener.opened(owner)
        channel.begin(leftover)
        if self._draining:  # it came before the port was closed: served like those before it, and told the same
            channel.close(CloseCode.DRAINING, come_back())

    def _authenticate(self, request: Request) -> Any:
        """Ask the application who this is. Raises HandshakeError for no, too slow, or broken."""
        authenticate = self._options.authenticate
        if authenticate is None:
            return None
        deadline = gevent.Timeout.start_new(self._options.limits.handshake)
        try:
            return authenticate(request)
        except Reject as reject:
            self.counters["unauthenticated"] += 1
            raise HandshakeError(reject.status, reject.message) from None
        except gevent.GreenletExit:
            raise
        except BaseException as error:  # also a gevent.Timeout of its own
            if error is deadline:
                log.error("authenticate took longer than %g s", self._options.limits.handshake)
                raise HandshakeError(503, "Authentication took too long.") from None
            log.exception("authenticate failed")
            raise HandshakeError(500, "Authentication failed on the server's side.") from None
        finally:
            deadline.close()
