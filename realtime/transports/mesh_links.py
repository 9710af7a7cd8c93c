"""A node's links: strangers who come, addresses that are dialled, and the one open link to each other node."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import gevent
from gevent.pool import Group

from realtime.config import MeshOptions
from realtime.errors import ConfigurationError
from realtime.flusher import Flusher
from realtime.protocols.mesh import MeshProtocol
from realtime.protocols.mesh_frames import SessionEvent
from realtime.protocols.mesh_handshake import LIVELY, Hello, Reason, Role
from realtime.transports.mesh_dial import MeshAddress, connect, parse_address, peer_address
from realtime.transports.mesh_link import Link
from realtime.transports.mesh_tls import MeshTLS

__all__ = ["LinkUser", "Links"]

log = logging.getLogger("realtime.mesh")

_LOG_INTERVAL = 1.0  # seconds between two lines about strangers that were refused
_EXPECTED = frozenset({Reason.DUPLICATE, Reason.SELF, Reason.LEAVING})  # ends of a link that are no trouble
_REASONS = frozenset(value for name, value in vars(Reason).items() if name.isupper())


class LinkUser(Protocol):
    """Who speaks over the links. Only ``settle`` may wait."""

    def silence(self, node: str) -> float | None:
        """Return the seconds since a linked node was heard; None if there is no link to it."""

    def link_started(self, hello: Hello, dialled: str | None) -> None:
        """There is a link to a node now; one that there was is void."""

    def link_ended(self, node: str, reason: str) -> None:
        """There is no link to a node any more."""

    def dial_ended(self, address: str, reason: str, node: str | None) -> None:
        """A dial led to no link."""

    def received(self, node: str, event: SessionEvent) -> None:
        """A frame came. Raise MeshError to end the link."""

    def alive(self, node: str) -> None:
        """There was a sign of life, or we do not listen."""

    def settle(self, node: str) -> None:
        """All that was read of a node has been told: do what takes time."""


class Links:
    """Accepts, dials, and keeps the one link to each node. The greenlets of all links belong to it.

    :param hello: says what we are, with a fresh nonce each time.
    :param secret: the key of the proofs.
    :param refused: told an address where nobody listens.
    """

    def __init__(
        self,
        user: LinkUser,
        hello: Callable[[bytes], Hello],
        secret: bytes,
        options: MeshOptions,
        tls: MeshTLS | None,
        flusher: Flusher,
        counters: Counter[str],
        refused: Callable[[str], None],
    ) -> None:
        self._user = user
        self._hello = hello
        self._secret = secret
        self._options = options
        self._tls = tls
        self._flusher = flusher
        self._counters = counters
        self._refused = refused
        self._open: dict[str, Link] = {}
        self._links: set[Link] = set()
        self._greeting = 0  # accepted connections in their TLS handshake
        self._addresses: dict[bytes, str] = {}  # of our dials, by the nonce of their hello
        self._reported: dict[str, str] = {}  # the last trouble with an address
        self._greenlets = Group()
        self._quiet_until = 0.0
        self.stopping = False
        """Take and make no more links."""

    def __len__(self) -> int:
        return len(self._links)

    def get(self, node: str) -> Link | None:
        """Return the open link to a node."""
        return self._open.get(node)

    def all_open(self) -> list[Link]:
        """Return the open links."""
        return list(self._open.values())

    def stop(self) -> None:
        """End every link in peace, within ``MeshOptions.farewell``. Switches greenlets."""
        self.stopping = True
        for link in tuple(self._links):
            link.part(Reason.LEAVING, "stopping")
        self._greenlets.join(self._options.farewell)
        self._greenlets.kill()

    # Coming and going ----------------------------------------------------------------------------------

    def accepted(self, sock: Any, address: tuple[Any, ...]) -> None:
        """In the listener's greenlet: serve a stranger until it has proved itself, and then a node."""
        strangers = self._greeting + sum(1 for link in self._links if not link.was_open and not link.dialled)
        if self.stopping or strangers >= self._options.handshakes:
            self._counters["refused_busy"] += 1
            sock.close()
            return
        peer = peer_address(sock, address)
        self._greenlets.spawn(self._serve_stranger, sock, peer, encrypted=self._tls is not None and not peer.is_unix)

    def _serve_stranger(self, sock: Any, address: MeshAddress, *, encrypted: bool) -> None:
        if encrypted:
            assert self._tls is not None
            self._greeting += 1
            try:
                with gevent.Timeout(self._options.authentication, OSError("TLS took too long")):
                    sock = self._tls.wrap(sock, server_side=True)
            except (OSError, ConfigurationError) as error:  # also files that have gone since the start
                self._counters["refused_tls"] += 1
                self._log_seldom("refused a link from %s: %s", address, error)
                sock.close()
                return
            finally:
                self._greeting -= 1
        self._serve(self._make_link(sock, Role.LISTENER, address))

    def dial(self, address: str) -> None:
        """Connect to an address in a greenlet of its own; ``dial_ended`` or ``link_started`` follows."""
        if self.stopping:
            self._user.dial_ended(address, Reason.LEAVING, None)
        else:
            self._greenlets.spawn(self._dial, address)

    def _dial(self, address: str) -> None:
        try:
            target = parse_address(address)
            sock = connect(target, self._options.authentication, self._tls)
        except (OSError, ConfigurationError) as error:  # others may tell what is no address
            self._counters["dial_failures"] += 1
            if isinstance(error, ConnectionRefusedError):
                self._refused(address)
            level = logging.INFO if isinstance(error, FileNotFoundError) else logging.WARNING  # its socket: it has left
            self._report(address, getattr(error, "strerror", None) or str(error), level)
            self._user.dial_ended(address, Reason.LOST, None)
            return
        link = self._make_link(sock, Role.DIALLER, target)
        nonce = link.protocol.hello.nonce
        self._addresses[nonce] = address
        try:
            self._serve(link)
        finally:
            self._addresses.pop(nonce, None)
        if link.was_open:
            self._reported.pop(address, None)
            return
        peer = link.protocol.peer
        if link.reason == Reason.SELF:
            log.info("%s is this node itself", address)
        elif link.reason not in _EXPECTED:
            self._report(address, f"refused: {link.reason} ({link.details})")
        self._user.dial_ended(address, link.reason or Reason.LOST, peer.node if peer is not None else None)

    def _make_link(self, sock: Any, role: Role, address: MeshAddress) -> Link:
        hello = self._hello(secrets.token_bytes(16))
        protocol = MeshProtocol(role, hello, secret=self._secret, message_size=self._options.message_size)
        link = Link(sock, protocol, address, self, options=self._options, flusher=self._flusher)
        self._links.add(link)
        return link

    def _serve(self, link: Link) -> None:
        """Run a link to its end, and log how it ended. Switches greenlets."""
        try:
            link.run()
        finally:
            self._links.discard(link)
        self._log_end(link)

    # What links tell -----------------------------------------------------------------------------------

    def authenticated(self, link: Link) -> str | None:
        """A node has proved itself. Say why it should not be linked through this one, or None: it may."""
        if self.stopping:
            return Reason.LEAVING
        current = self._open.get(link.peer.node)
        silence = self._user.silence(link.peer.node) if current is not None else None
        if current is None or silence is None:
            return None
        if current.peer.instance == link.peer.instance:
            return Reason.DUPLICATE if silence <= self._options.suspect else None
        # a node that was started anew is silent on its old link, if its system has not ended that already
        return Reason.NODE_ID if silence <= LIVELY * self._options.ping else None

    def started(self, link: Link) -> None:
        """The one link to a node: an older one to it is void."""
        node = link.peer.node
        current = self._open.get(node)
        self._open[node] = link  # before the old one ends, which is then nobody's end
        if current is not None:
            restarted = current.peer.instance != link.peer.instance
            if restarted:
                log.warning("node %s was started anew", node)
            current.part(Reason.REPLACED, "restarted" if restarted else "linked anew")
        log.info("linked with node %s (%s %s)", node, "dialled" if link.dialled else "accepted", link.address)
        self._user.link_started(link.peer, self._addresses.get(link.protocol.hello.nonce))

    def received(self, link: Link, event: SessionEvent) -> None:
        """A frame came; one of a link that has been replaced is of no use."""
        node = link.peer.node
        if self._open.get(node) is link:
            self._user.received(node, event)

    def alive(self, link: Link) -> None:
        """A sign of life."""
        if self._open.get(link.peer.node) is link:
            self._user.alive(link.peer.node)

    def settle(self, link: Link) -> None:
        """Let the user do what takes time."""
        self._user.settle(link.peer.node)

    def ended(self, link: Link) -> None:
        """A link is over. May be called in the event loop."""
        reason = link.reason or Reason.LOST
        kind = "links_ended" if link.was_open else "refused"
        self._counters[f"{kind}_{reason if reason in _REASONS else 'other'}"] += 1
        peer = link.protocol.peer
        if peer is not None and self._open.get(peer.node) is link:
            del self._open[peer.node]
            self._user.link_ended(peer.node, reason)

    # Log -----------------------------------------------------------------------------------------------

    def _report(self, address: str, trouble: str, level: int = logging.WARNING) -> None:
        """Once, not at every attempt."""
        if self._reported.get(address) != trouble:
            self._reported[address] = trouble
            if len(self._reported) > self._options.known_nodes:
                self._reported.pop(next(iter(self._reported)))
            log.log(level, "cannot link with %s: %s; trying again", address, trouble)

    def _log_end(self, link: Link) -> None:
        if link.was_open:
            level = logging.INFO if link.reason in (*_EXPECTED, Reason.REPLACED) else logging.WARNING
            log.log(level, "the link with node %s ended: %s (%s)", link.peer.node, link.reason, link.details)
        elif link.reason in _EXPECTED:
            log.debug("no second link with %s: %s", link.address, link.reason)
        elif not link.dialled:
            self._log_seldom("refused a link from %s: %s (%s)", link.address, link.reason, link.details)

    def _log_seldom(self, text: str, *args: object) -> None:
        """At most one line a second: strangers must not fill the log. What is left out has been counted."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _LOG_INTERVAL
            log.warning(text, *args)
