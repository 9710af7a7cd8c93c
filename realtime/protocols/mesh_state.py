"""The clients of one node and their rooms, as a version and a checksum: changed by operations alone.

A node's own state and what others hold of it are the same class, so that the same operations lead to the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

from realtime.protocols.mesh_bodies import Came, ClientState, Digest, Joined, Left, Operation, Replaced, Went

__all__ = ["Client", "NodeState", "StateError", "difference"]

_MASK = 2**64 - 1
CLIENTS = 1_000_000  # of one node


class StateError(ValueError):
    """An operation that does not fit the state it is applied to."""


class Client:
    """One client: what its node says of it."""

    __slots__ = ("codec", "connected_at", "key", "metadata", "rooms")

    def __init__(self, metadata: bytes, connected_at: float, codec: str, key: str) -> None:
        self.metadata = metadata
        """Packed."""
        self.connected_at = connected_at
        self.codec = codec
        self.key = key
        """Of its presence; empty where that is its id."""
        self.rooms: dict[str, None] = {}
        """In the order it joined them."""


class NodeState:
    """The state of one node.

    The checksum is the sum of one hash per client and one per membership: it does not depend on any order, and a
    change costs the same in a small state and in a large one.
    """

    __slots__ = ("_sum", "clients", "memberships", "version")

    def __init__(self) -> None:
        self.clients: dict[str, Client] = {}
        """In the order they came."""
        self.memberships = 0
        self.version = 0
        self._sum = 0

    def apply(self, operation: Operation) -> Client:
        """Make one change; return the client it is about, as it is or as it was.

        :raises StateError: it does not fit; nothing was changed.
        """
        clients = self.clients
        name = operation.client
        if isinstance(operation, Came):
            if name in clients or len(clients) >= CLIENTS:
                raise StateError(f"client {name!r} came, but is there, or there are {CLIENTS}")
            client = clients[name] = Client(
                operation.metadata, operation.connected_at, operation.codec, operation.key
            )
            self._sum += _hash_of(name, client)
        else:
            known = clients.get(name)
            if known is None:
                raise StateError(f"no client {name!r}")
            client = known
            if isinstance(operation, Joined):
                if operation.room in client.rooms:
                    raise StateError(f"client {name!r} joined {operation.room!r}, but is in it")
                client.rooms[operation.room] = None
                self.memberships += 1
                self._sum += _hash_of_membership(name, operation.room)
            elif isinstance(operation, Left):
                if operation.room not in client.rooms:
                    raise StateError(f"client {name!r} left {operation.room!r}, but is not in it")
                del client.rooms[operation.room]
                self.memberships -= 1
                self._sum -= _hash_of_membership(name, operation.room)
            elif isinstance(operation, Replaced):
                self._sum -= _hash_of(name, client)
                client.metadata = operation.metadata
                self._sum += _hash_of(name, client)
            else:
                self._remove(name, client)
        self.version += 1
        return client

    def _remove(self, name: str, client: Client) -> None:
        del self.clients[name]
        self.memberships -= len(client.rooms)
        self._sum -= _hash_of(name, client) + sum(_hash_of_membership(name, room) for room in client.rooms)

    def put(self, state: ClientState) -> None:
        """Add a client as a snapshot has it; the version stays. Raises StateError."""
        if state.client in self.clients or len(self.clients) >= CLIENTS:
            raise StateError(f"client {state.client!r} is twice in a snapshot, or there are more than {CLIENTS}")
        client = self.clients[state.client] = Client(state.metadata, state.connected_at, state.codec, state.key)
        client.rooms = dict.fromkeys(state.rooms)
        self.memberships += len(client.rooms)
        self._sum += _hash_of(state.client, client)
        self._sum += sum(_hash_of_membership(state.client, room) for room in client.rooms)

    def states(self) -> Iterator[ClientState]:
        """Iterate over copies of all clients' states."""
        for name, client in self.clients.items():
            yield ClientState(
                name, client.metadata, client.connected_at, client.codec, list(client.rooms), client.key
            )

    def digest(self) -> Digest:
        """Return what the state comes to."""
        checksum = (self._sum & _MASK).to_bytes(8, "big")
        return Digest(self.version, checksum, len(self.clients), self.memberships)


def _hash_of(name: str, client: Client) -> int:
    said = f"{len(name)} {name}{client.connected_at!r} {client.codec} {client.key}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(said + client.metadata, digest_size=8).digest(), "big")


def _hash_of_membership(name: str, room: str) -> int:
    said = f"{len(name)} {name}{room}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(said, digest_size=8, person=b"member").digest(), "big")


def difference(old: NodeState, new: NodeState) -> Iterator[Operation]:
    """Iterate over operations that lead from one state to the other, but for orders.

    A client that differs in what cannot change while it is there, went and came.
    """
    for name, client in old.clients.items():
        other = new.clients.get(name)
        if other is None or not _is_same(client, other):
            yield Went(name)
    for name, client in new.clients.items():
        before = old.clients.get(name)
        if before is None or not _is_same(client, before):
            yield Came(name, client.metadata, client.connected_at, client.codec, client.key)
            before = None
        elif before.metadata != client.metadata:
            yield Replaced(name, client.metadata)
        rooms = before.rooms if before is not None else {}
        for room in rooms:
            if room not in client.rooms:
                yield Left(room, name)
        for room in client.rooms:
            if room not in rooms:
                yield Joined(room, name)


def _is_same(one: Client, other: Client) -> bool:
    return (one.connected_at, one.codec, one.key) == (other.connected_at, other.codec, other.key)
