"""Where the clients of other nodes are: from a client to its node, from a room to the nodes with members in it.

Answers what routing asks for each message without looking at any node's whole state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping

__all__ = ["Index"]

_NOWHERE: dict[str, dict[str, None]] = {}
_NOBODY: dict[str, None] = {}


class Index:
    """Kept in step with the replicas by whoever changes them."""

    def __init__(self) -> None:
        self._homes: dict[str, str] = {}
        self._shared: dict[str, list[str]] = {}  # an id that several nodes have: all of them, the newest last
        self._rooms: dict[str, dict[str, dict[str, None]]] = {}
        self._codecs: dict[str, Counter[str]] = {}
        self._in_use: dict[str, tuple[str, ...]] = {}
        self._counts: dict[str, int] = {}

    # Changes -------------------------------------------------------------------------------------------

    def came(self, node: str, client: str, codec: str) -> None:
        """A client is on a node now. Where another node has one of the same id, the new one is found."""
        other = self._homes.get(client)
        if other is not None:
            self._shared.setdefault(client, [other]).append(node)
        self._homes[client] = node
        self._counts[node] = self._counts.get(node, 0) + 1
        codecs = self._codecs.setdefault(node, Counter())
        codecs[codec] += 1
        if codecs[codec] == 1:
            self._in_use[node] = tuple(sorted(codecs))

    def went(self, node: str, client: str, codec: str) -> None:
        """A client is no longer on a node; it has left its rooms."""
        nodes = self._shared.get(client)
        if nodes is None:
            del self._homes[client]
        else:
            nodes.remove(node)
            self._homes[client] = nodes[-1]
            if len(nodes) == 1:
                del self._shared[client]
        self._counts[node] -= 1
        codecs = self._codecs[node]
        codecs[codec] -= 1
        if not codecs[codec]:
            del codecs[codec]
            self._in_use[node] = tuple(sorted(codecs))
        if not codecs:
            del self._codecs[node], self._in_use[node], self._counts[node]

    def joined(self, node: str, room: str, client: str) -> None:
        """A client on a node is in a room now."""
        nodes = self._rooms.get(room)
        if nodes is None:
            nodes = self._rooms[room] = {}
        members = nodes.get(node)
        if members is None:
            members = nodes[node] = {}
        members[client] = None

    def left(self, node: str, room: str, client: str) -> None:
        """A client on a node is no longer in a room."""
        nodes = self._rooms[room]
        members = nodes[node]
        del members[client]
        if not members:
            del nodes[node]
            if not nodes:
                del self._rooms[room]

    def is_elsewhere(self, node: str, room: str, client: str) -> bool:
        """Tell whether a client is in a room on another node than this one."""
        return any(client in members for other, members in self.nodes_in(room).items() if other != node)

    @property
    def shared(self) -> Collection[str]:
        """The ids that several nodes have."""
        return self._shared.keys()

    def nodes_of(self, client: str) -> Collection[str]:
        """Return all nodes that have a client."""
        home = self._homes.get(client)
        return self._shared.get(client) or ([] if home is None else [home])

    # Questions -----------------------------------------------------------------------------------------

    def home(self, client: str) -> str | None:
        """Return the node that has this client."""
        return self._homes.get(client)

    def clients(self) -> Collection[str]:
        """Return the ids of all clients, each once."""
        return self._homes.keys()

    def nodes_in(self, room: str) -> Mapping[str, Mapping[str, None]]:
        """Return which nodes have members in a room, each with its members in the order we heard of them."""
        return self._rooms.get(room, _NOWHERE)

    def members(self, room: str) -> Iterator[str]:
        """Iterate over the members of a room on all nodes."""
        for members in self._rooms.get(room, _NOWHERE).values():
            yield from members

    def rooms(self) -> dict[str, int]:
        """Return every room with its number of members."""
        return {room: sum(map(len, nodes.values())) for room, nodes in self._rooms.items()}

    def populated(self) -> Mapping[str, int]:
        """Return the nodes that have clients, with how many."""
        return self._counts

    def codecs(self, node: str) -> tuple[str, ...]:
        """Return the codecs that a node's clients use."""
        return self._in_use.get(node, ())

    def codecs_in(self, room: str | None) -> set[str]:
        """Return the codecs in use on the nodes that have members in a room, or on all nodes."""
        nodes = self._counts if room is None else self._rooms.get(room, _NOWHERE)
        return {codec for node in nodes for codec in self._in_use[node]}
