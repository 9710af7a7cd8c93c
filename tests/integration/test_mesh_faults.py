"""Nodes in processes of their own: one kernel together, and what becomes of it when nodes and links die.

With streams of 100,000 messages: ``tox -e faults``, or ``REALTIME_FAULTS=long`` in the environment.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import gevent
import pytest
import websockets.sync.client
from mesh_rig import CALM, LONG, PATIENCE, QUICK, Cluster, Network, NodeProcess, Proxies, any_network, eventually

STREAM = 100_000 if LONG else 6_000  # numbered messages of each sender
SLEEP = 20.0 if LONG else 0.0  # seconds, once the others have missed the sleeper

Make = Callable[..., Cluster]


@pytest.fixture
def cluster() -> Iterator[Make]:
    """Start clusters that are killed when the test ends."""
    with ExitStack() as stack:

        def make(size: int, *, proxies: bool = False, **options: Any) -> Cluster:
            network: Network = Proxies(size) if proxies else any_network(size)
            return stack.enter_context(Cluster(size, network, **options))

        yield make


def whole(summary: dict[str, Any], sender: str, last: int) -> bool:
    """Whether a client got all numbers of a sender up to this one, once and in order."""
    return bool(summary.get(sender) == {"count": last + 1, "last": last, "gaps": [], "repeated": 0})


def has_all(node: NodeProcess, last: int) -> bool:
    """Whether the client of a node got all of the first two nodes."""
    seen = node.ask("seen", name="c")
    return whole(seen, "n0", last) and whole(seen, "n1", last)


def wait_for_last(node: NodeProcess, sender: str, last: int) -> dict[str, Any]:
    """Wait until the client of a node got a number of a sender; return what it got of that one."""

    def found() -> dict[str, Any] | None:
        seen = node.ask("seen", name="c").get(sender)
        return seen if seen is not None and seen["last"] == last else None

    return eventually(found, f"{last} of {sender}")  # type: ignore[no-any-return]


def never_twice(node: NodeProcess, client: str) -> bool:
    """Whether a client got no number twice, nor an older one after a newer."""
    return not any(seen["repeated"] for seen in node.ask("seen", name=client).values())


# One kernel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxies", [False, True], ids=["namespaces", "loopback"])
@pytest.mark.parametrize("size", [3, 5])
def test_processes_are_one_kernel(cluster: Make, size: int, proxies: bool) -> None:
    nodes = cluster(size, proxies=proxies, mesh={"options": CALM}).nodes
    ids = [node.ask("connect", name="c", room="tea", metadata={"at": node.id}) for node in nodes]
    for node in nodes:
        eventually(lambda node=node: node.ask("view")["rooms"] == {"tea": sorted(ids)}, "the room")  # type: ignore[misc]
        assert node.ask("view")["clients"] == {id_: {"at": f"n{place}"} for place, id_ in enumerate(ids)}
    assert nodes[0].ask("broadcast", type="news", payload="hot", room="tea") == size
    nodes[1].ask("send", client=ids[-1], payload="for you")
    assert nodes[-1].ask("call", client=ids[0], payload=[1, "two"]) == {"heard": [1, "two"]}
    expected: list[list[Any]] = [[["news", "hot"]] for _ in nodes]
    expected[0].append(["question", [1, "two"]])
    expected[-1].append(["note", "for you"])
    for node, others in zip(nodes, expected, strict=True):
        eventually(lambda node=node, others=others: sorted(node.ask("others", name="c")) == others, "all")  # type: ignore[misc]


def test_browsers_on_three_nodes_meet(cluster: Make, in_thread: Callable[..., Any]) -> None:
    nodes = cluster(3, proxies=True, mesh={"options": CALM}).nodes

    def talk() -> list[Any]:
        with ExitStack() as stack:
            sockets = [
                stack.enter_context(
                    websockets.sync.client.connect(f"ws://127.0.0.1:{node.where['sockets']}/", open_timeout=PATIENCE)
                )
                for node in nodes
            ]
            ids = []
            for sock in sockets:
                sock.send('{"type": "system:hello"}')
                ids.append(json.loads(sock.recv(PATIENCE))["payload"]["id"])
                sock.send('{"type": "join", "room": "tea", "ack": 1}')
                assert json.loads(sock.recv(PATIENCE))["type"] == "system:ack"
            joined.set()
            assert ready.wait(PATIENCE)
            sockets[0].send('{"type": "say", "room": "tea", "payload": "hello", "ack": 2}')
            answers = [json.loads(sock.recv(PATIENCE))["payload"] for sock in sockets]
            sockets[1].send(json.dumps({"type": "ask", "target": ids[2], "payload": 6, "ack": 3}))
            question = json.loads(sockets[2].recv(PATIENCE))
            answer = {"ack": question["ack"], "result": question["payload"] * 7}
            sockets[2].send(json.dumps({"type": "system:ack", "payload": answer}))
            return [*answers, json.loads(sockets[1].recv(PATIENCE))["payload"]]

    joined, ready = threading.Event(), threading.Event()
    talking = gevent.spawn(in_thread, talk)
    eventually(lambda: joined.is_set() or talking.ready(), "all have joined")
    for node in nodes:
        eventually(lambda node=node: len(node.ask("view")["rooms"].get("tea", [])) == 3, "the room")  # type: ignore[misc]
    ready.set()
    assert talking.get(timeout=PATIENCE) == [{"ack": 2, "result": 2}, "hello", "hello", {"ack": 3, "result": 42}]


def test_a_room_message_crosses_each_link_at_most_once_and_only_where_a_member_is(cluster: Make) -> None:
    there = cluster(4, proxies=True, mesh={"options": CALM})
    nodes = there.nodes
    assert isinstance(there.network, Proxies)
    for name in ("a", "b", "c"):
        nodes[0].ask("connect", name=name, room="tea")
        nodes[1].ask("connect", name=name, room="tea")
    nodes[2].ask("connect", name="other", room="coffee")
    nodes[3].ask("connect", name="a", room="tea")
    there.wait_until_equal(clients=8)
    for number in range(10):
        nodes[0].ask("broadcast", type="news", payload=f"marked {number}", room="tea")
    for node, name in ((nodes[1], "c"), (nodes[3], "a")):
        eventually(lambda node=node, name=name: len(node.ask("others", name=name)) == 10, "all ten")  # type: ignore[misc]
    crossings = {
        (sender, receiver): len(found)
        for sender in ("n0", "n1", "n2", "n3")
        for receiver in ("n0", "n1", "n2", "n3")
        if (found := [body for body in there.network.loopback.frames(sender, receiver) if b"marked" in body])
    }
    assert crossings == {("n0", "n1"): 10, ("n0", "n3"): 10}


def test_route_filters_hold_back_at_the_sender(cluster: Make) -> None:
    options = {
        "forward": ["chat:*", "number", "inside"],
        "drop": ["chat:secret"],
        "routes": {"n2": [["chat:*"], ["inside"]]},
    }
    there = cluster(3, proxies=True, mesh={"options": CALM, **options})
    nodes = there.nodes
    assert isinstance(there.network, Proxies)
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    sent = ["chat:open", "chat:secret", "inside", "other", "chat:last"]
    for name in sent:
        nodes[0].ask("broadcast", type=name, payload=f"marked {name}", room="tea")
    for place, names in enumerate((sent, ["chat:open", "inside", "chat:last"], ["chat:open", "chat:last"])):
        expected = [[name, f"marked {name}"] for name in names]
        eventually(
            lambda place=place, expected=expected: nodes[place].ask("others", name="c") == expected,  # type: ignore[misc]
            f"{names} at {place}",
        )
        if place:
            bodies = [body for body in there.network.loopback.frames("n0", f"n{place}") if b"marked" in body]
            assert len(bodies) == len(names)
    assert nodes[0].counter("filtered") == 5


# Death and sleep ----------------------------------------------------------------------------------------------


def test_links_that_break_again_and_again_lose_nothing_and_repeat_nothing(cluster: Make) -> None:
    there = cluster(3, proxies=True, mesh={"options": CALM})
    nodes = there.nodes
    assert isinstance(there.network, Proxies)
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    for node in nodes:
        node.ask("stream", sender=node.id, room="tea", first=0, count=STREAM // 3, pause=0.05)
    broken = 0
    while broken < 10 or not all(node.ask("streamed") for node in nodes):
        there.network.loopback.break_all()
        broken += 1
        gevent.sleep(0.2)
    for node in nodes:
        for sender in nodes:
            seen = wait_for_last(node, sender.id, STREAM // 3 - 1)
            assert (seen["gaps"], seen["repeated"]) == ([], 0), (node.id, sender.id, seen)
    there.wait_until_equal(clients=3)
    for node in nodes:
        assert node.events("left") == []
        assert node.events("client-disconnected") == []
        assert node.counter("gaps") == 0


def test_a_node_is_killed_and_started_again_in_the_middle_of_a_stream(cluster: Make) -> None:
    there = cluster(3)
    for node in there.nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    for node in there.nodes[:2]:
        node.ask("stream", sender=node.id, room="tea", first=0, count=STREAM, pause=0.02)
    victim = there.nodes[2]
    before = eventually(lambda: victim.ask("seen", name="c").get("n0"), "the stream has begun")
    victim.tell(signal.SIGSTOP)
    for node in there.nodes[:2]:  # and it does not acknowledge all, however fast the streams are over
        node.ask("broadcast", type="news", payload="late", room="tea")
    victim.kill()
    for node in there.nodes[:2]:
        eventually(lambda node=node: node.events("left", "n2"), "missed")  # type: ignore[misc]
    there.restart(2)
    there.nodes[2].ask("connect", name="c", room="tea")
    for node in there.nodes[:2]:
        eventually(lambda node=node: node.ask("streamed"), "the end of the stream")  # type: ignore[misc]
    there.wait_until_equal(clients=3)
    for node in there.nodes[:2]:
        node.ask("stream", sender=node.id, room="tea", first=STREAM, count=1)
    for place, node in enumerate(there.nodes[:2]):
        eventually(lambda node=node: has_all(node, STREAM), f"all at {place}")  # type: ignore[misc]
        [left] = node.events("left", "n2")
        assert left["reason"] in ("down", "restarted")
        assert len(node.events("joined", "n2")) == 2
        assert len(node.events("client-connected", "n2")) == 2
        assert len(node.events("client-disconnected", "n2")) == 1
        assert node.counter("gaps") >= 1  # what the killed one did not acknowledge
        assert node.counter("frames_lost") >= 1
        node.logged("node n2 are lost")
    again = there.nodes[2]
    for sender in ("n0", "n1"):
        found = wait_for_last(again, sender, STREAM)
        assert found["repeated"] == 0
        first_missing, last_missing = found["gaps"][0]  # the gap shows: it missed what came before it was there
        assert first_missing == 0
        assert last_missing >= before["last"]
        assert len(found["gaps"]) == 1  # and from then on nothing


def test_a_node_that_slept_longer_than_down_is_one_of_them_again(cluster: Make) -> None:
    there = cluster(3)
    nodes = there.nodes
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    same = there.wait_until_equal(clients=3)
    for node in nodes:
        node.ask("stream", sender=node.id, room="tea", first=0, count=STREAM // 2, pause=0.02)
    eventually(lambda: len(nodes[0].ask("seen", name="c")) == 3, "all streams have begun")
    nodes[2].tell(signal.SIGSTOP)
    try:
        for node in nodes[:2]:
            eventually(lambda node=node: node.events("left", "n2"), "missed")  # type: ignore[misc]
            eventually(lambda node=node: len(node.ask("view")["clients"]) == 2, "its client as well")  # type: ignore[misc]
        gevent.sleep(SLEEP)
    finally:
        nodes[2].tell(signal.SIGCONT)
    for node in nodes:
        eventually(lambda node=node: node.ask("streamed"), "the end of the stream")  # type: ignore[misc]
    assert there.wait_until_equal(clients=3)["clients"] == same["clients"]
    for node in nodes:
        node.ask("stream", sender=node.id, room="tea", first=STREAM // 2, count=1)
    for node in nodes:
        eventually(
            lambda node=node: [seen["last"] for seen in node.ask("seen", name="c").values()] == [STREAM // 2] * 3,  # type: ignore[misc]
            "the last of each",
        )
        assert never_twice(node, "c")
    for place, node in enumerate(nodes[:2]):  # the two that were awake missed nothing of each other
        assert whole(node.ask("seen", name="c"), f"n{1 - place}", STREAM // 2)
        assert len(node.events("client-connected", "n2")) == len(node.events("client-disconnected", "n2")) + 1


def test_a_frozen_node_is_named_by_a_broadcast_that_asks_for_confirmation(cluster: Make) -> None:
    there = cluster(3, mesh={"options": CALM})
    nodes = there.nodes
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    assert nodes[0].ask("confirm", room="tea", timeout=20.0) == {"count": 3}
    nodes[2].tell(signal.SIGSTOP)
    try:
        assert nodes[0].ask("confirm", room="tea", timeout=5.0) == {"missing": ["n2"], "delivered": 1}
    finally:
        nodes[2].tell(signal.SIGCONT)
    assert nodes[0].ask("confirm", room="tea", timeout=20.0) == {"count": 3}


def test_a_node_that_is_killed_while_it_is_to_confirm_is_named(cluster: Make) -> None:
    there = cluster(3, mesh={"options": {**QUICK, "suspect": 3.0, "down": 5.0}})
    nodes = there.nodes
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    nodes[2].tell(signal.SIGSTOP)  # so that it cannot have confirmed
    waiting = [nodes[0].begin("confirm", room="tea", timeout=120.0) for _ in range(5)]
    eventually(lambda: all(len(node.ask("others", name="c")) == 5 for node in nodes[:2]), "the others have it")
    assert not any(one.ready() for one in waiting)
    nodes[2].kill()
    for one in waiting:  # once it is known to be gone, long before the time is over
        assert one.get(timeout=PATIENCE) == {"missing": ["n2"], "delivered": 1}  # at n1
    assert nodes[0].ask("confirm", room="tea", timeout=20.0) == {"count": 2}


def test_a_node_stops_while_questions_wait(cluster: Make) -> None:
    there = cluster(2, mesh={"options": CALM})
    asking, asked = there.nodes
    id_ = asked.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=1)
    asked.tell(signal.SIGSTOP)
    try:
        questions = [asking.begin("call", client=id_, payload=number, timeout=60.0) for number in range(20)]
        questions.append(asking.begin("confirm", room="tea", timeout=60.0))
        eventually(lambda: asking.counter("frames_sent") >= 21, "all were asked")
        asking.ask("stop")
        for question in questions[:20]:
            with pytest.raises(AssertionError, match="ConnectionClosed"):
                question.get(timeout=PATIENCE)
        assert questions[20].get(timeout=PATIENCE) == {"missing": ["n1"], "delivered": 0}
    finally:
        asked.tell(signal.SIGCONT)
    eventually(lambda: asked.ask("view")["nodes"] == ["n1"], "it left")


def test_a_node_that_does_not_read_is_bounded_and_the_others_are_unaffected(cluster: Make) -> None:
    sizes = {"outbox": 1 << 20, "resend": 1 << 20, "message_size": 1 << 19}
    # no digest, which could be lost with the messages, in any time that this may take
    there = cluster(3, mesh={"options": {**CALM, "digest": 600.0, **sizes}})
    nodes = there.nodes
    for node in nodes:
        node.ask("connect", name="c", room="tea")
    there.wait_until_equal(clients=3)
    memory = nodes[0].ask("memory")
    nodes[2].tell(signal.SIGSTOP)
    try:
        number = 0
        while not nodes[0].counter("links_ended_slow"):
            for _ in range(50):
                nodes[0].ask("broadcast", type="number", payload=["n0", number, "x" * 50_000], room="tea")
                number += 1
            assert number < 2_000
        eventually(lambda: whole(nodes[1].ask("seen", name="c"), "n0", number - 1), "all at the other one")
        assert nodes[0].ask("memory") - memory < 64 << 20
        assert nodes[0].counter("closed_slow_consumer") == 1
    finally:
        nodes[2].tell(signal.SIGCONT)
    there.wait_until_equal(clients=3)
    nodes[0].ask("stream", sender="n0", room="tea", first=number, count=1)
    seen = wait_for_last(nodes[2], "n0", number)
    assert seen["repeated"] == 0
    missed = sum(last - first + 1 for first, last in seen["gaps"])
    assert missed == nodes[2].counter("frames_missed") > 0  # the gap is told, and its size is right
