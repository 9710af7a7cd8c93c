"""Links between nodes: who is refused one, and how two nodes end with one alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import gevent
import gevent.socket
import gevent.subprocess
import pytest
from mesh_here import (
    HASTY,
    PATIENCE,
    QUICK,
    Start,
    Stranger,
    dials_within,
    drain,
    starting,
    until,
)
from ports import free_ports

from realtime import (
    MeshOptions,
)
from realtime.protocols.mesh import State

NOISE = random.Random(1).randbytes(1 << 20)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start nodes that are stopped when the test ends."""
    with starting() as start_one:
        yield start_one


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


def test_a_node_that_has_taken_its_socket_along_is_no_reason_for_a_warning(
    start: Start, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    bob = start("bob", peers=[f"unix:{tmp_path}/gone.node"], log_level="info")
    until(lambda: bob.counters["dial_failures"] >= 2, "tried twice")
    (record,) = [record for record in caplog.records if "cannot link" in record.getMessage()]
    assert record.levelname == "INFO"
    assert "gone.node: No such file or directory" in record.getMessage()


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
    ann = start("ann", options=MeshOptions(authentication=0.5))
    with gevent.socket.create_connection(("127.0.0.1", ann.mesh.port)) as sock:
        sock.sendall(said)
        drain(sock)
    until(lambda: ann.counters["refused_timeout"] == 1, "counted")


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\xc6\x3f\xff\xff\xff", b"\xdd\x7f\xff\xff\xff", NOISE],
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
    ann = start("ann", options=MeshOptions(handshakes=2, authentication=PATIENCE))
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
    with ExitStack() as stack:
        first = stack.enter_context(Stranger(ann))
        first.open()
        ann.wait_for("mesh:joined", "zoe")
        again = stack.enter_context(Stranger(ann))
        assert again.hear_bye() == "duplicate"

        def comes_anew() -> Stranger | None:
            """Refused as long as the first one is not silent for long: a time in which ann was held up counts not."""
            one = stack.enter_context(Stranger(ann, instance=b"new" + b"z" * 13))
            return one if one.hear(lambda: one.protocol.state is State.OPEN) else None

        restarted = until(comes_anew, "the first one is silent")
        assert first.hear_bye() == "replaced"
        ann.wait_for("mesh:joined", "zoe", 2)
        assert [name for name, *_ in ann.seen] == ["mesh:joined", "mesh:left", "mesh:joined"]
        assert ann.payloads("mesh:left", "zoe") == [{"node": "zoe", "reason": "restarted"}]
        restarted.resume().tell(b"\x81\xa4type\xa9mesh:test")
        ann.wait_for("mesh:test", "zoe")


@pytest.mark.parametrize("node_id", ["zoe", "abe"])
def test_a_second_node_of_an_id_is_refused_while_the_first_one_lives(start: Start, node_id: str) -> None:
    calm = MeshOptions(ping=10.0, suspect=40.0, down=80.0, backoff=0.05, backoff_max=0.1, authentication=PATIENCE)
    ann = start("ann", options=calm)
    first = start(node_id, peers=[ann.address], options=calm)
    ann.wait_for("mesh:joined", node_id)
    second = start(node_id, peers=[ann.address], options=calm)
    until(lambda: second.counters["refused_node_id"] + second.counters["links_ended_node_id"] >= 3, "refusals")
    assert ann.payloads("mesh:left", node_id) == []
    assert len(ann.payloads("mesh:joined", node_id)) == 1
    first.kernel.stop()
    ann.wait_for("mesh:joined", node_id, 2)
    second.wait_for("mesh:joined", "ann")


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
