"""Nodes: how they find and lose each other, and what crosses between them."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.socket
import gevent.subprocess
import pytest
from gevent.event import Event
from mesh_here import (
    HASTY,
    LIMITS_OF_CALLS,
    PATIENCE,
    ROOT,
    Start,
    Stranger,
    starting,
    until,
)
from ports import free_ports

from realtime import (
    BadMessage,
    ConfigurationError,
    Limits,
    MeshOptions,
    Message,
    MessageTooBig,
    PeerMeshTransport,
    PortInUse,
    UnknownClient,
)
from realtime.protocols.mesh_frames import PING
from realtime.transports.memory import MemoryTransport


@pytest.fixture
def start() -> Iterator[Start]:
    """Start nodes that are stopped when the test ends."""
    with starting() as start_one:
        yield start_one


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
    bob.mesh.send("ann", {"type": "mesh:test", "payload": "last"})
    assert ann.wait_for("mesh:test", "bob", 2) == "last"
    assert ann.payloads("mesh:test", "bob") == ["all", "last"]


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
    connection = bob.mesh._news.nodes["ann"]
    until(lambda: connection.paused, "reading stops")
    # longer than the silence after which a link that is read is given up
    gevent.sleep(2 * HASTY.down)
    assert sum(message.type == "mesh:test" for message, *_ in connection.inbox) < 50
    assert bob.ids() == ["ann"]
    go_on.set()
    bob.wait_for("mesh:test", "ann", 100)
    assert bob.payloads("mesh:test", "ann") == list(range(100))


def test_a_new_link_is_not_read_on_either_while_handlers_are_slow(start: Start) -> None:
    ann = start("ann")
    bob = start("bob", peers=[ann.address], limits=Limits(inbox=8))
    go_on = Event()

    @bob.kernel.on("mesh:slow")
    def slow(message: Message, context: Any, toolkit: Any) -> None:
        go_on.wait(PATIENCE)
        bob.seen.append((message.type, context.id, message.payload[0]))

    bob.wait_for("mesh:joined", "ann")
    for number in range(200):
        ann.mesh.broadcast({"type": "mesh:slow", "payload": [number, "x" * 50_000]})
    connection = bob.mesh._news.nodes["ann"]
    until(lambda: connection.paused, "reading stops")
    link = bob.mesh._links.get("ann")
    link.part("lost")
    until(lambda: bob.mesh._links.get("ann") not in (None, link), "a new link")
    until(lambda: bob.mesh._links.get("ann")._paused, "reading stops again")
    assert len(connection.inbox) < 50
    go_on.set()
    bob.wait_for("mesh:slow", "ann", 200)
    assert bob.payloads("mesh:slow", "ann") == list(range(200))


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


# Coming and going ------------------------------------------------------------------------------------------


def test_a_node_that_stops_says_so_and_is_found_again_on_its_port(start: Start) -> None:
    [port] = free_ports(1)
    ann = start("ann", port=port)
    bob = start("bob", peers=[ann.address])
    bob.wait_for("mesh:joined", "ann")
    ann.wait_for("mesh:joined", "bob")
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
    # no more hasty than a busy machine allows
    options = MeshOptions(ping=0.05, suspect=1.5, down=2.0, authentication=PATIENCE, digest=600.0)
    ann = start("ann", options=options)
    bob = start("bob", peers=[ann.address], options=options)
    ann.wait_for("mesh:joined", "bob")
    bob.wait_for("mesh:joined", "ann")
    until(lambda: ann.counters["snapshots_sent"], "a node that is new is sent a snapshot, after it was announced")
    frames = ann.counters["frames_sent"]
    gevent.sleep(1.25 * options.down)
    assert [ann.seen[1:], bob.seen[1:]] == [[], []]
    assert ann.counters["frames_sent"] == frames  # the pings alone have done it


def test_a_node_that_does_not_read_is_dropped_and_the_others_are_served(start: Start) -> None:
    sizes = {"outbox": 1 << 20, "message_size": 1 << 19, "resend": 1 << 20}
    options = MeshOptions(ping=0.05, suspect=0.5, down=1.0, authentication=PATIENCE, **sizes)
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
    options = MeshOptions(ping=0.2, suspect=2.0, down=4.0)
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
        assert ann.counters["links_ended_lost"] >= 1
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
