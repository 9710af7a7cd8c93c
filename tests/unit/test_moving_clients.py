"""Clients that move between nodes at the very moment that something is sent to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from realtime import Context, Limits, Message, RealtimeKernel, Toolkit
from realtime.testing.network_cluster import LiveNetwork, NetworkTransport
from realtime.testing.peers import PATIENCE, wait_until
from realtime.transports.memory import MemoryTransport
from realtime.transports.memory_client import MemoryClient

ROOM = "tea"
LARGE = "x" * 40_000  # a second one has to wait for room in an outbox


class Node:
    """A kernel whose senders wait for slow members for as long as it takes."""

    def __init__(self, live: LiveNetwork, number: int) -> None:
        self.clients = MemoryTransport()
        joining = NetworkTransport(live, f"node-{number}", seeds=["node-0"])
        limits = Limits(outbox=64 * 1024, stall=PATIENCE)
        self.kernel = RealtimeKernel([self.clients, joining], limits=limits, log_level="warning")
        news = {"type": "news", "payload": LARGE}

        @self.kernel.on("to the room")
        def to_the_room(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.broadcast(news, ROOM)

        @self.kernel.on("to some")
        def to_some(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.broadcast(news, filter=lambda context: ROOM in context.rooms)

    def connect(self, session: Any = True) -> tuple[MemoryClient, dict[str, Any]]:
        """Connect a client with a session, which it asks for; return it with the welcome."""
        client = self.clients.connect()
        client.send({"type": "system:hello", "payload": {"session": session}})
        return client, client.receive_until("system:welcome")["payload"]


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    live = LiveNetwork()
    nodes = [Node(live, number) for number in range(2)]
    for node in nodes:
        node.kernel.start()
    wait_until(lambda: all(node.kernel.hub.cluster.node_ids() for node in nodes))
    yield nodes
    for node in nodes:
        node.kernel.stop(PATIENCE)


def slow_member(node: Node) -> MemoryClient:
    """Return a member of the room for whom the next large message will have to wait."""
    client, _ = node.connect()
    node.kernel.rooms.join(ROOM, client.id)
    client.stop_reading()
    node.kernel.broadcast({"type": "before", "payload": LARGE}, ROOM)
    return client


@pytest.mark.parametrize(("old", "new"), [(0, 1), (1, 0)], ids=["it leaves", "it arrives"])
@pytest.mark.parametrize("how", ["to the room", "to some"])
def test_who_moves_while_the_publisher_waits_for_others_gets_the_message_once(
    nodes: list[Node], old: int, new: int, how: str
) -> None:
    publisher = nodes[0].kernel
    slow = slow_member(nodes[0])
    mover, welcome = nodes[old].connect()
    nodes[old].kernel.rooms.join(ROOM, mover.id)
    wait_until(lambda: all(mover.id in node.kernel.rooms.members(ROOM) for node in nodes))

    sender, _ = nodes[0].connect()
    sender.send({"type": how, "ack": "published"})
    wait_until(lambda: publisher.stats()["counters"].get("stalls"))
    again, moved = nodes[new].connect({"token": welcome["session"]["token"], "received": 0})
    assert (moved["id"], moved["session"]["resumed"]) == (welcome["id"], True)
    wait_until(lambda: nodes[old].kernel.hub.connections.get(mover.id) is None)
    assert not sender.received, "the publisher still waits"
    slow.resume_reading()
    assert sender.receive_until("system:ack")["payload"]["ack"] == "published"
    nodes[new].kernel.send(welcome["id"], {"type": "end"})
    kinds = []
    while "end" not in kinds:
        kinds.append(again.receive()["type"])
    assert [kind for kind in kinds if kind == "news"] == ["news"]
