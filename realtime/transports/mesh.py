"""Nodes find each other and act together: links, who is there, and events between nodes."""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any
from uuid import uuid4

import gevent
import gevent.socket
from gevent.event import Event
from gevent.pool import Group

from realtime.config import MeshOptions
from realtime.errors import BadMessage, ConfigurationError, MessageTooBig, UnknownClient
from realtime.message import Wire
from realtime.outbox import stall
from realtime.protocols.mesh import NAME_LENGTH, Hello, MeshProtocol, Reason, Role, event_frame
from realtime.protocols.mesh_codec import HANDLER_FAILED, MESH_EVENTS
from realtime.threads import HomeThread, on_home_thread
from realtime.toolkit import Sendable
from realtime.transports.base import Transport
from realtime.transports.listener import Address, Listener
from realtime.transports.mesh_dial import MeshAddress, connect, is_loopback, parse_address
from realtime.transports.mesh_link import Link
from realtime.transports.mesh_node import Node, NodeConnection

__all__ = ["PeerMeshTransport"]

log = logging.getLogger("realtime.mesh")

_LOG_INTERVAL = 1.0  # seconds between two lines about strangers that were refused
_EXPECTED = frozenset({Reason.DUPLICATE, Reason.SELF, Reason.LEAVING})  # ends of a link that are no trouble


class PeerMeshTransport(Transport):
    """A network between nodes, with nothing else installed: each listens, and connects to its ``peers``.

    Nodes exchange events named ``mesh:*``, which the others handle with ``kernel.on("mesh:price")``; there
    ``context.id`` is the sending node and ``toolkit.reply`` answers it. ``mesh:joined`` and ``mesh:left`` tell
    of nodes coming and going, with ``{"node", "reason", "details", ...}`` as payload; to a node that stops, the others
    leave.

    :param port: where to listen; 0 picks a free one, told by ``mesh.port`` once started.
    :param host: the address to listen on.
    :param peers: nodes to connect to: ``"host:port"``, ``("host", port)`` or ``"mesh://host:port"``. One that is
        not there is tried again and again; this node's own address among them does no harm.
    :param node_id: this node's name, unique in the cluster; a random one if not given.
    :param cluster: nodes of another cluster are refused.
    :param secret: what all nodes of the cluster know. Without it anybody who reaches the port is a node.
    :param advertise: ``"host:port"`` at which others reach this node, if not at ``host`` and ``port``.
    :param insecure: listen beyond loopback without a secret.
    :param options: times and sizes.
    :raises ConfigurationError: an option that cannot work; from ``kernel.start()`` where ``host`` can be reached from
        other machines and there is no ``secret``.

    Links are not encrypted: the secret keeps strangers out, not listeners on the wire.
    """

    name = "mesh"

    def __init__(
        self,
        port: int = 9090,
        *,
        host: str = "127.0.0.1",
        peers: Iterable[str | tuple[str, int]] = (),
        node_id: str | None = None,
        cluster: str = "default",
        secret: str | bytes | None = None,
        advertise: str | tuple[str, int] | None = None,
        insecure: bool = False,
        options: MeshOptions = MeshOptions(),  # noqa: B008  # frozen
    ) -> None:
        if isinstance(peers, str):
            raise ConfigurationError(f"peers={peers!r}: must be a list of addresses")
        if not isinstance(options, MeshOptions):
            raise ConfigurationError(f"options={options!r}: must be a realtime.MeshOptions")
        self.node_id = _checked_name("node_id", node_id if node_id is not None else uuid4().hex)
        self.cluster = _checked_name("cluster", cluster)
        self.options = options
        self.counters: Counter[str] = Counter()
        self._listener = Listener(host, port, self._accepted, name="mesh", logger=log)
        self._wanted_port = port
        self._peers = tuple(dict.fromkeys(parse_address(peer) for peer in peers))
        self._advertise = str(parse_address(advertise, "advertise")) if advertise is not None else None
        self._secret = _key(secret)
        self._insecure = insecure
        self._wire = Wire(MESH_EVENTS, self._finish)
        self._home = HomeThread()
        self._instance = b""
        self._nodes: dict[str, NodeConnection] = {}
        self._links: set[Link] = set()
        self._behind: dict[MeshAddress, str] = {}  # which node was found at an address
        self._own_dials: dict[bytes, bool] = {}  # nonces of our dials: whether one came back to us
        self._greenlets = Group()
        self._stopping = Event()
        self._quiet_until = 0.0

    @property
    def port(self) -> int:
        """The port; with ``port=0`` the one the system picked, once started."""
        return self._listener.port

    @property
    def address(self) -> str | None:
        """Where other nodes connect to; None where that is not known, as with ``host="0.0.0.0"``."""
        host = self._listener.host
        if self._advertise is None and host in ("0.0.0.0", "::"):
            return None
        return self._advertise or str(MeshAddress(host, self.port))

    # Use ---------------------------------------------------------------------------------------------

    @on_home_thread
    def nodes(self) -> list[Node]:
        """Return the other nodes that are linked with this one now, by id."""
        suspect = self.options.suspect
        return [
            Node(
                id=id_,
                address=link.peer.address,
                state="suspect" if link.silence > suspect else "up",
                since=connection.connected_at,
                dialled=link.dialled,
            )
            for id_, connection in sorted(self._nodes.items())
            if (link := connection.link) is not None
        ]

    @on_home_thread
    def send(self, node_id: str, message: Sendable, *, overflow: str = "close", key: str | None = None) -> None:
        """Send an event to one node. Parks up to 1 s while its outbox is crowded: switches greenlets.

        :param overflow: if it does not fit: ``"close"`` the link, ``"drop_oldest"`` or ``"conflate"`` by ``key``, as
            in ``kernel.send``.
        :raises UnknownClient: no such node is linked.
        :raises MessageTooBig: larger than ``MeshOptions.message_size``.
        :raises BadMessage: not named ``mesh:*``, or a payload that cannot be encoded.
        """
        frame = self.hub.outbound(message, overflow=overflow, key=key).finished(self._wire)
        outbox = self._linked(node_id).outbox
        if not outbox.has_room(len(frame)):
            outbox.wait_for_room(self.hub.limits.park_timeout, len(frame))
            outbox = self._linked(node_id).outbox
        self.counters["sent"] += 1
        outbox.put(frame)

    @on_home_thread
    def broadcast(self, message: Sendable, *, overflow: str = "close", key: str | None = None) -> int:
        """Send an event to every linked node; return to how many. Not handled on this one.

        Where nodes' outboxes are crowded the caller stalls, 5 ms at most: only then does this switch.

        :raises MessageTooBig, BadMessage: see ``send``.
        """
        frame = self.hub.outbound(message, overflow=overflow, key=key).finished(self._wire)
        outboxes = [node.outbox for node in tuple(self._nodes.values()) if node.link is not None]
        for outbox in outboxes:
            outbox.put(frame)
        self.counters["sent"] += len(outboxes)
        crowded = [outbox for outbox in outboxes if outbox.size > outbox.park_at]
        if crowded:
            self.counters["stalls"] += 1
            stall(crowded, self.hub.limits.stall)
        return len(outboxes)

    def _linked(self, node_id: str) -> NodeConnection:
        connection = self._nodes.get(node_id)
        if connection is None or connection.link is None:
            raise UnknownClient(f"no node {node_id!r} is linked")
        return connection

    def _finish(self, body: bytes) -> bytes:
        """From body to frame, for the wire."""
        if len(body) > self.options.message_size:
            raise MessageTooBig(
                f"a message of {len(body)} bytes; nodes take {self.options.message_size} (MeshOptions.message_size)"
            )
        return event_frame(body)

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        return {
            "name": self.name,
            "node": self.node_id,
            "nodes": sum(1 for connection in self._nodes.values() if connection.link is not None),
            "links": len(self._links),
            "counters": {**self._listener.counters, **self.counters},
        }

    # Lifecycle ---------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Listen, and begin to connect to the peers. Switches greenlets where ``host`` is a name.

        :raises PortInUse: something else listens on the port.
        :raises ConfigurationError: others could reach the port and there is no secret.
        """
        host = self._listener.host
        if not self._secret and not self._insecure and not is_loopback(host):
            raise ConfigurationError(
                f"host={host!r}: other machines can reach this mesh; give all its nodes the same secret='...', "
                "or say insecure=True"
            )
        self._listener.port = self._wanted_port
        self._instance = secrets.token_bytes(16)
        self._stopping.clear()
        self._listener.start()
        self._home.settle()
        log.info("mesh node %s of cluster %r listens on %s:%d", self.node_id, self.cluster, host, self.port)
        for address in self._peers:
            self._greenlets.spawn(self._keep_dialling, address)

    def on_drain(self) -> None:
        """Take and make no more links; those that are there stay while handlers finish."""
        self._stopping.set()
        self._listener.stop_accepting()

    def on_stop(self) -> None:
        """Say goodbye on every link, and release everything. Switches greenlets."""
        self.on_drain()
        for link in tuple(self._links):
            link.part(Reason.LEAVING, "stopping")
        self._greenlets.join(self.options.farewell)
        self._greenlets.kill()
        if any(connection.busy for connection in self._nodes.values()):
            self.hub.workers.wait_quiet(self.options.farewell)  # handlers of mesh:left
        self._nodes.clear()
        self._own_dials.clear()
        self._home.leave()

    # Links -------------------------------------------------------------------------------------------

    def _accepted(self, sock: gevent.socket.socket, address: Address) -> None:
        """In the listener's greenlet: serve a stranger until it has proved itself, and then a node."""
        if self._stopping.is_set() or self._strangers() >= self.options.handshakes:
            self.counters["refused_busy"] += 1
            sock.close()
            return
        link = self._make_link(sock, Role.LISTENER, MeshAddress(str(address[0]), int(address[1])))
        self._greenlets.spawn(self._serve, link)

    def _strangers(self) -> int:
        return sum(1 for link in self._links if not link.was_open and not link.dialled)

    def _make_link(self, sock: gevent.socket.socket, role: Role, address: MeshAddress) -> Link:
        hello = Hello(self.node_id, self.cluster, self._instance, secrets.token_bytes(16), self.address)
        protocol = MeshProtocol(role, hello, secret=self._secret, message_size=self.options.message_size)
        link = Link(sock, protocol, address, self, options=self.options, flusher=self.hub.flusher)
        self._links.add(link)
        return link

    def _serve(self, link: Link) -> None:
        """Run a link to its end, and log how it ended. Switches greenlets."""
        try:
            link.run()
        finally:
            self._links.discard(link)
        self._log_end(link)

    def _keep_dialling(self, address: MeshAddress) -> None:
        """The greenlet of one peer: connect, serve the link, wait a while, again."""
        options = self.options
        delay = options.backoff
        reported = ""
        while not self._stopping.is_set():
            trouble = ""
            self.counters["dials"] += 1
            try:
                link = self._make_link(connect(address, options.authentication), Role.DIALLER, address)
            except OSError as error:
                self.counters["dial_failures"] += 1
                trouble = error.strerror or str(error)
            else:
                nonce = link.protocol.hello.nonce
                self._own_dials[nonce] = False
                self._serve(link)
                if self._own_dials.pop(nonce, False):
                    log.info("peer %s is this node itself", address)
                    return
                if link.was_open:
                    delay = options.backoff
                    reported = ""
                elif link.reason not in _EXPECTED:
                    trouble = f"refused: {link.reason} ({link.details})"
            if trouble and trouble != reported:
                reported = trouble  # once, not at every attempt
                log.warning("cannot link with peer %s: %s; trying again", address, trouble)
            if self._stopping.wait(delay * random.uniform(0.5, 1.0)):
                return
            delay = min(2 * delay, options.backoff_max)
            if self._wait_while_linked(address):
                delay = options.backoff

    def _wait_while_linked(self, address: MeshAddress) -> bool:
        """Wait until there is no link to the node at ``address``; tell whether there was one. Switches."""
        waited = False
        while not self._stopping.is_set():
            connection = self._nodes.get(self._behind.get(address, ""))
            if connection is None or connection.link is None:
                break
            waited = True
            connection.unlinked.wait()
        return waited

    # What links tell ---------------------------------------------------------------------------------

    def authenticated(self, link: Link) -> str | None:
        """A node has proved itself. Say why it should not be linked through this one, or None: it may."""
        if link.dialled:
            self._behind[link.address] = link.peer.node
        if self._stopping.is_set():
            return Reason.LEAVING
        connection = self._nodes.get(link.peer.node)
        current = connection.link if connection is not None else None
        if (
            current is not None
            and current.peer.instance == link.peer.instance
            and current.silence <= self.options.suspect
        ):
            return Reason.DUPLICATE
        return None

    def started(self, link: Link) -> None:
        """The one link to a node: an older one to it is void."""
        node = link.peer.node
        connection = self._connection_of(node)
        if connection.link is not None:
            restarted = connection.link.peer.instance != link.peer.instance
            if restarted:
                log.warning("node %s was started anew, or its id was given twice", node)
            connection.link.part(Reason.REPLACED, "restarted" if restarted else "linked anew")
        connection.linked(link)
        self.counters["links_started"] += 1
        how = "dialled" if link.dialled else "accepted"
        log.info("node %s joined (%s %s)", node, how, link.address)
        connection.tell("mesh:joined", how, "", address=link.peer.address)

    def _connection_of(self, node: str) -> NodeConnection:
        """Return the node's connection; forget nodes that are gone for good meanwhile."""
        connection = self._nodes.get(node)
        if connection is None:
            for id_ in [id_ for id_, known in self._nodes.items() if known.idle]:
                del self._nodes[id_]
            connection = self._nodes[node] = NodeConnection(self.hub, node, self._wire)
        return connection

    def event_received(self, link: Link, body: bytes) -> None:
        """A node sent an event."""
        connection = self._nodes[link.peer.node]
        try:
            message = MESH_EVENTS.decode(body)
        except BadMessage as error:
            self.counters["refused_bad_message"] += 1
            self._log_seldom("node %s sent what is no message: %s", connection.id, error.message)
            return
        if message.type == HANDLER_FAILED:
            self.counters["remote_failures"] += 1
            self._log_seldom("a handler on node %s failed: %s", connection.id, message.payload)
            return
        self.counters["received"] += 1
        connection.take(message)

    def ended(self, link: Link) -> None:
        """A link is over; if it was the node's, the node has left. May be called in the event loop."""
        reason = link.reason or Reason.LOST
        peer = link.protocol.peer
        if reason == Reason.SELF and peer is not None and peer.nonce in self._own_dials:
            self._own_dials[peer.nonce] = True
        kind = "links_ended" if link.was_open else "refused"
        self.counters[f"{kind}_{reason if reason in _REASONS else 'other'}"] += 1
        connection = self._nodes.get(peer.node) if peer is not None else None
        if connection is not None and connection.link is link:
            connection.lost()
            connection.tell("mesh:left", reason, link.details)

    # Log ---------------------------------------------------------------------------------------------

    def _log_end(self, link: Link) -> None:
        if link.was_open:
            level = logging.INFO if link.reason in (*_EXPECTED, Reason.REPLACED) else logging.WARNING
            log.log(level, "node %s left: %s (%s)", link.peer.node, link.reason, link.details)
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


_REASONS = frozenset(value for name, value in vars(Reason).items() if name.isupper())


def _checked_name(option: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH or not value.isprintable():
        raise ConfigurationError(f"{option}={value!r}: must be 1 to {NAME_LENGTH} printable characters")
    return value


def _key(secret: str | bytes | None) -> bytes:
    """Return the key of the proofs: empty where there is no secret, as everybody may know it then."""
    if secret is None:
        return b""
    if not isinstance(secret, (str, bytes)) or not secret:
        raise ConfigurationError("secret=...: must be a non-empty text or bytes, or None")
    data = secret.encode() if isinstance(secret, str) else secret
    return hashlib.sha256(b"realtime mesh key\0" + data).digest()
