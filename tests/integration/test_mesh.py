"""Nodes: how they find, refuse, lose and find each other again, and what crosses between them."""

from __future__ import annotations

import os
import socket as plain_socket
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
import gevent.subprocess
import pytest
from gevent.event import Event

from realtime import (
    BadMessage,
    ConfigurationError,
    Limits,
    MeshOptions,
    Message,
    MessageTooBig,
    PeerMeshTransport,
    PortInUse,
    RealtimeKernel,
    UnknownClient,
)
from realtime.protocols.mesh import MeshProtocol, State
from realtime.protocols.mesh_bodies import Event as EventBody
from realtime.protocols.mesh_bodies import encode
from realtime.protocols.mesh_frames import PING, data_header, resume_frame
from realtime.protocols.mesh_handshake import ByeReceived, Hello, LinkEvent, Role
from realtime.transports.memory import MemoryTransport

PATIENCE = 60.0  # seconds any wait may take before the test fails
ROOT = Path(__file__).parents[2]
QUICK = MeshOptions(ping=0.05, suspect=5.0, down=10.0, backoff=0.05, backoff_max=0.1, authentication=2.0)
LIMITS_OF_CALLS = Limits(inbox=8, ack_timeout=20.0)
HASTY = MeshOptions(ping=0.05, suspect=0.1, down=0.3, backoff=0.05, backoff_max=0.1, authentication=0.3)


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a state that nothing announces."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE} s: {what}"
        gevent.sleep(0.005)


class Node:
    """A kernel with nothing but a mesh, and what its handlers were given, in order."""

    def __init__(self, node_id: str | None, limits: Limits | None, log_level: str, **options: Any) -> None:
        options.setdefault("options", QUICK)
        self.mesh = PeerMeshTransport(options.pop("port", 0), node_id=node_id, **options)
        self.kernel = RealtimeKernel(transports=[self.mesh], log_level=log_level, limits=limits)
        self.seen: list[tuple[str, str, Any]] = []
        for event in ("mesh:joined", "mesh:left", "mesh:test"):
            self.kernel.on(event, self._note)

    def _note(self, message: Message, context: Any, toolkit: Any) -> None:
        assert context.transport == "mesh"
        self.seen.append((message.type, context.id, message.payload))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"

    @property
    def counters(self) -> Counter[str]:
        return Counter(self.mesh.stats()["counters"])

    def ids(self) -> list[str]:
        return [node.id for node in self.mesh.nodes()]

    def payloads(self, event: str, node: str) -> list[Any]:
        return [payload for name, id_, payload in self.seen if (name, id_) == (event, node)]

    def wait_for(self, event: str, node: str, count: int = 1) -> Any:
        """Wait until ``count`` such events were handled; return the last one's payload."""
        until(lambda: len(self.payloads(event, node)) >= count, f"{count} {event} of {node}; seen: {self.seen[-9:]}")
        return self.payloads(event, node)[count - 1]


Start = Callable[..., Node]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start nodes that are stopped when the test ends."""
    nodes: list[Node] = []

    def start_one(
        node_id: str | None = None, *, limits: Limits | None = None, log_level: str = "critical", **options: Any
    ) -> Node:
        node = Node(node_id, limits, log_level, **options)
        nodes.append(node)
        node.kernel.start()
        return node

    yield start_one
    for node in nodes:
        node.kernel.stop()


class Stranger:
    """A peer that speaks the protocol only as far as a test wants it to."""

    said = 0  # frames in the sequence

    def __init__(self, node: Node, node_id: str = "zoe", *, instance: bytes = b"z" * 16, secret: bytes = b"") -> None:
        self.sock = gevent.socket.create_connection(("127.0.0.1", node.mesh.port), timeout=PATIENCE)
        hello = Hello(node_id, node.mesh.cluster, instance, os.urandom(16))
        self.protocol = MeshProtocol(Role.DIALLER, hello, secret=secret, message_size=1 << 20)
        self.events: list[LinkEvent] = []

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *args: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def hear(self, done: Callable[[], object]) -> bool:
        """Talk until ``done`` or the end of the connection; return whether it is done."""
        while not done():
            self.sock.sendall(self.protocol.data_to_send())
            try:
                data = self.sock.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return bool(done())
            self.protocol.receive_data(data)
            while (event := self.protocol.next_event()) is not None:
                self.events.append(event)
                if self.protocol.state is State.DECIDING:
                    self.protocol.start()
        self.sock.sendall(self.protocol.data_to_send())
        return True

    def open(self) -> Stranger:
        assert self.hear(lambda: self.protocol.state is State.OPEN), self.events
        return self

    def resume(self) -> Stranger:
        """Open the session, as one that has heard nothing yet."""
        self.send(resume_frame(7, 0, 0, False))
        return self

    def tell(self, *bodies: bytes) -> None:
        """Send events."""
        for body in bodies:
            packed = encode(EventBody(body))
            self.said += 1
            self.send(data_header(self.said, 0, len(packed)) + packed)

    def hear_bye(self) -> str:
        """Wait for the end; return the reason the node gave."""
        self.hear(lambda: any(isinstance(event, ByeReceived) for event in self.events))
        [bye] = [event for event in self.events if isinstance(event, ByeReceived)]
        return bye.reason


def drain(sock: gevent.socket.socket) -> bytes:
    """Read until the other side has closed the connection."""
    received = b""
    with gevent.Timeout(PATIENCE):
        while True:
            try:
                data = sock.recv(65536)
            except ConnectionResetError:
                return received
            if not data:
                return received
            received += data


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, for nodes that must know each other's before they start."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(plain_socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def dials_within(seconds: float, node: Node) -> int:
    """Return how often a node tries to connect within the next seconds."""
    before = node.counters["dials"]
    gevent.sleep(seconds)
    return node.counters["dials"] - before


# Together -------------------------------------------------------------------------------------------------


def test_a_node_without_peers_works_alone(start: Start) -> None:
    alone = start()
    assert alone.mesh.port > 0
    assert alone.mesh.node_id
    assert alone.mesh.nodes() == []
    assert alone.mesh.broadcast({"type": "mesh:test"}) == 0


def test_two_nodes_see_each_other_and_exchange_events(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])
    assert ann.wait_for("mesh:joined", "bob") == {"node": "bob", "address": bob.address}
    assert bob.wait_for("mesh:joined", "ann") == {"node": "ann", "address": ann.address}
    assert (ann.ids(), bob.ids()) == (["bob"], ["ann"])
    [seen] = ann.mesh.nodes()
    assert (seen.state, seen.address, seen.linked, seen.clients) == ("up", bob.address, True, 0)
    assert abs(seen.since - time.time()) < PATIENCE
    assert ann.mesh.broadcast({"type": "mesh:test", "payload": {"price": 1.5, "raw": b"\x00\xff"}}) == 1
    assert bob.wait_for("mesh:test", "ann") == {"price": 1.5, "raw": b"\x00\xff"}
    bob.mesh.send("ann", {"type": "mesh:test", "payload": "directly"})
    assert ann.wait_for("mesh:test", "bob") == "directly"
    assert ann.payloads("mesh:test", "ann") == []


@pytest.mark.parametrize("form", ["{host}:{port}", "mesh://{host}:{port}", "localhost:{port}", "pair"])
def test_a_peer_may_be_written_in_several_ways(start: Start, form: str) -> None:
    ann = start("ann")
    peer = ("127.0.0.1", ann.mesh.port) if form == "pair" else form.format(host="127.0.0.1", port=ann.mesh.port)
    start("bob", peers=[peer]).wait_for("mesh:joined", "ann")


def test_three_nodes_reach_each_other_and_only_who_is_meant(start: Start) -> None:
    ann = start("ann", secret="tell no one")
    bob = start("bob", secret="tell no one", peers=[ann.address])
    cid = start("cid", secret=b"tell no one", peers=[ann.address, bob.address])
    for node, others in ((ann, "bob cid"), (bob, "ann cid"), (cid, "ann bob")):
        for other in others.split():
            node.wait_for("mesh:joined", other)
        assert node.ids() == others.split()
    assert bob.mesh.broadcast({"type": "mesh:test", "payload": "all"}) == 2
    bob.mesh.send("cid", {"type": "mesh:test", "payload": "one"})
    assert cid.wait_for("mesh:test", "bob", 2) == "one"
    cid.mesh.send("ann", {"type": "mesh:test", "payload": "last"})
    ann.wait_for("mesh:test", "cid")
    assert ann.payloads("mesh:test", "bob") == ["all"]


def test_a_handler_answers_the_node_it_heard(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])

    @bob.kernel.on("mesh:ask:[what]")
    def answer(message: Message, context: Any, toolkit: Any) -> None:
        toolkit.reply({"type": "mesh:test", "payload": {"to": context.id, **message.params}})

    ann.wait_for("mesh:joined", "bob")
    ann.mesh.send("bob", {"type": "mesh:ask:time"})
    assert ann.wait_for("mesh:test", "bob") == {"to": "ann", "what": "time"}


def test_a_handler_that_fails_is_told_to_the_sender_and_harms_nothing(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])

    @bob.kernel.on("mesh:fail")
    def fail(message: Message, context: Any, toolkit: Any) -> None:
        toolkit.reply({"type": "chat:message"})  # not for nodes

    ann.wait_for("mesh:joined", "bob")
    ann.mesh.send("bob", {"type": "mesh:fail"})
    ann.mesh.send("bob", {"type": "mesh:test", "payload": "after"})
    assert bob.wait_for("mesh:test", "ann") == "after"
    until(lambda: ann.counters["remote_failures"] == 1, "the failure is told")


def test_events_of_a_peer_are_handled_in_order_and_one_at_a_time(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address], limits=Limits(inbox=4))
    bob.kernel.off("mesh:test")
    running: list[int] = []

    @bob.kernel.on("mesh:test")
    def slow(message: Message, context: Any, toolkit: Any) -> None:
        running.append(message.payload)
        assert len(running) == 1
        gevent.sleep(0)
        running.clear()
        bob.seen.append((message.type, context.id, message.payload))

    ann.wait_for("mesh:joined", "bob")
    for number in range(500):
        ann.mesh.broadcast({"type": "mesh:test", "payload": number})
    bob.wait_for("mesh:test", "ann", 500)
    assert bob.payloads("mesh:test", "ann") == list(range(500))


def test_a_node_whose_handlers_are_slow_stops_reading_and_loses_nothing(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address], limits=Limits(inbox=8), options=HASTY)
    bob.kernel.off("mesh:test")
    go_on = Event()

    @bob.kernel.on("mesh:test")
    def stuck(message: Message, context: Any, toolkit: Any) -> None:
        go_on.wait(PATIENCE)
        bob.seen.append((message.type, context.id, message.payload[0]))

    ann.wait_for("mesh:joined", "bob")
    bob.wait_for("mesh:joined", "ann")  # a moment later: it is ann who decides
    for number in range(100):
        ann.mesh.send("bob", {"type": "mesh:test", "payload": [number, "x" * 50_000]})
    connection = bob.mesh._nodes["ann"]
    until(lambda: connection.paused, "reading stops")
    # longer than the silence after which a link that is read is given up
    gevent.sleep(2 * HASTY.down)
    assert sum(message.type == "mesh:test" for message, _ in connection.inbox) <= 8
    assert bob.ids() == ["ann"]
    go_on.set()
    bob.wait_for("mesh:test", "ann", 100)
    assert bob.payloads("mesh:test", "ann") == list(range(100))


def test_a_handler_of_events_gets_the_answer_of_a_client_whose_node_has_sent_more_of_them(start: Start) -> None:
    ann = start("ann", limits=LIMITS_OF_CALLS)
    bob = start("bob", peers=[ann.address], limits=LIMITS_OF_CALLS)
    clients = MemoryTransport()
    ann.kernel.use_transport(clients)
    client = clients.connect()
    until(lambda: bob.kernel.presence.has(client.id), "bob knows the client")
    answers: list[Any] = []

    @bob.kernel.on("mesh:ask")
    def ask(message: Message, context: Any, toolkit: Any) -> None:
        answers.append(bob.kernel.call(client.id, {"type": "question", "payload": message.payload}))

    def answer_all() -> None:
        for number in range(40):
            client.answer(client.receive(timeout=PATIENCE), number)

    answering = gevent.spawn(answer_all)
    for number in range(40):
        ann.mesh.broadcast({"type": "mesh:ask", "payload": number})
    until(lambda: len(answers) == 40, "all answers")
    assert answers == list(range(40))
    answering.get(timeout=PATIENCE)


# Who is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ({"cluster": "blue"}, {"cluster": "green"}, "cluster"),
        ({"secret": "right"}, {"secret": "wrong"}, "secret"),
        ({"secret": "right"}, {}, "secret"),
        ({}, {"secret": "right"}, "secret"),
    ],
)
def test_a_node_that_does_not_belong_is_refused_counted_and_tried_again(
    start: Start, ours: dict[str, str], theirs: dict[str, str], reason: str
) -> None:
    ann = start("ann", **ours)
    bob = start("bob", peers=[ann.address], **theirs)
    until(lambda: ann.counters[f"refused_{reason}"] >= 2, "refused twice")
    until(lambda: bob.counters[f"refused_{reason}"] >= 2, "told why")
    assert (ann.seen, bob.seen) == ([], [])
    assert (ann.ids(), bob.ids()) == ([], [])


def test_the_reason_of_a_refusal_is_logged_once_by_the_dialler(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    ann = start("ann", cluster="blue")
    bob = start("bob", cluster="green", peers=[ann.address], log_level="warning")
    until(lambda: bob.counters["refused_cluster"] >= 3, "refused three times")
    lines = [record.getMessage() for record in caplog.records if "cannot link" in record.getMessage()]
    assert len(lines) == 1
    assert f"{ann.address}: refused: cluster" in lines[0]
    assert any("'green', not 'blue'" in record.getMessage() for record in caplog.records)


def test_another_version_is_refused(start: Start) -> None:
    ann = start("ann")
    with Stranger(ann) as stranger:
        said = stranger.protocol.data_to_send()
        assert said[:3] == b"\x97\x00\x01"
        stranger.send(b"\x97\x00\x02" + said[3:])
        assert stranger.hear_bye() == "version"
    until(lambda: ann.counters["refused_version"] == 1, "counted")


def test_another_node_with_the_same_id_is_refused(start: Start) -> None:
    ann = start("ann")
    start("ann", peers=[ann.address])
    until(lambda: ann.counters["refused_node_id"] >= 1, "refused")
    assert ann.seen == []


def test_its_own_address_among_the_peers_does_no_harm(start: Start) -> None:
    mine, other = free_ports(2)
    # as it is known, and in a way that only a dial can find out
    peers = [f"{host}:{port}" for host in ("127.0.0.1", "localhost") for port in (mine, other)]
    ann = start("ann", port=mine, peers=peers)
    bob = start("bob", port=other, peers=peers)
    ann.wait_for("mesh:joined", "bob")
    bob.wait_for("mesh:joined", "ann")
    until(lambda: ann.counters["refused_self"] == 2, "both ends of the dial found out")
    until(lambda: bob.counters["refused_self"] == 2, "both ends of the dial found out")
    assert (ann.ids(), bob.ids()) == (["bob"], ["ann"])
    for node in (ann, bob):
        until(lambda node=node: not dials_within(5 * QUICK.backoff_max, node), "an end of dialling")  # type: ignore[misc]
    assert (ann.counters["refused_self"], bob.counters["refused_self"]) == (2, 2)


@pytest.mark.parametrize("said", [b"", b"\x97"], ids=["silence", "half a hello"])
def test_who_does_not_prove_itself_in_time_is_dropped(start: Start, said: bytes) -> None:
    ann = start("ann", options=HASTY)
    with gevent.socket.create_connection(("127.0.0.1", ann.mesh.port)) as sock:
        sock.sendall(said)
        drain(sock)
    until(lambda: ann.counters["refused_timeout"] == 1, "counted")


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xc6\x3f\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", os.urandom(1 << 20)],
    ids=["HTTP", "1 GB of bytes", "a huge array", "noise"],
)
def test_garbage_is_refused_and_others_are_served(start: Start, said: bytes) -> None:
    ann = start("ann")
    with gevent.socket.create_connection(("127.0.0.1", ann.mesh.port)) as sock:
        try:
            sock.sendall(said)
        except OSError:
            pass  # refused before all was said
        drain(sock)
    until(lambda: ann.counters["refused_broken"] + ann.counters["refused_lost"] == 1, "counted")
    start("bob", peers=[ann.address]).wait_for("mesh:joined", "ann")


def test_a_wild_length_from_a_node_ends_its_link(start: Start) -> None:
    ann = start("ann", options=HASTY)
    with Stranger(ann) as stranger:
        stranger.open().resume()
        stranger.send(b"\x94\x06\x01\x00\xce\x40\x00\x00\x00")  # a message of 1 GB
        assert stranger.hear_bye() == "broken"
    assert ann.counters["links_ended_broken"] == 1
    assert ann.wait_for("mesh:left", "zoe") == {"node": "zoe", "reason": "down"}  # it does not come back


def test_what_is_no_message_is_counted_and_the_link_lives_on(start: Start) -> None:
    ann = start("ann")
    with Stranger(ann) as stranger:
        stranger.open().resume()
        stranger.tell(b"\xc1", b"\x81\xa4type\xabmesh:joined", b"\x81\xa4type\xa9mesh:test")
        ann.wait_for("mesh:test", "zoe")
    assert ann.counters["refused_bad_message"] == 2
    assert len(ann.payloads("mesh:joined", "zoe")) == 1


def test_handshakes_at_one_time_are_bounded(start: Start) -> None:
    ann = start("ann", options=MeshOptions(handshakes=2))
    with ExitStack() as stack:
        socks = [
            stack.enter_context(gevent.socket.create_connection(("127.0.0.1", ann.mesh.port))) for _ in range(3)
        ]
        assert drain(socks[2]) == b""
    assert ann.counters["refused_busy"] == 1


# One link ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [("ann", "bob"), ("bob", "ann")])
@pytest.mark.parametrize("turn", range(3))
def test_nodes_that_dial_each_other_at_once_end_with_one_link(
    start: Start, ids: tuple[str, str], turn: int
) -> None:
    ports = free_ports(2)
    one = start(ids[0], port=ports[0], peers=[f"127.0.0.1:{ports[1]}"])
    other = start(ids[1], port=ports[1], peers=[f"127.0.0.1:{ports[0]}"])
    one.wait_for("mesh:joined", ids[1])
    other.wait_for("mesh:joined", ids[0])
    until(lambda: one.mesh.stats()["links"] == other.mesh.stats()["links"] == 1, "one link")
    for number in range(20):
        one.mesh.broadcast({"type": "mesh:test", "payload": number})
        other.mesh.broadcast({"type": "mesh:test", "payload": number})
    one.wait_for("mesh:test", ids[1], 20)
    other.wait_for("mesh:test", ids[0], 20)
    for node, peer in ((one, ids[1]), (other, ids[0])):
        assert node.payloads("mesh:test", peer) == list(range(20))
        assert len(node.payloads("mesh:joined", peer)) == 1
        assert node.payloads("mesh:left", peer) == []


@pytest.mark.parametrize(("dialler", "other"), [("ann", "bob"), ("bob", "ann")])
def test_a_node_known_by_two_addresses_gets_one_link(start: Start, dialler: str, other: str) -> None:
    listening = start(other)
    node = start(dialler, peers=[listening.address, f"localhost:{listening.mesh.port}"])
    node.wait_for("mesh:joined", other)
    until(lambda: node.counters["refused_duplicate"] >= 1, "the second link was given up")
    until(lambda: node.mesh.stats()["links"] == 1, "one link")
    dials = node.counters["dials"]
    gevent.sleep(5 * QUICK.backoff_max)  # it does not try again as long as the node is linked
    assert node.counters["dials"] == dials
    assert node.payloads("mesh:left", other) == []


def test_the_same_instance_again_is_a_duplicate_and_a_new_one_takes_over(start: Start) -> None:
    ann = start("ann")  # the smaller id: it is up to ann
    with Stranger(ann) as first, Stranger(ann) as again, Stranger(ann, instance=b"new" + b"z" * 13) as restarted:
        first.open()
        ann.wait_for("mesh:joined", "zoe")
        assert again.hear_bye() == "duplicate"
        restarted.open()
        assert first.hear_bye() == "replaced"
        ann.wait_for("mesh:joined", "zoe", 2)
        assert [name for name, *_ in ann.seen] == ["mesh:joined", "mesh:left", "mesh:joined"]
        assert ann.payloads("mesh:left", "zoe") == [{"node": "zoe", "reason": "restarted"}]
        restarted.resume().tell(b"\x81\xa4type\xa9mesh:test")
        ann.wait_for("mesh:test", "zoe")


def test_the_larger_node_follows_the_smaller_one_to_a_new_link(start: Start) -> None:
    yan = start("yan")
    with Stranger(yan, "abe") as first, Stranger(yan, "abe") as second:
        first.open()
        yan.wait_for("mesh:joined", "abe")
        second.open()
        assert first.hear_bye() == "replaced"
        second.resume().tell(b"\x81\xa4type\xa9mesh:test")
        yan.wait_for("mesh:test", "abe")
        assert yan.ids() == ["abe"]
        assert [name for name, *_ in yan.seen] == ["mesh:joined", "mesh:test"]  # it was never gone


# Coming and going ------------------------------------------------------------------------------------------


def test_a_node_that_stops_says_so_and_is_found_again_on_its_port(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])
    bob.wait_for("mesh:joined", "ann")
    port = ann.mesh.port
    ann.kernel.stop()
    assert bob.wait_for("mesh:left", "ann")["reason"] == "leaving"
    assert bob.ids() == []
    assert [name for name, *_ in ann.seen] == ["mesh:joined", "mesh:left"]
    until(lambda: bob.counters["dial_failures"] >= 2, "tried in vain")
    anew = start("ann", port=port)
    bob.wait_for("mesh:joined", "ann", 2)
    anew.mesh.broadcast({"type": "mesh:test", "payload": "back"})
    assert bob.wait_for("mesh:test", "ann") == "back"


def test_a_stopped_kernel_can_be_started_again(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])
    ann.wait_for("mesh:joined", "bob")
    bob.kernel.stop()
    bob.kernel.start()
    ann.wait_for("mesh:joined", "bob", 2)


def test_a_peer_that_is_not_there_yet_is_found_when_it_comes(start: Start) -> None:
    [port] = free_ports(1)
    bob = start("bob", peers=[f"127.0.0.1:{port}"])
    until(lambda: bob.counters["dial_failures"] >= 1, "tried in vain")
    start("ann", port=port)
    bob.wait_for("mesh:joined", "ann")


@pytest.mark.parametrize("node_id", ["abe", "zoe"])
def test_a_silent_node_is_given_up(start: Start, node_id: str) -> None:
    yan = start("yan", options=HASTY)
    with Stranger(yan, node_id) as stranger:
        stranger.open()
        yan.wait_for("mesh:joined", node_id)
        until(lambda: [node.state for node in yan.mesh.nodes()] == ["suspect"], "suspected first")
        assert yan.wait_for("mesh:left", node_id) == {"node": node_id, "reason": "down"}
        assert yan.ids() == []
        assert yan.counters["links_ended_silent"] == 1


def test_a_node_with_nothing_to_say_is_kept_alive_by_pings(start: Start) -> None:
    ann = start("ann", options=HASTY)
    bob = start("bob", peers=[ann.address], options=HASTY)
    ann.wait_for("mesh:joined", "bob")
    bob.wait_for("mesh:joined", "ann")
    frames = ann.counters["frames_sent"]
    gevent.sleep(3 * HASTY.down)
    assert [ann.seen[1:], bob.seen[1:]] == [[], []]
    assert ann.counters["frames_sent"] == frames  # the pings alone have done it


def test_a_node_that_does_not_read_is_dropped_and_the_others_are_served(start: Start) -> None:
    options = MeshOptions(outbox=1 << 20, message_size=1 << 19, resend=1 << 20, ping=0.05, suspect=0.5, down=1.0)
    ann = start("ann", options=options)
    bob = start("bob", peers=[ann.address])
    with Stranger(ann) as stranger:
        stranger.open().resume()
        ann.wait_for("mesh:joined", "zoe")
        ann.wait_for("mesh:joined", "bob")
        outbox = ann.mesh._links.get("zoe").outbox
        largest = sent = 0
        while not ann.counters["links_ended_slow"]:
            assert sent < 1000
            ann.mesh.broadcast({"type": "mesh:test", "payload": [sent, "x" * 100_000]})
            sent += 1
            largest = max(largest, outbox.size)
            stranger.send(PING)  # it lives, but does not read
            bob.wait_for("mesh:test", "ann", sent)
        assert 0 < largest <= 1 << 20
        assert ann.wait_for("mesh:left", "zoe") == {"node": "zoe", "reason": "down"}  # it does not come back
    assert ann.counters["links_ended_slow"] == 1
    assert ann.kernel.stats()["counters"]["closed_slow_consumer"] == 1
    assert [number for number, _ in bob.payloads("mesh:test", "ann")] == list(range(sent))


def test_a_node_in_another_process_joins_answers_and_is_missed_when_killed(start: Start) -> None:
    options = MeshOptions(ping=0.1, suspect=0.5, down=1.0)
    ann = start("ann", secret="between us", options=options)
    program = f"""
        import sys
        from realtime import MeshOptions, PeerMeshTransport, RealtimeKernel
        options = {options!r}
        mesh = PeerMeshTransport(port=0, peers=[sys.argv[1]], node_id="far", secret="between us", options=options)
        kernel = RealtimeKernel(transports=[mesh], log_level="warning")
        @kernel.on("mesh:ask")
        def answer(message, context, toolkit):
            toolkit.reply({{"type": "mesh:test", "payload": message.payload * 2}})
        kernel.run()
    """
    process = gevent.subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), ann.address], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        ann.wait_for("mesh:joined", "far")
        ann.mesh.send("far", {"type": "mesh:ask", "payload": 21})
        assert ann.wait_for("mesh:test", "far") == 42
        process.kill()
        assert ann.wait_for("mesh:left", "far") == {"node": "far", "reason": "down"}
        assert ann.counters["links_ended_lost"] == 1
    finally:
        process.kill()
        process.wait(PATIENCE)


# What cannot be ----------------------------------------------------------------------------------------------


def test_a_port_in_use_is_told_at_the_start(start: Start) -> None:
    ann = start("ann")
    with pytest.raises(PortInUse, match=str(ann.mesh.port)):
        start("bob", port=ann.mesh.port)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_listening_for_other_machines_takes_a_secret(start: Start, host: str) -> None:
    with pytest.raises(ConfigurationError, match="secret"):
        start(host=host)


def test_listening_for_other_machines_with_a_secret_or_insecurely(start: Start) -> None:
    for options in ({"secret": "between us"}, {"insecure": True}):
        node = start(host="0.0.0.0", **options)
        assert node.mesh.address is None
        assert start(host="0.0.0.0", advertise="node.example:9090", **options).mesh.address == "node.example:9090"


@pytest.mark.parametrize(
    "options",
    [
        {"peers": "127.0.0.1:9090"},
        {"peers": ["127.0.0.1"]},
        {"peers": ["127.0.0.1:0"]},
        {"peers": ["127.0.0.1:99999"]},
        {"peers": ["::1:9090"]},
        {"peers": [":9090"]},
        {"peers": [("127.0.0.1", "9090")]},
        {"peers": [9090]},
        {"peers": ["http://127.0.0.1:9090"]},
        {"advertise": "nowhere"},
        {"secret": ""},
        {"secret": 7},
        {"node_id": ""},
        {"node_id": "x" * 256},
        {"cluster": "new\nline"},
        {"port": -1},
        {"options": 7},
    ],
)
def test_an_option_that_cannot_work_is_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        PeerMeshTransport(**options)


@pytest.mark.parametrize(
    "options",
    [{"ping": 0.0}, {"ping": 5.0}, {"suspect": 11.0}, {"backoff": 31.0}, {"message_size": 16 << 20}, {"outbox": 1.5}],
)
def test_times_and_sizes_that_cannot_work_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        MeshOptions(**options)


def test_what_cannot_be_sent_is_told_to_the_sender(start: Start) -> None:
    ann = start("ann", options=MeshOptions(message_size=1000))
    bob = start("bob", peers=[ann.address])
    ann.wait_for("mesh:joined", "bob")
    with pytest.raises(UnknownClient, match="nobody"):
        ann.mesh.send("nobody", {"type": "mesh:test"})
    with pytest.raises(BadMessage, match="chat:message"):
        ann.mesh.broadcast({"type": "chat:message"})
    with pytest.raises(BadMessage, match="own handlers"):
        ann.mesh.send("bob", {"type": "mesh:left"})
    with pytest.raises(MessageTooBig, match="1000"):
        ann.mesh.broadcast({"type": "mesh:test", "payload": "x" * 1000})
    ann.mesh.send("bob", {"type": "mesh:test", "payload": "still there"})
    assert bob.wait_for("mesh:test", "ann") == "still there"


def test_a_node_can_be_told_from_a_native_thread(start: Start, in_thread: Callable[..., Any]) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address])
    ann.wait_for("mesh:joined", "bob")
    assert in_thread(ann.mesh.broadcast, {"type": "mesh:test", "payload": "from afar"}) == 1
    assert bob.wait_for("mesh:test", "ann") == "from afar"
    assert [node.id for node in in_thread(ann.mesh.nodes)] == ["bob"]


def test_nothing_is_left_when_links_are_in_every_state(start: Start) -> None:
    ann = start("ann")
    start("bob", peers=[ann.address])
    ann.wait_for("mesh:joined", "bob")
    [nobody] = free_ports(1)
    dan = start("dan", peers=[f"127.0.0.1:{nobody}", ann.address])
    silent = gevent.socket.create_connection(("127.0.0.1", ann.mesh.port))
    with silent, Stranger(ann) as stranger:
        stranger.open()
        dan.wait_for("mesh:joined", "ann")
        just_now = gevent.socket.create_connection(("127.0.0.1", ann.mesh.port))
        ann.kernel.stop()  # what is left of greenlets and sockets fails the test
        just_now.close()
    assert ann.mesh.stats()["links"] == 0
    assert [name for name, id_, _ in ann.seen if id_ == "bob"] == ["mesh:joined", "mesh:left"]
