"""Replicas: deltas, snapshots in pieces, digests, and the index that routing asks."""

from __future__ import annotations

from collections import Counter

import pytest

from realtime.errors import BadMessage, MeshError, MessageTooBig
from realtime.protocols.mesh_actions import (
    Action,
    ClientCame,
    ClientLost,
    ClientMoved,
    ClientWent,
    MetadataReplaced,
    RoomJoined,
    RoomLeft,
)
from realtime.protocols.mesh_bodies import (
    METADATA_SIZE,
    Came,
    Chunk,
    Delta,
    Digest,
    Joined,
    Left,
    Operation,
    Replaced,
    Went,
    decode_body,
    encode,
    pack_metadata,
    unpack_metadata,
)
from realtime.protocols.mesh_replica import Replicas
from realtime.protocols.mesh_snapshot import WINDOW, SnapshotFeed
from realtime.protocols.mesh_state import NodeState, StateError, difference

EMPTY = pack_metadata({})


class Origin:
    """A node that changes, and what another one makes of it."""

    def __init__(self, node: str = "ann", replicas: Replicas | None = None) -> None:
        self.node = node
        self.state = NodeState()
        self.events: list[Action] = []
        self.counters: Counter[str] = Counter()
        self.replicas = replicas or Replicas(self.events, self.counters, NodeState())

    def change(self, *operations: Operation) -> Delta:
        """Make changes; return the delta without telling it."""
        version = self.state.version
        for operation in operations:
            self.state.apply(operation)
        return Delta(version, list(operations))

    def tell(self, *operations: Operation) -> bool:
        return self.replicas.on_delta(self.node, self.change(*operations))

    def pieces(self, number: int = 1) -> list[Chunk]:
        feed = SnapshotFeed(number, self.state)
        found = []
        while not feed.finished:
            piece = decode_body(feed.next_piece())
            assert isinstance(piece, Chunk)
            found.append(piece)
        return found

    def snapshot(self) -> bool:
        return [self.replicas.on_chunk(self.node, piece) for piece in self.pieces()][-1]

    def happened(self) -> list[Action]:
        events = self.events.copy()
        self.events.clear()
        return events

    def agrees(self) -> bool:
        known = self.replicas.state_of(self.node)
        return known is not None and known.digest() == self.state.digest()


def came(client: str, codec: str = "json") -> Came:
    return Came(client, EMPTY, 1.0, codec)


@pytest.fixture
def origin() -> Origin:
    made = Origin()
    made.snapshot()
    return made


def test_deltas_become_events_and_end_in_the_same_state(origin: Origin) -> None:
    assert not origin.tell(came("a"), Joined("r", "a"), Joined("s", "a"), Replaced("a", pack_metadata({"x": 1})))
    assert origin.happened() == [
        ClientCame("ann", "a"),
        RoomJoined("ann", "r", "a"),
        RoomJoined("ann", "s", "a"),
        MetadataReplaced("ann", "a"),
    ]
    assert origin.replicas.entry("a") == {"id": "a", "metadata": {"x": 1}, "rooms": ["r", "s"], "connected_at": 1.0}
    assert origin.agrees()
    origin.tell(Left("r", "a"), Went("a"))
    assert origin.happened() == [RoomLeft("ann", "r", "a"), RoomLeft("ann", "s", "a"), ClientWent("ann", "a")]
    assert origin.replicas.entry("a") is None
    assert origin.agrees()


def test_the_key_of_a_presence_comes_with_deltas_and_snapshots(origin: Origin) -> None:
    origin.tell(Came("a", EMPTY, 1.0, "json", "ada"), came("b"))
    assert [origin.replicas.key(client) for client in ("a", "b", "nobody")] == ["ada", "b", "nobody"]
    origin.change(Went("a"), Came("a", EMPTY, 1.0, "json", "eve"))
    origin.happened()
    assert not origin.snapshot()
    assert origin.happened() == [ClientWent("ann", "a"), ClientCame("ann", "a")]
    assert origin.replicas.key("a") == "eve"
    assert origin.agrees()
    with pytest.raises(MeshError):
        decode_body(encode(Delta(0, [Came("a", EMPTY, 1.0, "json", "x" * 256)])))


def test_a_delta_that_does_not_fit_asks_once_and_the_snapshot_gives_the_difference(origin: Origin) -> None:
    origin.tell(came("a"), came("b"), Joined("r", "a"))
    origin.change(Went("a"), came("c"), Joined("r", "b"))  # lost
    origin.happened()
    assert origin.tell(came("d"))
    assert not origin.tell(came("e"))
    assert origin.happened() == []
    assert not origin.snapshot()
    assert origin.happened() == [
        RoomLeft("ann", "r", "a"),
        ClientWent("ann", "a"),
        RoomJoined("ann", "r", "b"),
        ClientCame("ann", "c"),
        ClientCame("ann", "d"),
        ClientCame("ann", "e"),
    ]
    assert origin.agrees()
    assert not origin.tell(Went("e"))


def test_deltas_between_the_pieces_are_kept_for_the_end(origin: Origin) -> None:
    origin.change(*(Came(str(number), pack_metadata({"x": "x" * 100_000}), 1.0, "json") for number in range(9)))
    pieces = origin.pieces()
    assert len(pieces) > 3
    for piece in pieces[:2]:
        assert not origin.replicas.on_chunk("ann", piece)
    assert not origin.tell(Went("0"), came("late"))
    assert origin.happened() == []
    for piece in pieces[2:]:
        assert not origin.replicas.on_chunk("ann", piece)
    assert origin.agrees()
    assert [event.client for event in origin.happened() if isinstance(event, ClientCame)] == [*"12345678", "late"]


def test_a_snapshot_of_what_is_known_tells_nothing_even_between_deltas(origin: Origin) -> None:
    origin.tell(came("a"), came("b"))
    pieces = origin.pieces()
    origin.happened()
    origin.replicas.on_chunk("ann", pieces[0])
    assert origin.happened() == []
    assert origin.agrees()


@pytest.mark.parametrize("order", [(1,), (0, 0, 2), (0, 2)], ids=["no beginning", "twice", "one is missing"])
def test_pieces_that_do_not_fit_together_ask_again(origin: Origin, order: tuple[int, ...]) -> None:
    origin.change(*(Came(str(number), pack_metadata({"x": "x" * 200_000}), 1.0, "json") for number in range(4)))
    pieces = origin.pieces()
    assert [origin.replicas.on_chunk("ann", pieces[number]) for number in order][-1]
    assert origin.happened() == []
    origin.snapshot()
    assert origin.agrees()


def test_a_client_twice_in_a_snapshot_breaks_the_protocol(origin: Origin) -> None:
    origin.change(came("a"))
    [piece] = origin.pieces()
    with pytest.raises(MeshError):
        origin.replicas.on_chunk("ann", Chunk(1, 0, True, 1, piece.clients * 2))


@pytest.mark.parametrize("operation", [came("a"), Went("b"), Joined("r", "a"), Left("s", "a"), Joined("r", "b")])
def test_an_operation_that_cannot_be_asks_for_a_snapshot(origin: Origin, operation: Operation) -> None:
    origin.tell(came("a"), Joined("r", "a"))
    assert origin.replicas.on_delta("ann", Delta(2, [operation]))
    with pytest.raises(StateError):
        origin.state.apply(operation)


def test_a_digest_that_differs_asks_and_one_that_fits_does_not(origin: Origin) -> None:
    origin.tell(came("a"), Joined("r", "a"))
    digest = origin.state.digest()
    assert not origin.replicas.on_digest("ann", digest)
    assert origin.replicas.on_digest("ann", Digest(digest.version, b"\0" * 8, digest.clients, digest.memberships))
    assert origin.replicas.on_digest("ann", digest), "nothing came for a whole interval: ask again"
    origin.replicas.on_chunk("ann", origin.pieces()[0])
    assert not origin.replicas.on_digest("ann", origin.state.digest())


def test_the_checksum_does_not_depend_on_the_order_but_on_everything_else() -> None:
    one, other, third = NodeState(), NodeState(), NodeState()
    for state, operations in (
        (one, [came("a"), came("b"), Joined("r", "a"), Joined("s", "a")]),
        (other, [came("b"), came("a"), Joined("s", "a"), Joined("r", "a")]),
        (third, [came("b"), came("a"), Joined("s", "b"), Joined("r", "a")]),
    ):
        for operation in operations:
            state.apply(operation)
    assert one.digest() == other.digest()
    assert one.digest() != third.digest()
    assert list(difference(one, other)) == []
    assert list(difference(one, third)) == [Joined("s", "b"), Left("s", "a")]


def test_a_node_that_is_forgotten_takes_all_its_clients_with_it(origin: Origin) -> None:
    origin.tell(came("a"), Joined("r", "a"), came("b"))
    origin.happened()
    origin.replicas.forget("ann", lost=True)
    origin.replicas.forget("ann", lost=True)
    assert origin.happened() == [
        ClientLost("ann", "a", ("r",)),
        RoomLeft("ann", "r", "a"),
        ClientWent("ann", "a"),
        ClientWent("ann", "b"),
    ]
    assert (origin.replicas.index.rooms(), list(origin.replicas.index.clients())) == ({}, [])
    assert origin.replicas.wanted("ann")


def test_the_index_knows_rooms_nodes_and_codecs(origin: Origin) -> None:
    other = Origin("bob", origin.replicas)
    other.snapshot()
    origin.tell(came("a"), came("b"), Joined("r", "b"), Joined("r", "a"))
    other.tell(came("c", "msgpack"), Joined("r", "c"), Joined("s", "c"))
    index = origin.replicas.index
    assert {node: list(members) for node, members in index.nodes_in("r").items()} == {"ann": ["b", "a"], "bob": ["c"]}
    assert (list(index.members("r")), index.rooms()) == (["b", "a", "c"], {"r": 3, "s": 1})
    assert (index.codecs("ann"), index.codecs("bob"), index.codecs_in("s")) == (("json",), ("msgpack",), {"msgpack"})
    assert (index.codecs_in(None), dict(index.populated())) == ({"json", "msgpack"}, {"ann": 2, "bob": 1})
    origin.tell(came("d", "msgpack"), Went("a"))
    assert index.codecs("ann") == ("json", "msgpack")
    origin.tell(Went("b"))
    assert index.codecs("ann") == ("msgpack",)
    assert "ann" not in index.nodes_in("r")


def test_one_id_on_two_nodes_is_found_while_either_has_it(origin: Origin) -> None:
    other = Origin("bob", origin.replicas)
    other.snapshot()
    index = origin.replicas.index
    origin.tell(came("a"))
    other.tell(came("a"))
    assert index.home("a") == "bob"
    origin.tell(Went("a"))
    assert index.home("a") == "bob"
    origin.tell(came("a"))
    origin.tell(Went("a"))
    assert index.home("a") == "bob"
    other.tell(Went("a"))
    assert index.home("a") is None


def test_a_client_that_moves_between_nodes_is_told_as_moved_and_leaves_once(origin: Origin) -> None:
    other = Origin("bob", origin.replicas)
    other.snapshot()
    origin.tell(came("a"))
    origin.tell(Joined("tea", "a"))
    origin.tell(Joined("milk", "a"))
    origin.events.clear()
    other.tell(came("a"))
    other.tell(Joined("tea", "a"))
    origin.tell(Went("a"))
    other.tell(Left("tea", "a"))
    other.tell(Went("a"))
    assert origin.events == [
        ClientMoved("bob", "a"),
        RoomLeft(origin.node, "milk", "a"),  # where it was not at its new node
        RoomLeft("bob", "tea", "a"),
        ClientWent("bob", "a"),
    ]


def test_a_large_snapshot_travels_in_a_window_of_bounded_pieces() -> None:
    state = NodeState()
    for number in range(20_000):
        state.apply(Came(f"client{number}", pack_metadata({"name": "x" * 300}), 1.0, "json"))
    feed = SnapshotFeed(1, state)
    sizes, sequence = [], 0
    while feed.has_room(0):
        sequence += 1
        sizes.append(len(feed.next_piece()))
        feed.sent(sequence)
    assert len(sizes) == WINDOW
    assert max(sizes) <= 256 * 1024
    assert not feed.finished
    assert feed.has_room(1)


# Metadata ------------------------------------------------------------------------------------------------------


def test_metadata_survives_the_way_and_what_cannot_travel_is_refused() -> None:
    metadata = {"name": "Ann", "n": [1, 2.5, None, True], "deep": {"er": b"\0"}}
    assert unpack_metadata(pack_metadata(metadata)) == metadata
    with pytest.raises(BadMessage):
        pack_metadata({"x": object()})
    with pytest.raises(MessageTooBig):
        pack_metadata({"x": "x" * METADATA_SIZE})


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x81\x01\x02", b"\x90", b"\xc0", b"\x81\xa1a\xd6\xff\0\0\0\0", b"\x80\x80"]
)
def test_metadata_that_is_none_reads_as_empty_and_is_counted(origin: Origin, data: bytes) -> None:
    with pytest.raises(BadMessage):
        unpack_metadata(data)
    origin.tell(Came("a", data, 1.0, "json"))
    entry = origin.replicas.entry("a")
    assert entry is not None
    assert entry["metadata"] == {}
    assert origin.counters["metadata_unreadable"] == 1
