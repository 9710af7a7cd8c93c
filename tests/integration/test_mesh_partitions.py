"""Links that are cut one way, both ways, and a cluster in two parts: in network namespaces where that is permitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from mesh_rig import Cluster, Network, NodeProcess, Proxies, any_network, eventually

MakeOn = Callable[..., Cluster]



on_both_networks = pytest.mark.parametrize("network", [any_network, Proxies], ids=["namespaces", "proxies"])


@pytest.fixture
def cluster() -> Iterator[MakeOn]:
    """Start a cluster of nodes with one client each, in one room; it is killed when the test ends."""
    with ExitStack() as stack:

        def make(size: int, make_network: Callable[[int], Network] = any_network) -> Cluster:
            there = stack.enter_context(Cluster(size, make_network(size)))
            for node in there.nodes:
                node.ask("connect", name="c", room="tea")
            there.wait_until_equal(clients=size)
            return there

        yield make


def stream_from(nodes: list[NodeProcess], first: int, count: int, pause: float = 0.0) -> None:
    """Have each node send numbers to the room."""
    for node in nodes:
        node.ask("stream", sender=node.id, room="tea", first=first, count=count, pause=pause)


def lasts(node: NodeProcess) -> dict[str, int]:
    """Return the last number of each sender that the client of a node got."""
    return {sender: seen["last"] for sender, seen in node.ask("seen", name="c").items()}


def wait_for_all(nodes: list[NodeProcess], senders: list[NodeProcess], last: int) -> None:
    """Wait until the clients of nodes have the last number of these senders."""
    for node in nodes:
        eventually(
            lambda node=node: all(lasts(node).get(sender.id) == last for sender in senders),  # type: ignore[misc]
            f"{last} of {[sender.id for sender in senders]} at {node.id}",
        )


def seen(node: NodeProcess) -> dict[str, Any]:
    """Return what the client of a node got."""
    return node.ask("seen", name="c")  # type: ignore[no-any-return]


def test_two_and_three_nodes_go_on_apart_and_are_one_again(cluster: MakeOn) -> None:
    there = cluster(5)
    nodes = there.nodes
    few, many = nodes[:2], nodes[2:]
    stream_from(nodes, 0, 2000, pause=0.05)
    eventually(lambda: len(lasts(nodes[0])) == 5, "all streams have begun")
    there.network.part(range(2), range(2, 5))
    views = [there.wait_until_equal(range(2), clients=2), there.wait_until_equal(range(2, 5), clients=3)]
    assert set(views[0]["clients"]).isdisjoint(views[1]["clients"])
    for node in nodes:
        eventually(lambda node=node: node.ask("streamed"), "the end of the streams")  # type: ignore[misc]
    for group in (few, many):  # each side goes on
        stream_from(group, 5000, 500)
        wait_for_all(group, group, 5499)
        assert group[0].ask("confirm", room="tea", timeout=20.0) == {"count": len(group)}
    for node in nodes:
        for other in few if node in many else many:
            [left] = node.events("left", other.id)
            assert left == {"node": other.id, "reason": "down"}
    there.network.heal()
    same = there.wait_until_equal(clients=5)
    assert set(same["clients"]) == {*views[0]["clients"], *views[1]["clients"]}
    stream_from(nodes, 9000, 10)
    wait_for_all(nodes, nodes, 9009)
    for node in nodes:
        assert not any(found["repeated"] for found in seen(node).values()), seen(node)
        for other in few if node in few else many:  # nothing of one's own side was missed
            found = seen(node)[other.id]
            assert found["gaps"] == [[2000, 4999], [5500, 8999]], found
        came, went = (len(node.events(f"client-{what}")) for what in ("connected", "disconnected"))
        assert came - went == 4


@on_both_networks
def test_a_link_that_is_cut_both_ways_is_noticed_and_made_anew(
    cluster: MakeOn, network: Callable[[int], Network]
) -> None:
    there = cluster(3, network)
    nodes = there.nodes
    there.network.part([0], [1])
    for node, other in ((nodes[0], "n1"), (nodes[1], "n0")):
        eventually(lambda node=node, other=other: node.events("suspect", other), "suspected")  # type: ignore[misc]
        eventually(lambda node=node, other=other: other in node.ask("view")["unlinked"], "no link")  # type: ignore[misc]
    stream_from(nodes, 0, 300)
    wait_for_all(nodes[2:], nodes, 299)  # who reaches both is served by both
    there.network.heal()
    wait_for_all(nodes, nodes, 299)  # what was sent meanwhile arrives now
    there.wait_until_equal(clients=3)
    for node in nodes:
        for sender in nodes:
            assert seen(node)[sender.id] == {"count": 300, "last": 299, "gaps": [], "repeated": 0}
        assert node.events("left") == []  # the third heard them: nobody was down, and no client went
        assert node.events("client-disconnected") == []


@on_both_networks
def test_a_link_that_is_cut_one_way_is_noticed_and_made_anew(
    cluster: MakeOn, network: Callable[[int], Network]
) -> None:
    there = cluster(3, network)
    nodes = there.nodes
    there.network.cut(0, 1)
    eventually(lambda: nodes[1].events("suspect", "n0"), "suspected by who hears nothing")
    eventually(lambda: "n0" in nodes[1].ask("view")["unlinked"], "no link")
    stream_from(nodes, 0, 300)
    wait_for_all(nodes[2:], nodes, 299)
    there.network.heal()
    wait_for_all(nodes, nodes, 299)
    there.wait_until_equal(clients=3)
    for node in nodes:
        for sender in nodes:
            assert seen(node)[sender.id] == {"count": 300, "last": 299, "gaps": [], "repeated": 0}
        assert node.events("left") == []
        assert node.events("client-disconnected") == []
