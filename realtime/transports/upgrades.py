"""From a request to an open WebSocket: handshake, authentication, channel; and all the channels of one server.

What a server of our own and one that hosts us share. Where the requests and sockets come from is theirs to know.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

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
from realtime.routing import check_function, decided
from realtime.transports.channel import Channel, ChannelOwner
from realtime.transports.heartbeat import Heartbeats

__all__ = ["Authenticate", "Opener", "Opening", "UpgradeOptions", "Upgrades", "check_path"]

log = logging.getLogger("realtime.websocket")

_PATH = re.compile(r"/[^\s?#]*")

Authenticate = Callable[[Request], Any]


def check_path(path: str) -> None:
    """Raise ConfigurationError unless WebSockets can connect to this path."""
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ConfigurationError(f"path={path!r}: must start with / and have no ?, # or spaces")


@dataclass(frozen=True, kw_only=True)
class UpgradeOptions:
    """Who may connect, and what is spoken. Raises ConfigurationError for what cannot work."""

    authenticate: Authenticate | None = None
    """Called with the request before the upgrade; returns the identity or raises ``Reject("why", status=401)``.
    May wait, ``Limits.handshake`` seconds at most."""

    allowed_origins: Sequence[str] | str | None = None
    """Web pages that may connect: None for those of the same host, ``"*"`` for all, or a list of origins such
    as ``"https://app.example"``. Programs that are no browsers send no Origin and pass."""

    compression: DeflateOptions | bool = False
    """permessage-deflate (RFC 7692) for clients that offer it."""

    subprotocols: Sequence[str] = ()
    """Spoken here, most wanted first."""

    limits: Limits = field(default_factory=Limits)
    heartbeat: Heartbeat | None = field(default_factory=Heartbeat)
    """None: no pings; a client that vanishes is then noticed only when something is sent to it."""

    def __post_init__(self) -> None:
        if self.authenticate is not None:
            check_function(self.authenticate, 1, f"authenticate={self.authenticate!r}", "(request)")
        if not isinstance(self.compression, (bool, DeflateOptions)):
            raise ConfigurationError(f"compression={self.compression!r}: must be True, False or DeflateOptions")
        if not isinstance(self.limits, Limits):
            raise ConfigurationError(f"limits={self.limits!r}: must be a realtime.Limits")
        if self.heartbeat is not None and not isinstance(self.heartbeat, Heartbeat):
            raise ConfigurationError(f"heartbeat={self.heartbeat!r}: must be a realtime.Heartbeat or None")
        if isinstance(self.subprotocols, str):
            raise ConfigurationError(f"subprotocols={self.subprotocols!r}: must be a list of names")
        if self.allowed_origins is not None and not isinstance(self.allowed_origins, Sequence):
            raise ConfigurationError(f"allowed_origins={self.allowed_origins!r}: must be None, '*' or a list")
        check_allowed_origins(self.allowed_origins)


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


class Upgrades:
    """Upgrades requests, and keeps the channels.

    :param opener: makes the owner of each connection.
    :param deflate: what to agree on where the client offers compression; None for never.
    """

    def __init__(self, options: UpgradeOptions, opener: Opener, *, deflate: DeflateOptions | None) -> None:
        self._options = options
        self._opener = opener
        self._deflate = deflate
        self._heartbeats = Heartbeats()
        self._channels: set[Channel] = set()
        self._draining = False
        self.counters: Counter[str] = Counter()

    @property
    def open_channels(self) -> int:
        """Connections whose socket is not closed yet."""
        return len(self._channels)

    def start(self) -> None:
        """Look after the heartbeats, in the current thread's event loop."""
        self._draining = False
        self._heartbeats.start()

    def drain(self) -> None:
        """Tell whoever still comes to come back."""
        self._draining = True

    def stop(self) -> None:
        """Close every socket now. Switches greenlets."""
        self._draining = True
        for channel in list(self._channels):
            channel.abort(CloseCode.GOING_AWAY, "server stopped")
        self._heartbeats.stop()

    def close_all(self, code: int, reason: str) -> None:
        """Begin the close handshake on every channel."""
        for channel in list(self._channels):
            channel.close(code, reason)

    def accept(self, request: Request) -> Accepted:
        """Check the handshake. Raises HandshakeError."""
        options = self._options
        return accept_handshake(
            request,
            subprotocols=options.subprotocols,
            allowed_origins=options.allowed_origins,
            deflate=self._deflate,
        )

    def authenticate(self, request: Request, *, interruptible: bool = True) -> Any:
        """Ask the application who this is. Raises HandshakeError for no, too slow, or broken. May switch greenlets.

        :param interruptible: False in a thread without an event loop: nothing can end the asking there.
        """
        authenticate = self._options.authenticate
        if authenticate is None:
            return None
        deadline = gevent.Timeout.start_new(self._options.limits.handshake) if interruptible else None
        try:
            return decided(authenticate(request), "authenticate")
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
            if deadline is not None:
                deadline.close()

    def open(
        self,
        request: Request,
        accepted: Accepted,
        identity: Any,
        sock: Any,
        leftover: bytes,
        on_end: Callable[[], None] | None = None,
    ) -> Channel:
        """Make the connection and answer the handshake. In the thread that ``start`` was called in; never waits.

        :param sock: the channel owns it from now on.
        :param leftover: what was received after the request's head.
        :param on_end: called once the socket has been closed, which may be before this returns.
        """
        options = self._options
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
        if on_end is not None:
            channel.on_end(on_end)
        owner, outbox = self._opener.owner_of(Opening(channel, request, accepted, identity))
        channel.attach(owner, outbox, accepted.response)
        if not channel.is_open:  # the peer was gone before it had the answer
            return channel
        self._opener.opened(owner)
        channel.begin(leftover)
        if self._draining:  # it came before the port was closed: served like those before it, and told the same
            channel.close(CloseCode.DRAINING, come_back())
        return channel
