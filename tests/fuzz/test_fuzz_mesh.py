"""Whatever a node that knows the secret sends: it ends in a MeshError or does no harm, and nothing grows past bounds.

Runs a few seconds by default. For a long run, say how many seconds each test may take::

    REALTIME_FUZZ_SECONDS=600 python -m pytest tests/fuzz/test_fuzz_mesh.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from realtime.config import MeshOptions
from realtime.errors import BadMessage, MeshError
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_actions import (
    ClientCame,
    ClientWent,
    NodeJoined,
    NodeLeft,
    RoomJoined,
    RoomLeft,
    SendFrame,
)
from realtime.protocols.mesh_bodies import decode_body, decode_news, encode, unpack_metadata
from realtime.protocols.mesh_core import MeshCore
from realtime.protocols.mesh_frames import ack_frame, data_header, gap_frame, news_frame, resume_frame
from realtime.protocols.mesh_handshake import Hello, Role

SECONDS = float(os.environ.get("REALTIME_FUZZ_SECONDS", "0"))
OPTIONS = MeshOptions(known_nodes=4)
OWN, PEER = b"o" * 16, b"p" * 16

bounded = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def keep_on(test: Callable[[], None]) -> None:
    """Run a hypothesis test once, then again with fresh examples until REALTIME_FUZZ_SECONDS are over."""
    end = time.monotonic() + SECONDS
    test()
    while time.monotonic() < end:
        test()


small = st.integers(0, 3)
numbers = st.one_of(small, small, st.integers(-(2**63), 2**64 - 1))
texts = st.sampled_from(["", "a", "b", "r", "peer", "me", "json", "\n", "x" * 300])
blobs = st.one_of(st.just(b"\x80"), st.sampled_from([b"", OWN, PEER, b"\xc1"]), st.binary(max_size=40))
scalars = st.one_of(numbers, texts, blobs, st.none(), st.booleans(), st.floats())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=9,
)
clients = st.sampled_from(["a", "b", "c"])
operations = st.one_of(
    st.tuples(st.just(0), clients, blobs, st.just(1.0), st.just("json")),
    st.tuples(st.just(1), clients),
    st.tuples(st.integers(2, 3), st.just("r"), clients),
    st.tuples(st.just(4), clients, blobs),
)
states = st.tuples(clients, blobs, st.just(1.0), st.just("json"), st.lists(st.sampled_from(["r", "s"]), max_size=3))
bodies = st.one_of(
    st.tuples(st.just(0), st.one_of(st.none(), texts), st.dictionaries(texts, blobs, max_size=2), st.just([])),
    st.tuples(st.just(1), clients, st.dictionaries(texts, blobs, max_size=2)),
    st.tuples(st.just(2), small, clients, blobs, st.just(1.0)),
    st.tuples(st.just(3), small, st.booleans(), blobs),
    st.tuples(st.just(4), small, small),
    st.tuples(st.just(5), blobs),
    st.tuples(st.just(6), small, st.lists(operations, max_size=4)),
    st.tuples(st.just(7), small, small, st.booleans(), small, st.lists(states, max_size=3, unique_by=lambda s: s[0])),
    st.just((8,)),
    st.tuples(st.just(9), small, st.binary(min_size=8, max_size=8), small, small),
    st.lists(values, max_size=8).map(tuple),
)
records = st.tuples(
    st.sampled_from(["me", "peer", "x", "y", "z", "u", "v", "w"]),
    st.sampled_from([OWN, PEER, b"x" * 16]),
    st.one_of(small, st.just(2**48 - 1)),
    st.integers(0, 2),
    st.sampled_from([None, "there:1"]),
)
news = st.one_of(
    st.tuples(st.just(0), st.lists(records, max_size=8)),
    st.tuples(st.just(1), st.sampled_from(["peer", "x"]), st.just(PEER)),
    st.tuples(st.just(2), st.sampled_from(["peer", "x"]), st.just(PEER), st.one_of(st.none(), st.floats())),
    st.lists(values, max_size=4).map(tuple),
)
steps = st.one_of(
    st.tuples(st.just("data"), bodies),
    st.tuples(st.just("data"), bodies),
    st.tuples(st.just("news"), news),
    st.tuples(st.just("gap"), small),
    st.tuples(st.just("ack"), numbers),
    st.tuples(st.just("raw"), st.binary(max_size=30)),
    st.tuples(st.just("time"), st.sampled_from([0.1, 3.0, 6.0, 11.0])),
    st.tuples(st.just("link"), st.tuples(numbers, numbers)),
)


class Hostile:
    """A node, and a peer that sends it what it likes over links that it makes when it likes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.core = MeshCore("me", OWN, "me:1", OPTIONS, random=Random(1), now=0.0)
        self.core.client_came("mine", {}, 1.0, "json")
        self.nodes: set[str] = set()
        self.things: set[tuple[str, ...]] = set()
        self.sequence = 0
        self.link(7, 0)

    def link(self, epoch: int, received: int) -> None:
        """Make a link, and resume as an honest peer would, or not."""
        self.core.link_ended("peer", "lost", self.now)
        own = Hello("me", "default", OWN, b"1" * 16)
        hello = Hello("peer", "default", PEER, b"2" * 16, "peer:1")
        self.protocol = MeshProtocol(Role.LISTENER, own, secret=b"", message_size=1000)
        other = MeshProtocol(Role.DIALLER, hello, secret=b"", message_size=1000)
        for reader, writer in [(self.protocol, other), (other, self.protocol)] * 2:
            reader.receive_data(writer.data_to_send())
            reader.next_event()
        self.protocol.start()
        self.core.link_started(hello, self.now)
        session = self.core._peers.known["peer"].session
        self.sequence = session.received
        self.send(resume_frame(epoch, session.epoch, received, False) if 0 <= epoch < 2**63 else b"\xc1")

    def send(self, data: bytes) -> None:
        if self.protocol.state is not State.OPEN:
            return
        self.protocol.receive_data(data)
        try:
            while (event := self.protocol.next_event()) is not None:
                if type(event).__name__ != "ByeReceived":
                    self.core.received("peer", event, self.now)  # type: ignore[arg-type]
        except MeshError as error:
            self.protocol.bye(error.reason)
            self.core.link_ended("peer", error.reason, self.now)

    def step(self, kind: str, value: object) -> None:
        session = self.core._peers.known["peer"].session if "peer" in self.core._peers.known else None
        if kind == "time":
            self.now += value  # type: ignore[operator]
            self.core.tick(self.now)
            assert self.core.due > self.now
        elif kind == "link":
            self.link(*value)  # type: ignore[misc]
        elif kind == "raw":
            self.send(value)  # type: ignore[arg-type]
        elif session is not None and kind == "data":
            body = encode(value)
            self.send(data_header(session.received + 1, session.acknowledged, len(body)) + body)
        elif kind == "news":
            self.send(news_frame(encode(value)))
        elif session is not None and kind == "gap":
            self.send(gap_frame(session.received + 1, value))  # type: ignore[arg-type]
        elif kind == "ack":
            self.send(ack_frame(value))  # type: ignore[arg-type]
        self.check()

    def check(self) -> None:
        core = self.core
        for action in core.take_actions():
            if isinstance(action, NodeJoined):
                assert action.node not in self.nodes
                self.nodes.add(action.node)
            elif isinstance(action, NodeLeft):
                self.nodes.remove(action.node)
                assert not self.things
            elif isinstance(action, ClientCame):
                assert (action.client,) not in self.things
                self.things.add((action.client,))
            elif isinstance(action, ClientWent):
                self.things.remove((action.client,))
            elif isinstance(action, RoomJoined):
                assert (action.room, action.client) not in self.things
                self.things.add((action.room, action.client))
            elif isinstance(action, RoomLeft):
                self.things.remove((action.room, action.client))
            elif isinstance(action, SendFrame):
                assert len(action.data) < 100_000
        assert set(core.clients()) == {thing[0] for thing in self.things if len(thing) == 1}
        assert sum(core.rooms().values()) == sum(len(thing) == 2 for thing in self.things)
        assert len(core._membership.members) <= 2 * OPTIONS.known_nodes
        for client in core.clients():
            assert core.entry(client) is not None
        core.publish("r", "x", {"json": b"x"})


def test_whatever_a_peer_sends_events_stay_in_pairs_and_tables_bounded() -> None:
    @bounded
    @given(st.lists(steps, max_size=30))
    def test(script: list[tuple[str, object]]) -> None:
        hostile = Hostile()
        for kind, value in script:
            hostile.step(kind, value)

    keep_on(test)


def test_any_body_is_read_or_refused() -> None:
    @bounded
    @given(st.one_of(st.binary(max_size=300), values.map(encode), bodies.map(encode), news.map(encode)))
    def test(data: bytes) -> None:
        for read, refusal in ((decode_body, MeshError), (decode_news, MeshError), (unpack_metadata, BadMessage)):
            try:
                read(data)
            except refusal:
                pass

    keep_on(test)
