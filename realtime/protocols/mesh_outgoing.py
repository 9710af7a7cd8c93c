"""What one node tells the others of its clients, and what it sends to theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from math import inf
from random import Random
from typing import Any, NamedTuple

from realtime.config import KiB, MeshOptions
from realtime.delivery import Delivery
from realtime.errors import MessageTooBig
from realtime.protocols.mesh_actions import Action, CallLost, ConfirmFailed
from realtime.protocols.mesh_bodies import (
    Answer,
    Call,
    Came,
    Delivered,
    Delta,
    Event,
    Joined,
    Left,
    Operation,
    Replaced,
    ToClient,
    ToRoom,
    Went,
    encode,
    pack_delivery,
    pack_metadata,
)
from realtime.protocols.mesh_filters import Routes
from realtime.protocols.mesh_peers import Peer, Peers
from realtime.protocols.mesh_pending import MOST_PENDING, Pending
from realtime.protocols.mesh_replica import Replicas
from realtime.protocols.mesh_state import NodeState

__all__ = ["Outgoing", "Published"]

_OPERATIONS = 1024  # of one delta, whose client states may be METADATA_SIZE each at worst
_DELTA = 256 * KiB  # bytes of metadata in one delta
_NOBODY: Collection[str] = ()


class Published(NamedTuple):
    """Where a message went: to which nodes, and for how many of their clients as far as known."""

    nodes: list[str]
    clients: int


class Outgoing:
    """The half of a MeshCore that speaks. Changes of one turn go out together, before anything sent after them."""

    def __init__(self, options: MeshOptions, routes: Routes | None, random: Random, now: float) -> None:
        self.counters: Counter[str] = Counter()
        self.due = now
        """When ``tick`` must be called next."""
        self._options = options
        self._actions: list[Action] = []
        self._pending = Pending()
        self._own = NodeState()
        self._operations: list[Operation] = []  # made and not told yet
        self._routes = routes or Routes()
        self._peers = Peers(options, random, self._own, self._pending, self._actions, self.counters)
        self._replicas = Replicas(self._actions, self.counters, self._own)
        self._index = self._replicas.index

    def _sooner(self, due: float) -> None:
        """Something is due then."""
        if due < self.due:
            self.due = due

    # Clients of this node -------------------------------------------------------------------------------

    def client_came(
        self, client: str, metadata: Mapping[str, Any], connected_at: float, codec: str, key: str = ""
    ) -> None:
        """A client connected to this node.

        :param key: of its presence, at most 255 characters; empty where that is its id.
        :raises StateError: it is here already.
        :raises BadMessage, MessageTooBig: metadata that cannot be told to others.
        """
        self._change(Came(client, pack_metadata(metadata), float(connected_at), codec, key))
        if self._index.home(client) is not None:
            self._replicas.moved_here.add(client)
            for peer in self._peers.known.values():
                peer.is_unaware_of()  # lets go of those that it knows of by now
                peer.unaware[client] = inf  # until it is told

    def client_went(self, client: str) -> None:
        """A client is gone, and out of its rooms. Raises StateError if it was not here."""
        self._change(Went(client))
        self._replicas.moved_here.discard(client)
        self._replicas.moved_away.discard(client)
        for peer in self._peers.known.values():
            peer.unaware.pop(client, None)

    def client_moved(self, client: str) -> None:
        """A client of ours is another node's, which announced it. ``client_went`` is due once all know."""
        self._replicas.moved_here.discard(client)
        self._replicas.moved_away.add(client)

    def room_joined(self, room: str, client: str) -> None:
        """A client joined a room. Raises StateError if it is in it, or not here."""
        self._change(Joined(room, client))

    def room_left(self, room: str, client: str) -> None:
        """A client left a room. Raises StateError if it was not in it."""
        self._change(Left(room, client))

    def metadata_replaced(self, client: str, metadata: Mapping[str, Any]) -> None:
        """A client shows other metadata. Raises as ``client_came``."""
        self._change(Replaced(client, pack_metadata(metadata)))

    def _change(self, operation: Operation) -> None:
        self._own.apply(operation)
        self._operations.append(operation)

    def _flush_changes(self) -> None:
        """Tell the others what changed here."""
        operations = self._operations
        if not operations:
            return
        self._operations = []
        version = self._own.version - len(operations)
        start = size = 0
        for end, operation in enumerate(operations, 1):
            size += len(operation.metadata) if isinstance(operation, (Came, Replaced)) else 0
            if end == len(operations) or end - start >= _OPERATIONS or size >= _DELTA:
                self._peers.send_to(_is_current, Delta(version + start, operations[start:end]))
                if self._replicas.moved_here:
                    self._told_of_arrivals(operations[start:end])
                start, size = end, 0
        self.counters["changes"] += len(operations)

    def _told_of_arrivals(self, operations: Iterable[Operation]) -> None:
        """Note with which frame each peer was told of clients that have come from other nodes."""
        for operation in operations:
            if not isinstance(operation, Came) or operation.client not in self._replicas.moved_here:
                continue
            for peer in self._peers.known.values():
                if _is_current(peer):
                    peer.unaware[operation.client] = peer.session.sent
                else:
                    peer.unaware.pop(operation.client, None)

    # To clients of other nodes ---------------------------------------------------------------------------

    def codecs(self, room: str | None) -> set[str]:
        """Return the codecs in which a message for a room, or for everybody, is needed."""
        return self._index.codecs_in(room)

    def codecs_of(self, node: str) -> tuple[str, ...]:
        """Return the codecs in which a node's clients want their messages."""
        return self._index.codecs(node)

    def publish(
        self,
        room: str | None,
        name: str,
        bodies: Mapping[str, bytes],
        except_ids: Collection[str] = _NOBODY,
        *,
        delivery: Delivery | None = None,
        expires: float | None = None,
        mark: tuple[str, int, float] | None = None,
        busy: Callable[[str], bool] | None = None,
        confirm: int | None = None,
        deadline: float = 0.0,
    ) -> Published:
        """Send a message to the members of a room on other nodes, or to all their clients.

        It crosses the link to each node that has one of them once, in the codecs that are in use there.

        :param name: the event's, for the route filters.
        :param bodies: the encoded message by codec.
        :param delivery: its options; ``ttl`` is what is left of it.
        :param expires: when ``ttl`` is over, by the clock of ``now``.
        :param mark: its origin, sequence and time, in a room that keeps its history.
        :param busy: for a volatile message: tells of a node that cannot take it now. It is dropped there.
        :param confirm: a token: each node in the result answers with Confirmed or ConfirmFailed by ``deadline``.
        :raises MessageTooBig: one of the bodies is larger than ``MeshOptions.message_size``.
        """
        index = self._index
        targets: Mapping[str, Any] = index.populated() if room is None else index.nodes_in(room)
        if not targets:
            return Published([], 0)
        if self._operations:
            self._flush_changes()
        packed: dict[tuple[str, ...], bytes | None] = {}
        nodes: list[str] = []
        clients = 0
        in_motion = self._in_motion()
        for node, members in targets.items():
            moved = self._moved_from(node, in_motion) if in_motion else ()
            left_out = (*except_ids, *moved) if moved else except_ids
            count = self._count(node, members, left_out) if left_out or room is None else len(members)
            if count <= 0:
                continue
            if not self._routes.open and not self._routes.allow(node, name, room):
                self.counters["filtered"] += 1
                continue
            if busy is not None and busy(node):
                self.counters["dropped_volatile"] += count
                continue
            codecs = index.codecs(node)
            if moved:
                body = self._pack(room, codecs, bodies, except_ids, delivery, expires, confirm, mark, moved)
            elif codecs in packed:
                body = packed[codecs]
            else:
                body = packed[codecs] = self._pack(
                    room, codecs, bodies, except_ids, delivery, expires, confirm, mark
                )
            if body is None:
                self.counters["not_encoded"] += 1
                continue
            sequence = self._peers.send(self._peers.known[node], body)
            if confirm is not None:
                self._await_confirmation(confirm, node, sequence, deadline)
            nodes.append(node)
            clients += count
        self.counters["published"] += len(nodes)
        return Published(nodes, clients)

    def _await_confirmation(self, token: int, node: str, sequence: int, deadline: float) -> None:
        if len(self._pending) >= MOST_PENDING and token not in self._pending:
            self._actions.append(ConfirmFailed(token, node, "busy"))
            return
        self._pending.add(token, node, sequence, deadline, is_call=False)
        self._sooner(deadline)

    def _in_motion(self) -> Collection[str]:
        """Return the clients that several nodes show, or another beside this one that has them."""
        shared, here = self._index.shared, self._replicas.moved_here
        return {*shared, *here} if shared or here else _NOBODY

    def _moved_from(self, node: str, in_motion: Collection[str]) -> list[str]:
        """Return which clients that are on the move a node still shows, while they get it where they are now."""
        here, index = self._replicas.moved_here, self._index
        return [
            client
            for client in in_motion
            if node in index.nodes_of(client) and (client in here or index.home(client) != node)
        ]

    def _count(self, node: str, members: Any, except_ids: Collection[str]) -> int:
        """Return how many of a node's members, or clients, are not excepted."""
        excepted = {*except_ids}  # whoever is named twice, as one that excepts itself and has just moved, counts once
        if type(members) is int:
            return members - sum(self._index.home(client) == node for client in excepted)
        return len(members) - sum(client in members for client in excepted)

    def _pack(
        self,
        room: str | None,
        codecs: tuple[str, ...],
        bodies: Mapping[str, bytes],
        except_ids: Collection[str],
        delivery: Delivery | None,
        expires: float | None,
        confirm: int | None,
        mark: tuple[str, int, float] | None,
        moved: Collection[str] = _NOBODY,
    ) -> bytes | None:
        """Return the body of a frame with the message in these codecs; None if it was encoded in none."""
        chosen = {codec: bodies[codec] for codec in codecs if codec in bodies}
        if not chosen:
            return None
        self._check_size(chosen)
        elsewhere = [client for client in except_ids if client not in self._own.clients]
        if mark is None:  # a kept message would be kept as not meant for them
            elsewhere += moved
        return pack_delivery(ToRoom(room, chosen, elsewhere, delivery, confirm, mark), expires)

    def _check_size(self, bodies: Mapping[str, bytes]) -> None:
        most = self._options.message_size
        for body in bodies.values():
            if len(body) > most:
                raise MessageTooBig(f"a message of {len(body)} bytes; nodes take {most} (MeshOptions.message_size)")

    def send(
        self,
        client: str,
        bodies: Mapping[str, bytes],
        *,
        delivery: Delivery | None = None,
        expires: float | None = None,
    ) -> bool:
        """Send to one client of another node; False if none has it. For the options see ``publish``.

        :raises MessageTooBig: see ``publish``.
        """
        home = self._index.home(client)
        return home is not None and self.send_by(home, client, bodies, delivery=delivery, expires=expires)

    def send_by(
        self,
        node: str,
        client: str,
        bodies: Mapping[str, bytes],
        *,
        delivery: Delivery | None = None,
        expires: float | None = None,
    ) -> bool:
        """Send to a client that a node has, announced or not; False if there is no such node. Raises MessageTooBig."""
        peer = self._peers.known.get(node)
        if peer is None or not peer.joined:
            return False
        self._check_size(bodies)
        self._flush_changes()
        self._peers.send(peer, pack_delivery(ToClient(client, dict(bodies), delivery), expires))
        return True

    def call(self, token: int, client: str, body: bytes, *, timeout: float, now: float) -> bool:
        """Ask the node of a client something; False if none has it. CallAnswered or CallLost follows.

        :param token: a number that is not in use.
        :raises MessageTooBig: see ``publish``.
        """
        home = self._index.home(client)
        if home is None:
            return False
        self._ask(self._peers.known[home], Call(token, client, body, timeout), now)
        return True

    def members_to_ask(self, room: str, name: str, except_ids: Collection[str]) -> dict[str, list[str]]:
        """Return who would get a message named so to a room, by the nodes they are on."""
        in_motion = self._in_motion()
        wanted: dict[str, list[str]] = {}
        for node, members in self._index.nodes_in(room).items():
            if self._routes.open or self._routes.allow(node, name, room):
                left_out = {*except_ids, *self._moved_from(node, in_motion)}
                asked = [client for client in members if client not in left_out]
                if asked:
                    wanted[node] = asked
        return wanted

    def call_node(self, token: int, node: str, body: bytes, *, timeout: float, now: float) -> bool:
        """Ask a node itself something; False if there is none. Otherwise as ``call``; the answer may come in parts."""
        peer = self._peers.known.get(node)
        if peer is None or not peer.joined:
            return False
        self._ask(peer, Call(token, "", body, timeout), now)
        return True

    def _ask(self, peer: Peer, call: Call, now: float) -> None:
        self._check_size({"": call.body})
        if len(self._pending) >= MOST_PENDING:
            self._actions.append(CallLost(call.token, "busy"))
            return
        self._flush_changes()
        sequence = self._peers.send(peer, encode(call))
        self._pending.add(call.token, peer.id, sequence, now + call.timeout, is_call=True)
        self._sooner(now + call.timeout)

    def forget(self, token: int) -> None:
        """Nobody waits for what this token stands for any more."""
        self._pending.forget(token)

    def answer(self, origin: str, token: int, ok: bool, body: bytes, *, more: bool = False) -> None:
        """Say what became of a RunCall, or with ``more`` a part of it. Raises MessageTooBig."""
        self._check_size({"": body})
        self._reply(origin, Answer(token, ok, body, more))

    def delivered(self, origin: str, token: int, count: int) -> None:
        """Say that a DeliverToRoom with ``confirm`` is done."""
        self._reply(origin, Delivered(token, count))

    def _reply(self, node: str, message: Answer | Delivered) -> None:
        peer = self._peers.known.get(node)
        if peer is None or not peer.joined:
            self.counters["replies_to_nobody"] += 1
            return
        self._flush_changes()
        self._peers.send(peer, encode(message))

    def mesh_event(self, node: str | None, body: bytes) -> int:
        """Send an event to one node, or to all; return to how many. Raises MessageTooBig."""
        self._check_size({"": body})
        self._flush_changes()
        targets = [
            peer
            for peer in self._peers.known.values()
            if peer.joined and (node is None or node == peer.id)
        ]
        if targets:
            packed = encode(Event(body))
            for peer in targets:
                self._peers.send(peer, packed)
        return len(targets)


def _is_current(peer: Peer) -> bool:
    """Whether a delta is of use to a node: it has a snapshot, or one is on its way."""
    return peer.joined and not peer.stale
