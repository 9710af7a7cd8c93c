"""What other nodes say of their clients: replicas, one for each node, and the index over all of them.

Every node is the only authority on its own clients. It sends deltas, each from one version to a later one. A delta
that does not fit the version held is not applied: a snapshot is asked for, and its difference to what was known
becomes the same events that deltas would have. So each client comes once and goes once, whatever is lost between.
A digest now and then finds what should not happen: two states of one version that differ.
"""

from __future__ import annotations

from collections import Counter

from realtime.errors import BadMessage
from realtime.protocols.mesh_actions import (
    Action,
    ClientCame,
    ClientFound,
    ClientLost,
    ClientMoved,
    ClientWent,
    MetadataReplaced,
    RoomJoined,
    RoomLeft,
)
from realtime.protocols.mesh_bodies import (
    Came,
    Chunk,
    Delta,
    Digest,
    Joined,
    Left,
    Operation,
    Replaced,
    Went,
    unpack_metadata,
)
from realtime.protocols.mesh_index import Index
from realtime.protocols.mesh_snapshot import Assembly
from realtime.protocols.mesh_state import Client, NodeState, StateError, difference

__all__ = ["Replica", "Replicas"]


class Replica:
    """What is known of one node's clients."""

    __slots__ = ("assembly", "heard_since_digest", "known", "state", "wanted")

    def __init__(self) -> None:
        self.state = NodeState()
        self.known = False
        """A whole snapshot has come."""
        self.wanted = True
        """A snapshot is needed, and on its way or asked for."""
        self.assembly: Assembly | None = None
        self.heard_since_digest = False


class Replicas:
    """The replicas of all other nodes.

    :param events: what happens to clients of other nodes is appended here.
    :param counters: what was refused or repaired is counted here.
    :param own: our own clients: one that moves between nodes is no news.
    """

    def __init__(self, events: list[Action], counters: Counter[str], own: NodeState) -> None:
        self.index = Index()
        self._own = own
        self.moved_away: set[str] = set()
        """Clients of our own that are another node's by now."""
        self.moved_here: set[str] = set()
        """Clients of our own that another node still shows."""
        self._events = events
        self._counters = counters
        self._replicas: dict[str, Replica] = {}

    def wanted(self, node: str) -> bool:
        """Tell whether a snapshot of a node is needed."""
        return self._replica(node).wanted

    def _replica(self, node: str) -> Replica:
        replica = self._replicas.get(node)
        if replica is None:
            replica = self._replicas[node] = Replica()
        return replica

    # What nodes say: each returns whether to ask for a snapshot -----------------------------------------

    def on_delta(self, node: str, delta: Delta) -> bool:
        """A node's clients changed."""
        replica = self._replica(node)
        if replica.assembly is not None:
            replica.assembly.set_aside(delta)
        state = replica.state
        if replica.known and delta.version == state.version:
            try:
                for operation in delta.operations:
                    self._changed(node, operation, state.apply(operation))
            except StateError:
                return self._refuse(replica)
            return False
        if replica.wanted or replica.assembly is not None:
            return False  # the snapshot that comes has it, or it is set aside
        return self._refuse(replica)

    def _refuse(self, replica: Replica) -> bool:
        """Something does not fit: ask for a snapshot, once."""
        self._counters["deltas_refused"] += 1
        ask = not replica.wanted
        replica.wanted = True
        return ask

    def on_chunk(self, node: str, chunk: Chunk) -> bool:
        """A piece of a snapshot came. Raises MeshError."""
        replica = self._replica(node)
        replica.heard_since_digest = True
        assembly = replica.assembly
        if chunk.index == 0:
            assembly = replica.assembly = Assembly(chunk)
        elif assembly is not None and assembly.fits(chunk):
            assembly.add(chunk)
        else:
            self._counters["chunks_refused"] += 1
            replica.assembly = None
            ask = not replica.wanted
            replica.wanted = True
            return ask
        if not chunk.last:
            return False
        replica.assembly = None
        replica.wanted = not assembly.complete()
        self._replace(node, replica, assembly.state)
        return replica.wanted

    def _replace(self, node: str, replica: Replica, state: NodeState) -> None:
        old, replica.state = replica.state, state
        first, replica.known = not replica.known, True
        self._counters["snapshots_received"] += 1
        for operation in difference(old, state):
            where = old if isinstance(operation, Went) else state
            self._changed(node, operation, where.clients[operation.client])
        if first:
            for name, client in state.clients.items():
                if client.rooms:
                    self._events.append(ClientFound(node, name, tuple(client.rooms)))

    def on_digest(self, node: str, digest: Digest) -> bool:
        """A node says what its clients come to."""
        replica = self._replica(node)
        heard, replica.heard_since_digest = replica.heard_since_digest, False
        if replica.wanted or replica.assembly is not None:
            return not heard  # a snapshot should be on its way, but nothing came for a whole interval
        if replica.state.digest() == digest:
            return False
        self._counters["digests_differed"] += 1
        replica.wanted = True
        return True

    def on_gap(self, node: str) -> None:
        """Something the node sent is lost: it sends a snapshot by itself."""
        replica = self._replica(node)
        replica.wanted = True
        replica.assembly = None

    def forget(self, node: str, *, lost: bool) -> None:
        """A node is gone: all its clients went.

        :param lost: and those who shared rooms with them are to be told.
        """
        replica = self._replicas.pop(node, None)
        if replica is not None:
            for name, client in replica.state.clients.items():
                if lost and client.rooms:
                    self._events.append(ClientLost(node, name, tuple(client.rooms)))
                self._changed(node, Went(name), client)

    # What follows from it --------------------------------------------------------------------------------

    def _changed(self, node: str, operation: Operation, client: Client) -> None:
        """Follow a change in the index, and tell it."""
        name, index, events = operation.client, self.index, self._events
        if isinstance(operation, Joined):
            index.joined(node, operation.room, name)
            own = self._own.clients.get(name)
            if (own is None or operation.room not in own.rooms) and not index.is_elsewhere(node, operation.room, name):
                events.append(RoomJoined(node, operation.room, name))
        elif isinstance(operation, Left):
            self._left(node, operation.room, name)
        elif isinstance(operation, Came):
            known = index.home(name) is not None or name in self._own.clients
            index.came(node, name, client.codec)
            if self._is_here(name):
                self.moved_here.add(name)
            events.append(ClientMoved(node, name) if known else ClientCame(node, name))
        elif isinstance(operation, Replaced):
            events.append(MetadataReplaced(node, name))
        else:
            for room in client.rooms:
                self._left(node, room, name)
            index.went(node, name, client.codec)
            if index.home(name) is None:
                self.moved_here.discard(name)
                if not self._is_here(name):
                    events.append(ClientWent(node, name))

    def _is_here(self, name: str) -> bool:
        return name in self._own.clients and name not in self.moved_away

    def _left(self, node: str, room: str, name: str) -> None:
        """A client on a node has left a room: news, unless it is in it at another node."""
        self.index.left(node, room, name)
        here = self._is_here(name) and room in self._own.clients[name].rooms
        if not here and not self.index.is_elsewhere(node, room, name):
            self._events.append(RoomLeft(node, room, name))

    def entry(self, client: str) -> dict[str, object] | None:
        """Return a client's presence entry; None if no node has it."""
        node = self.index.home(client)
        if node is None:
            return None
        known = self._replicas[node].state.clients[client]
        try:
            metadata = unpack_metadata(known.metadata)
        except BadMessage:
            self._counters["metadata_unreadable"] += 1
            metadata = {}
        return {
            "id": client,
            "metadata": metadata,
            "rooms": list(known.rooms),
            "connected_at": known.connected_at,
        }

    def key(self, client: str) -> str:
        """Return the key of a client's presence; its id if no node has it."""
        node = self.index.home(client)
        return (node is not None and self._replicas[node].state.clients[client].key) or client

    def state_of(self, node: str) -> NodeState | None:
        """Return what is known of a node's clients; None before its first snapshot."""
        replica = self._replicas.get(node)
        return replica.state if replica is not None and replica.known else None
