"""Nodes find each other and act as one kernel: the transport that puts the mesh's parts together."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from realtime.cluster_node import LocalNode
from realtime.config import MeshOptions
from realtime.errors import ConfigurationError, MessageTooBig, UnknownClient
from realtime.message import Wire
from realtime.protocols.mesh_codec import MESH_EVENTS
from realtime.protocols.mesh_core import MeshCore
from realtime.protocols.mesh_filters import RouteFilter, Routes
from realtime.protocols.mesh_handshake import NAME_LENGTH, Hello
from realtime.threads import HomeThread, on_home_thread
from realtime.toolkit import Sendable
from realtime.transports.base import Transport
from realtime.transports.listener import Listener
from realtime.transports.mesh_cluster import MeshCluster
from realtime.transports.mesh_dial import UNIX, MeshAddress, is_loopback, parse_address
from realtime.transports.mesh_discovery import UnixDirectory, parse_discover
from realtime.transports.mesh_engine import Engine
from realtime.transports.mesh_links import Links
from realtime.transports.mesh_news import NodeNews
from realtime.transports.mesh_node import Node, NodeConnection
from realtime.transports.mesh_tls import MeshTLS

__all__ = ["PeerMeshTransport"]

log = logging.getLogger("realtime.mesh")

class PeerMeshTransport(Transport):
    """Makes any number of nodes one kernel, with nothing else installed: each listens, and connects to the others.

    A broadcast to a room reaches its members on every node, ``send``, ``call`` and ``disconnect`` reach a client
    wherever it is, and rooms and presence are those of all nodes. Knowing one node is enough: the rest is told.
    What a node sent before a link broke arrives after it was made anew, once and in order, while
    ``MeshOptions.resend`` holds it; beyond that the loss is counted, logged and told (``frames_lost``).

    Nodes also exchange events named ``mesh:*``, which the others handle with ``kernel.on("mesh:price")``; there
    ``context.id`` is the sending node and ``toolkit.reply`` answers it. Told by the mesh itself, with
    ``{"node", ...}`` as payload:

    ============================= ===========================================================================
    ``mesh:joined``               a node is there; ``address``
    ``mesh:suspect``              nothing was heard of it for ``MeshOptions.suspect``
    ``mesh:recovered``            it was heard again
    ``mesh:left``                 it has stopped, or was not heard of for ``MeshOptions.down`` by anybody;
                                  ``reason``: ``"leaving"``, ``"down"`` or ``"restarted"``. Its clients went before.
    ``mesh:client-connected``     a client of another node came; ``id``
    ``mesh:client-disconnected``  it went, or its node did; ``id``
    ============================= ===========================================================================

    :param port: where to listen; 0 picks a free one, told by ``mesh.port`` once started; None: nowhere, which needs
        ``discover`` or ``peers``.
    :param host: the address to listen on.
    :param peers: nodes to connect to: ``"host:port"``, ``("host", port)`` or ``"mesh://host:port"``. One that is
        not there is tried again and again; this node's own address among them does no harm.
    :param node_id: this node's name, unique in the cluster; a random one if not given.
    :param cluster: nodes of another cluster are refused.
    :param secret: what all nodes of the cluster know. Without it anybody who reaches the port is a node.
    :param tls: a :class:`MeshTLS`: certificate, key and authority for links between machines.
    :param discover: ``"unix:/directory"``: nodes of this machine find each other through sockets in a directory of
        mode 0700, with no ports to agree on. Workers of a WorkerPool or of gunicorn have one without being told.
    :param advertise: ``"host:port"`` at which others reach this node, if not at ``host`` and ``port``.
    :param forward: patterns (``fnmatch``): only broadcasts whose event or room fits one go to other nodes. What is for
        one client, and events of nodes, always do.
    :param drop: patterns: broadcasts whose event or room fits one do not.
    :param routes: for some nodes further filters, by a pattern of node ids: ``{"edge-*": RouteFilter(("chat:*",))}``.
    :param insecure: listen beyond loopback without a secret or TLS.
    :param options: times and sizes.
    :raises ConfigurationError: an option that cannot work; from ``kernel.start()`` where ``host`` can be reached from
        other machines and there is neither ``secret`` nor ``tls``.

    Without ``tls`` links are not encrypted: the secret keeps strangers out, not listeners on the wire.
    """

    name = "mesh"
    joins_nodes = True

    def __init__(
        self,
        port: int | None = 9090,
        *,
        host: str = "127.0.0.1",
        peers: Iterable[str | tuple[str, int]] = (),
        node_id: str | None = None,
        cluster: str = "default",
        secret: str | bytes | None = None,
        tls: MeshTLS | None = None,
        discover: str | None = None,
        advertise: str | tuple[str, int] | None = None,
        forward: Iterable[str] = ("*",),
        drop: Iterable[str] = (),
        routes: Mapping[str, RouteFilter] | None = None,
        insecure: bool = False,
        options: MeshOptions = MeshOptions(),  # noqa: B008  # frozen
    ) -> None:
        if isinstance(peers, str):
            raise ConfigurationError(f"peers={peers!r}: must be a list of addresses")
        if not isinstance(options, MeshOptions):
            raise ConfigurationError(f"options={options!r}: must be a realtime.MeshOptions")
        if tls is not None and not isinstance(tls, MeshTLS):
            raise ConfigurationError(f"tls={tls!r}: must be a realtime.MeshTLS")
        self.node_id = _checked_name("node_id", node_id if node_id is not None else uuid4().hex)
        self.cluster = _checked_name("cluster", cluster)
        self.options = options
        self._wanted_port = port
        self._host = host
        self._peers = tuple(dict.fromkeys(str(parse_address(peer)) for peer in peers))
        self._directory = parse_discover(discover)
        if port is None and self._directory is None and not self._peers:
            raise ConfigurationError("port=None: then the mesh needs discover='unix:...' or peers=[...]")
        self._listener = Listener(host, port, self._accepted, name="mesh", logger=log) if port is not None else None
        self._advertise = str(parse_address(advertise, "advertise")) if advertise is not None else None
        self._routes = Routes(RouteFilter(forward, drop), _checked_routes(routes))
        self._secret = _key(secret)
        self._tls = tls
        self._insecure = insecure
        self._wire = Wire(MESH_EVENTS, self._fitting)
        self._home = HomeThread()
        self._news: NodeNews | None = None
        self._discovery: UnixDirectory | None = None
        self._unix: Listener | None = None
        self._engine: Engine | None = None
        self._seam: MeshCluster | None = None
        self._links: Links | None = None
        self._past: dict[str, int] = {}  # counters of earlier starts

    @property
    def port(self) -> int | None:
        """The port; with ``port=0`` the one the system picked, once started."""
        return self._listener.port if self._listener is not None else None

    @property
    def address(self) -> str | None:
        """Where other nodes connect to; None where that is not known, as with ``host="0.0.0.0"``."""
        if self._advertise is not None:
            return self._advertise
        if self._listener is None:
            return self._discovery.address if self._discovery is not None else None
        host = self._listener.host
        return None if host in ("0.0.0.0", "::") else str(MeshAddress(host, self._listener.port))

    def listen_at(self, *, port: int) -> None:
        """Listen on another port from the next start on.

        :raises ConfigurationError: no port; or the transport listens nowhere, or already.
        """
        if self._listener is None or self._engine is not None:
            raise ConfigurationError(f"listen_at(port={port!r}): this mesh listens nowhere, or has started already")
        self._listener = Listener(self._host, port, self._accepted, name="mesh", logger=log)
        self._wanted_port = port

    @on_home_thread
    def meet_in(self, directory: str | Path) -> None:
        """Find nodes of this machine in a directory too, as with ``discover``; nothing where there is that already.

        From the next start on, or now if the mesh has started: then it returns when their clients are known, after
        ``MeshOptions.meeting`` at most. Switches greenlets.

        :raises ConfigurationError: the directory cannot be used.
        """
        if self._directory is not None:
            return
        self._directory = parse_discover(f"{UNIX}{directory}")
        if self._engine is None:
            return
        try:
            self._listen_in_directory()
        except ConfigurationError:
            self._directory = None
            raise
        self._meet()

    # Use ---------------------------------------------------------------------------------------------

    @on_home_thread
    def nodes(self) -> list[Node]:
        """Return the other nodes, by id."""
        if self._engine is None:
            return []
        since = {id_: connection.connected_at for id_, connection in self._connections().items()}
        return [
            Node(
                id=status.node,
                address=status.address,
                state="suspect" if status.suspect else "up",
                linked=status.linked,
                since=since.get(status.node, 0.0),
                clients=status.clients,
            )
            for status in self._engine.core.nodes()
        ]

    @on_home_thread
    def send(self, node_id: str, message: Sendable) -> None:
        """Send an event to one node. Parks up to 1 s while its outbox is crowded: switches greenlets.

        :raises UnknownClient: there is no such node.
        :raises MessageTooBig: larger than ``MeshOptions.message_size``.
        :raises BadMessage: not named ``mesh:*``, or a payload that cannot be encoded.
        """
        connection = self._connections().get(node_id)
        if connection is None or connection.closed:
            raise UnknownClient(f"no node {node_id!r} is there")
        self.hub.deliver(connection, self.hub.outbound(message))

    @on_home_thread
    def broadcast(self, message: Sendable) -> int:
        """Send an event to every other node; return to how many. Not handled on this one.

        :raises MessageTooBig, BadMessage: see ``send``.
        """
        body = self.hub.outbound(message).finished(self._wire)
        return self._send_event(None, body)

    def _connections(self) -> Mapping[str, NodeConnection]:
        return self._news.nodes if self._news is not None else {}

    def _send_event(self, node: str | None, body: bytes) -> int:
        if self._engine is None:
            return 0
        count = self._engine.core.mesh_event(node, body)
        self._engine.act()
        return count

    def _fitting(self, body: bytes) -> bytes:
        """The last step of encoding an event."""
        if len(body) > self.options.message_size:
            raise MessageTooBig(
                f"a message of {len(body)} bytes; nodes take {self.options.message_size} (MeshOptions.message_size)"
            )
        return body

    def stats(self) -> dict[str, Any]:
        """Return named numbers."""
        counters = dict(self._past)
        sources: list[Mapping[str, int]] = [one.counters for one in (self._listener, self._unix) if one is not None]
        if self._engine is not None:
            sources.append(self._engine.core.counters)
        for source in sources:
            for name, value in source.items():
                counters[name] = counters.get(name, 0) + value
        return {
            "name": self.name,
            "node": self.node_id,
            "nodes": len(self.nodes()),
            "links": len(self._links) if self._links is not None else 0,
            "counters": counters,
        }

    # Lifecycle ---------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Listen, and begin to connect to the peers. Switches greenlets.

        With ``discover`` it returns when the clients of the nodes in the directory are known, after
        ``MeshOptions.meeting`` at most.

        :raises PortInUse: something else listens on the port.
        :raises ConfigurationError: others could reach the port and there is neither secret nor TLS; or the kernel is
            in another cluster already.
        """
        self._refuse_to_be_open()
        if self._listener is not None and self._wanted_port is not None:
            self._listener.port = self._wanted_port
            self._listener.start()
        self._home.settle()
        self._listen_in_directory()
        self._join()
        self._meet()
        places = dict.fromkeys((self.address, self._discovery.address if self._discovery is not None else None))
        where = " and ".join(filter(None, places)) or "no address"
        log.info("mesh node %s of cluster %r listens at %s", self.node_id, self.cluster, where)

    def _refuse_to_be_open(self) -> None:
        if self._listener is None or self._secret or self._tls is not None or self._insecure:
            return
        if not is_loopback(self._host):
            raise ConfigurationError(
                f"host={self._host!r}: other machines can reach this mesh; give all its nodes the same secret='...' "
                "or tls=MeshTLS(...), or say insecure=True"
            )

    def _listen_in_directory(self) -> None:
        """Have a socket where nodes of this machine look for each other, if there is such a place."""
        if self._directory is not None:
            self._discovery = UnixDirectory(self._directory, self._found, self._gone)
            listening = self._discovery.listen()
            self._unix = Listener("unix", 0, self._accepted, listening=listening, name="mesh", logger=log)
            self._unix.start()

    def _meet(self) -> None:
        """Look for them, and wait until the clients of those that are there are known. Switches greenlets."""
        if self._discovery is not None and self._engine is not None:
            self._discovery.start()
            self._engine.meet(tuple(self._discovery.others), self.options.meeting)

    def _join(self) -> None:
        """Make the parts for this start, and become a node of the cluster."""
        hub, now, instance = self.hub, time.monotonic(), secrets.token_bytes(16)
        core = MeshCore(
            self.node_id,
            instance,
            self.address,
            self.options,
            random=Random(),
            now=now,
            seeds=self._peers,
            routes=self._routes,
        )
        local = LocalNode(hub)
        news = self._news = NodeNews(self.node_id, hub, self.options, self._wire, self._send_event, core.counters)
        engine = self._engine = Engine(core, local, news, hub.workers.submit)
        seam = self._seam = news.seam = MeshCluster(hub, self.node_id, news.awaiting)
        seam.engine = engine

        def hello(nonce: bytes) -> Hello:
            return Hello(self.node_id, self.cluster, instance, nonce, self.address)

        links = Links(engine, hello, self._secret, self.options, self._tls, hub.flusher, core.counters, self._refused)
        self._links = news.links = links
        hub.join_cluster(seam)
        for entry, codec, key in local.own_clients():
            seam.client_came(entry["id"], entry["metadata"], entry["connected_at"], codec, key)
            for room in entry["rooms"]:
                seam.room_joined(room, entry["id"])
        engine.start(links)

    def _accepted(self, sock: Any, address: tuple[Any, ...]) -> None:
        if self._links is None:
            sock.close()
        else:
            self._links.accepted(sock, address)

    def _found(self, address: str) -> None:
        if self._engine is not None:
            self._engine.core.add_seed(address, time.monotonic())
            self._engine.act()

    def _gone(self, address: str) -> None:
        if self._engine is not None:
            self._engine.core.drop_seed(address)

    def _refused(self, address: str) -> None:
        if self._discovery is not None:
            self._discovery.refused(address)

    def on_drain(self) -> None:
        """Take and make no more links; those that are there stay while handlers finish."""
        if self._links is not None:
            self._links.stopping = True
        for listener in (self._listener, self._unix):
            if listener is not None:
                listener.stop_accepting()

    def on_stop(self) -> None:
        """Say goodbye on every link, and release everything. Switches greenlets."""
        self.on_drain()
        engine, links = self._engine, self._links
        if engine is not None and links is not None and self._seam is not None:
            engine.leave()
            self.hub.leave_cluster()
            self._seam.give_up()
            links.stop()
            engine.stop()
            for name, value in engine.core.counters.items():
                self._past[name] = self._past.get(name, 0) + value
        if self._discovery is not None:
            self._discovery.stop()
        if any(connection.busy for connection in self._connections().values()):
            self.hub.workers.wait_quiet(self.options.farewell)  # handlers of mesh:left
        self._engine = self._news = self._links = self._seam = self._discovery = self._unix = None
        self._home.leave()


def _checked_name(option: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH or not value.isprintable():
        raise ConfigurationError(f"{option}={value!r}: must be 1 to {NAME_LENGTH} printable characters")
    return value


def _checked_routes(routes: Mapping[str, RouteFilter] | None) -> Mapping[str, RouteFilter]:
    found = {} if routes is None else routes
    if not isinstance(found, Mapping) or not all(
        isinstance(pattern, str) and isinstance(chosen, RouteFilter) for pattern, chosen in found.items()
    ):
        raise ConfigurationError(f"routes={routes!r}: must map patterns of node ids to RouteFilters")
    return found


def _key(secret: str | bytes | None) -> bytes:
    """Return the key of the proofs: empty where there is no secret, as everybody may know it then."""
    if secret is None:
        return b""
    if not isinstance(secret, (str, bytes)) or not secret:
        raise ConfigurationError("secret=...: must be a non-empty text or bytes, or None")
    data = secret.encode() if isinstance(secret, str) else secret
    return hashlib.sha256(b"realtime mesh key\0" + data).digest()
