"""Calls over several nodes: what those who stay are told when a node is gone, and when it is there again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent.event
import pytest
from mesh_proxy import LoopbackNetwork

from realtime import CallFailed, MeshOptions, PeerMeshTransport, RealtimeKernel, WebRTCSignalingBridge
from realtime.signaling import elsewhere
from realtime.testing.peers import wait_until
from realtime.transports.memory import MemoryTransport
from realtime.transports.memory_client import MemoryClient

PATIENCE = 60.0  # seconds any wait may take before the test fails
OPTIONS = MeshOptions(ping=0.1, suspect=0.7, down=1.5, backoff=0.05, backoff_max=0.2)
CALL = "webrtc:lobby"


class Node:
    """A node with a bridge, and one client that is in the call."""

    def __init__(self, number: int, network: LoopbackNetwork, peers: list[str]) -> None:
        self.id = f"node-{number}"
        address = network.in_front_of(self.id, lambda: self.mesh.port or 0)
        self.mesh = PeerMeshTransport(0, node_id=self.id, advertise=address, peers=peers, options=OPTIONS)
        self.clients = MemoryTransport()
        self.kernel = RealtimeKernel([self.clients, self.mesh], log_level="critical")
        WebRTCSignalingBridge(hold=0.2).attach(self.kernel)
        self.kernel.start()
        self.client = self.clients.connect(metadata={"not": "what it joins calls with"})

    def join_call(self) -> Any:
        """Have the client enter the call; return the answer."""
        return self.client.call("webrtc:join", {"room": "lobby", "metadata": {"name": self.id}}, timeout=PATIENCE)

    def members(self) -> set[str]:
        return set(self.kernel.rooms.members(CALL))


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes wait for each other's answers: all of them may be held up in between, as they are in one process."""
    monkeypatch.setattr(elsewhere, "ASK_TIMEOUT", PATIENCE)


@pytest.fixture
def network() -> Iterator[LoopbackNetwork]:
    made = LoopbackNetwork()
    yield made
    made.close()


@pytest.fixture
def nodes(network: LoopbackNetwork) -> Iterator[list[Node]]:
    """Three nodes, whose clients have all joined the call and know of each other."""
    made: list[Node] = []
    try:
        for number in range(3):
            made.append(Node(number, network, [made[0].mesh.address or ""] if made else []))
        wait_until(lambda: all(len(node.mesh.nodes()) == 2 for node in made), PATIENCE)
        joined: set[str] = set()
        for node in made:
            node.join_call()
            joined.add(node.client.id)
            wait_until(lambda: all(node.members() == joined for node in made), PATIENCE)
        for place, node in enumerate(made):
            expected = [other.client.id for other in made[place + 1 :]]
            assert [news(node.client, "webrtc:peer-joined")["id"] for _ in expected] == expected
        yield made
    finally:
        for node in made:
            node.kernel.stop()


def stats(node: Node) -> Any:
    """Return what the bridge of a node counts."""
    (counted,) = node.kernel.stats()["services"]
    return counted


def news(client: MemoryClient, event: str) -> Any:
    """Return the payload of the next event of a call, which must be this one."""
    while (message := client.receive(PATIENCE))["type"].partition(":")[0] != "webrtc" or "peers" in message["type"]:
        pass
    assert message["type"] == event, message
    return message["payload"]


def drained(node: Node, client: MemoryClient) -> list[Any]:
    """Return all that has come to a client, up to a signal that it is sent now."""
    node.kernel.send(client.id, {"type": "webrtc:end"})
    found = []
    while (message := client.receive(PATIENCE))["type"] != "webrtc:end":
        found.append(message)
    return found


def nothing_more(node: Node) -> None:
    """The client was told of no other change of the call: the signal that comes next is one it sends itself."""
    node.kernel.send(node.client.id, {"type": "webrtc:end", "payload": node.id})
    assert news(node.client, "webrtc:end") == node.id


def lost(other: Node) -> dict[str, Any]:
    return {"room": "lobby", "from": other.client.id, "reason": "lost"}


def joined(other: Node, to: Node) -> dict[str, Any]:
    own = other.client.id
    return {"room": "lobby", "id": own, "polite": to.client.id < own, "metadata": {"name": other.id}}


def test_who_joins_is_told_what_those_on_other_nodes_joined_with(nodes: list[Node]) -> None:
    first, second, third = nodes
    own = first.client.id
    for event in ("webrtc:join", "webrtc:peers"):
        told = first.client.call(event, {"room": "lobby"}, timeout=PATIENCE)["peers"]
        shown = {peer["id"]: peer["metadata"] for peer in told}
        assert shown == {node.client.id: {"name": node.id} for node in (second, third)}
    silent = second.clients.connect()
    silent.call("webrtc:join", {"room": "lobby"}, timeout=PATIENCE)
    wait_until(lambda: silent.id in first.members(), PATIENCE)
    told = first.client.call("webrtc:peers", {"room": "lobby"}, timeout=PATIENCE)["peers"]
    assert {"id": silent.id, "polite": own < silent.id} in told


def test_who_joins_on_two_nodes_in_the_same_moment_meets_and_once(nodes: list[Node]) -> None:
    there = [(node, client) for node in nodes[:2] for client in (node.client, node.clients.connect())]
    ids = {client.id for _, client in there}
    for number in range(20):
        payload = {"room": f"room {number}", "metadata": "here"}
        call = f"webrtc:room {number}"
        for _, client in there:
            client.send({"type": "webrtc:join", "payload": payload})
            if client is nodes[0].client:  # so that there is one to announce to, beside those not known yet
                wait_until(lambda call=call: nodes[1].kernel.rooms.members(call), PATIENCE)  # type: ignore[misc]
        for _, client in there:
            met: list[str] = []
            while len(met) < len(there) - 1:
                message = client.receive(PATIENCE)
                told = message["payload"]
                news = {"webrtc:peers": lambda told=told: told["peers"], "webrtc:peer-joined": lambda told=told: [told]}
                for peer in news.get(message["type"], list)():
                    assert (peer["metadata"], peer["polite"]) == ("here", client.id < peer["id"])
                    met.append(peer["id"])
            assert set(met) == ids - {client.id}
        for _, client in there:
            client.call("webrtc:leave", payload, timeout=PATIENCE)
        for node, client in there:
            more = drained(node, client)
            assert [one for one in more if one["type"] == "webrtc:peer-joined"] == []


def test_late_messages_of_an_earlier_negotiation_are_kept_out_across_nodes(nodes: list[Node]) -> None:
    offerer, answerer, _ = nodes
    there = answerer.client.id

    def signal(sender: Node, kind: str, target: str, negotiation: str) -> Any:
        sdp = {"description": {"type": kind, "sdp": "v=0"}}
        content = {"candidate": {"candidate": "candidate:1"}} if kind == "candidate" else sdp
        payload = {"target": target, "room": "lobby", "negotiation": negotiation, **content}
        try:
            return sender.client.call(f"webrtc:{kind}", payload, timeout=PATIENCE)
        except CallFailed as failed:
            return failed.code

    for count, negotiation in enumerate(("1", "2"), 1):
        assert signal(offerer, "offer", there, negotiation) == {"delivered": 1}
        assert news(answerer.client, "webrtc:offer")["negotiation"] == negotiation
        wait_until(lambda n=count: stats(answerer)["counters"].get("offered_elsewhere") == n, PATIENCE)  # type: ignore[misc]
        if negotiation == "1":
            assert signal(answerer, "answer", offerer.client.id, "1") == {"delivered": 1}
    for kind in ("answer", "candidate"):
        assert signal(answerer, kind, offerer.client.id, "1") == "expired"
        assert signal(answerer, kind, offerer.client.id, "2") == {"delivered": 1}
    seen = [news(offerer.client, f"webrtc:{kind}")["negotiation"] for kind in ("answer", "answer", "candidate")]
    assert seen == ["1", "2", "2"]
    for node in (offerer, answerer):
        node.client.close()
        wait_until(lambda node=node: not stats(node)["senders"], PATIENCE)  # type: ignore[misc]


def test_a_node_that_does_not_say_what_its_clients_joined_with_delays_nobody_for_long(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = nodes
    monkeypatch.setattr(elsewhere, "ASK_TIMEOUT", 1.0)
    del second.kernel.hub.node_operations["webrtc:participants"]  # as in an earlier version
    asked = gevent.event.Event()
    never = gevent.event.Event()

    def hang(arguments: Any) -> Any:
        asked.set()
        return never.wait(PATIENCE)

    third.kernel.hub.node_operations["webrtc:participants"] = hang
    told = first.client.call("webrtc:peers", {"room": "lobby"}, timeout=PATIENCE)["peers"]
    assert asked.wait(PATIENCE)  # in this process, which may have been held up for as long as the answer is waited for
    never.set()
    assert [peer["metadata"] for peer in told] == [{"not": "what it joins calls with"}] * 2


def test_clients_of_a_node_that_is_gone_are_told_as_lost_once_and_as_joined_when_it_is_back(
    network: LoopbackNetwork, nodes: list[Node]
) -> None:
    *others, last = nodes
    network.cut(last.id, "*")
    network.cut("*", last.id)
    for node in others:
        assert news(node.client, "webrtc:bye") == lost(last)
        nothing_more(node)
    told = [news(last.client, "webrtc:bye") for _ in others]
    assert sorted(told, key=repr) == sorted(map(lost, others), key=repr)
    nothing_more(last)
    network.heal()
    for node in others:
        assert news(node.client, "webrtc:peer-joined") == joined(last, node)
        wait_until(lambda node=node: len(node.members()) == 3, PATIENCE)  # type: ignore[misc]
        nothing_more(node)
    told = [news(last.client, "webrtc:peer-joined") for _ in others]
    assert sorted(told, key=repr) == sorted((joined(node, last) for node in others), key=repr)
    nothing_more(last)


def test_a_client_that_leaves_a_node_which_stops_later_is_told_of_once(nodes: list[Node]) -> None:
    *others, last = nodes
    last.client.close()
    for node in others:
        assert news(node.client, "webrtc:bye")["reason"] == "closed"
    last.kernel.stop()
    for node in others:
        wait_until(lambda node=node: len(node.mesh.nodes()) == 1, PATIENCE)  # type: ignore[misc]
        nothing_more(node)


@pytest.mark.parametrize("end", ["leaves", "stops", "lost"])
def test_who_goes_while_an_announcement_is_answered_is_told_of_once(
    network: LoopbackNetwork, nodes: list[Node], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    first, second, third = nodes
    answers: list[Any] = []
    ask_node = first.kernel.hub.cluster.ask_node

    def hold_back(node_id: str, *question: Any) -> None:
        if node_id == third.id:
            answers.append(question[-1])
        else:
            ask_node(node_id, *question)

    joiner = first.clients.connect()
    monkeypatch.setattr(first.kernel.hub.cluster, "ask_node", hold_back)
    joiner.send({"type": "webrtc:join", "payload": {"room": "lobby"}})
    wait_until(lambda: answers, PATIENCE)  # what third's client joined with
    answers.pop()(None, None)
    assert news(second.client, "webrtc:peer-joined")["id"] == joiner.id
    wait_until(lambda: answers, PATIENCE)
    if end == "leaves":
        second.client.call("webrtc:leave", {"room": "lobby"}, timeout=PATIENCE)
    elif end == "stops":
        second.kernel.stop()
    else:
        network.cut(second.id, "*")
        network.cut("*", second.id)
    assert news(joiner, "webrtc:bye")["from"] == second.client.id
    wait_until(lambda: second.client.id not in first.members(), PATIENCE)
    answers.pop()(None, None)
    wait_until(lambda: first.kernel.hub.workers.busy_others() == 0, PATIENCE)
    assert [message["type"] for message in drained(first, joiner) if "bye" in message["type"]] == []


def test_who_goes_while_others_are_still_told_of_a_joining_is_told_of_once(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = nodes
    gone = gevent.event.Event()
    send = first.kernel.send

    def send_to_one_that_is_crowded(client_id: str, message: Any) -> None:
        send(client_id, message)
        if message["type"] == "webrtc:peer-joined" and client_id == second.client.id:
            assert gone.wait(PATIENCE)

    joiner = first.clients.connect()
    monkeypatch.setattr(first.kernel, "send", send_to_one_that_is_crowded)
    joiner.send({"type": "webrtc:join", "payload": {"room": "lobby"}})
    assert news(second.client, "webrtc:peer-joined")["id"] == joiner.id
    second.client.call("webrtc:leave", {"room": "lobby"}, timeout=PATIENCE)
    assert news(joiner, "webrtc:bye")["from"] == second.client.id
    wait_until(lambda: second.client.id not in first.members(), PATIENCE)
    gone.set()
    wait_until(lambda: first.kernel.hub.workers.busy_others() == 0, PATIENCE)
    assert [message["type"] for message in drained(first, joiner) if "bye" in message["type"]] == []


def test_clients_of_a_node_that_stops_are_told_of_once_by_it(nodes: list[Node]) -> None:
    *others, last = nodes
    last.kernel.stop()
    for node in others:
        assert news(node.client, "webrtc:bye")["from"] == last.client.id
        wait_until(lambda node=node: len(node.mesh.nodes()) == 1, PATIENCE)  # type: ignore[misc]
        nothing_more(node)


def test_who_was_in_a_call_before_the_nodes_met_is_announced_on_each(network: LoopbackNetwork) -> None:
    first = Node(0, network, [])
    second = Node(1, network, [])
    try:
        for node in (first, second):
            node.join_call()
        third = Node(2, network, [first.mesh.address or "", second.mesh.address or ""])
        try:
            for node, other in ((first, second), (second, first)):
                assert news(node.client, "webrtc:peer-joined") == joined(other, node)
                nothing_more(node)
        finally:
            third.kernel.stop()
    finally:
        for node in (first, second):
            node.kernel.stop()
