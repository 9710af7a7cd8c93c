"""What a node's core has to tell, told to the application: nodes and clients of theirs that come and go, and events."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from realtime.config import MeshOptions
from realtime.errors import BadMessage
from realtime.hub import Hub
from realtime.message import Wire
from realtime.protocols.mesh_actions import (
    Action,
    CallAnswered,
    CallLost,
    ClientCame,
    ClientWent,
    Confirmed,
    ConfirmFailed,
    Gap,
    IdTaken,
    MeshEvent,
    NodeJoined,
    NodeLeft,
    NodeRefuted,
    NodeSuspect,
)
from realtime.protocols.mesh_codec import HANDLER_FAILED, MESH_EVENTS
from realtime.transports.mesh_cluster import MeshCluster
from realtime.transports.mesh_engine import News
from realtime.transports.mesh_links import Links
from realtime.transports.mesh_node import NodeConnection

__all__ = ["NodeNews"]

log = logging.getLogger("realtime.mesh")

CLIENT_CONNECTED = "mesh:client-connected"
CLIENT_DISCONNECTED = "mesh:client-disconnected"


class NodeNews(News):
    """Puts news in line with what the nodes sent themselves. Belongs to one start of one node.

    :param wire: of the nodes' events.
    :param send: sends the body of an event to a node.
    """

    def __init__(
        self,
        node_id: str,
        hub: Hub,
        options: MeshOptions,
        wire: Wire,
        send: Callable[[str, bytes], object],
        counters: Counter[str],
    ) -> None:
        self.nodes: dict[str, NodeConnection] = {}
        self.seam: MeshCluster
        self.links: Links
        self._node_id = node_id
        self._hub = hub
        self._options = options
        self._wire = wire
        self._send = send
        self._counters = counters

    def resolved(self, action: CallAnswered | CallLost | Confirmed | ConfirmFailed) -> None:
        """Something that was asked has an end."""
        self.seam.resolved(action)

    def happened(self, action: Action) -> None:
        """A node or a client of one came, changed or went, or a node sent an event."""
        if isinstance(action, MeshEvent):
            self._event_received(action)
        elif isinstance(action, ClientWent):
            self.seam.forget(action.client)
            self._tell_of_client(CLIENT_DISCONNECTED, action)
        elif isinstance(action, ClientCame):
            self._tell_of_client(CLIENT_CONNECTED, action)
        elif isinstance(action, NodeJoined):
            connection = self._connection_of(action.node)
            connection.joined()
            log.info("node %s joined (%s)", action.node, action.address)
            connection.tell("mesh:joined", address=action.address)
        elif isinstance(action, NodeLeft):
            connection = self._connection_of(action.node)
            connection.left()
            level = logging.INFO if action.reason == "leaving" else logging.WARNING
            log.log(level, "node %s left: %s", action.node, action.reason)
            connection.tell("mesh:left", reason=action.reason)
        elif isinstance(action, NodeSuspect):
            log.warning("node %s is suspect: nothing was heard of it for %g s", action.node, self._options.suspect)
            self._connection_of(action.node).tell("mesh:suspect")
        elif isinstance(action, NodeRefuted):
            log.info("node %s is heard again", action.node)
            self._connection_of(action.node).tell("mesh:recovered")
        elif isinstance(action, IdTaken):
            log.error("another node has our id, %s: give each node of the cluster its own", self._node_id)
        elif isinstance(action, Gap):
            count = "an unknown number of" if action.count is None else action.count
            way = {"out": "to", "in": "from"}[action.direction]
            log.warning("%s frames %s node %s are lost; state is sent anew", count, way, action.node)

    def _tell_of_client(self, event: str, action: ClientCame | ClientWent) -> None:
        if self._hub.wants(event):
            self._connection_of(action.node).tell(event, id=action.client)

    def _connection_of(self, node: str) -> NodeConnection:
        """Return the node's connection; forget nodes that are gone for good meanwhile."""
        connection = self.nodes.get(node)
        if connection is None:
            for id_ in [id_ for id_, known in self.nodes.items() if known.idle]:
                del self.nodes[id_]
            connection = NodeConnection(self._hub, node, self._wire, self.links, self._send)
            self.nodes[node] = connection
        return connection

    def _event_received(self, action: MeshEvent) -> None:
        counters = self._counters
        try:
            message = MESH_EVENTS.decode(action.body)
        except BadMessage as error:
            counters["refused_bad_message"] += 1
            log.warning("node %s sent what is no message: %s", action.node, error.message)
            return
        if message.type == HANDLER_FAILED:
            counters["remote_failures"] += 1
            log.warning("a handler on node %s failed: %s", action.node, message.payload)
            return
        if self._connection_of(action.node).take(message, len(action.body)):
            counters["events_received"] += 1
        else:
            counters["events_refused_inbox_full"] += 1
            log.warning("an event %s of node %s is refused: too many wait already", message.type, action.node)

    @contextmanager
    def awaiting(self, nodes: Iterable[str]) -> Iterator[None]:
        """Read what these nodes say in a ``with`` block, as answers of theirs are waited for."""
        connections = [connection for node in nodes if (connection := self.nodes.get(node)) is not None]
        for connection in connections:
            connection.asked()
        try:
            yield
        finally:
            for connection in connections:
                connection.answered()
