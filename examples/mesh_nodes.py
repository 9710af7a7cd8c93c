"""Three nodes that act as one kernel, with nothing else installed: who sees whom, and what reaches whom.

    python examples/mesh_nodes.py             three nodes in this process; Ctrl-C stops them
    python examples/mesh_nodes.py --once      the same, ended after the first round

Each node has one client in the room "market". Every few seconds one of them sends the room a price, which reaches the
clients of all three; then that node stops, its client is gone everywhere, and it is started again. Only the first
node's address is known to the others: the rest they tell each other. Between machines it is the same with
``host="0.0.0.0"``, ``secret="..."`` and each node in a program of its own.
"""

from __future__ import annotations

import argparse
import random
import signal
from itertools import cycle

import gevent
from gevent.event import Event

from realtime import MeshOptions, PeerMeshTransport, RealtimeKernel
from realtime.testing import MemoryTransport

PAUSE = 3.0  # seconds between two rounds
NAMES = ("ann", "bob", "cid")


class Node:
    """A kernel with a mesh. A real one has a WebSocketTransport for its clients; here they are in the process."""

    def __init__(self, name: str, peers: list[str]) -> None:
        # one process stands for three machines: no need to wait a whole second before trying again
        self.mesh = PeerMeshTransport(port=0, node_id=name, peers=peers, options=MeshOptions(backoff=0.1))
        self.clients = MemoryTransport()
        self.kernel = RealtimeKernel(transports=[self.clients, self.mesh], log_level="error")
        self.name = name

        @self.kernel.on("mesh:joined")
        @self.kernel.on("mesh:left")
        def changed(message, context, toolkit):
            event = message.type.removeprefix("mesh:")
            seen = ", ".join(node.id for node in self.mesh.nodes()) or "nobody"
            print(f"  {name}: {context.id} {event}; {name} sees {seen}", flush=True)

        @self.kernel.on("price:offer")
        def offer(message, context, toolkit):
            toolkit.rooms.broadcast({"type": "price", "payload": message.payload}, "market")

    def start(self) -> None:
        self.kernel.start()
        self.client = self.clients.connect(metadata={"name": f"a client of {self.name}"})
        self.kernel.rooms.join("market", self.client.id)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"

    def market(self) -> list[str]:
        """Who is in the room, as this node sees it."""
        return sorted(entry["metadata"]["name"] for entry in self.kernel.presence.list("market"))


def wait_until_equal(nodes: dict[str, Node], stopped: Event) -> None:
    """Until every node sees all the clients."""
    while not all(len(node.market()) == len(nodes) for node in nodes.values()) and not stopped.is_set():
        gevent.sleep(0.01)


def play(nodes: dict[str, Node], once: bool, stopped: Event) -> None:
    """One node's client speaks, the node leaves and comes back; then the next."""
    for name in cycle(NAMES):
        wait_until_equal(nodes, stopped)
        if stopped.is_set():
            return
        print(f"{name} sees in the market: {', '.join(nodes[name].market())}", flush=True)
        price = random.randint(90, 110)
        print(f"the client of {name} offers {price}", flush=True)
        nodes[name].client.send({"type": "price:offer", "payload": price})
        for node in nodes.values():
            heard = node.client.receive_until("price", timeout=5)
            print(f"  the client of {node.name} hears {heard['payload']}", flush=True)
        print(f"{name} stops", flush=True)
        nodes[name].kernel.stop()
        others = {other: node for other, node in nodes.items() if other != name}
        wait_until_equal(others, stopped)
        for node in others.values():
            print(f"  {node.name} sees in the market: {', '.join(node.market())}", flush=True)
        if once or stopped.wait(PAUSE):
            return
        again = nodes[name] = Node(name, [node.address for node in others.values()][:1])
        again.start()
        print(f"{name} is back, on {again.address}", flush=True)


def run(once: bool) -> None:
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stopped.set)
    nodes: dict[str, Node] = {}
    try:
        for name in NAMES:
            node = Node(name, [nodes["ann"].address] if nodes else [])
            node.start()
            nodes[name] = node
            print(f"{name} listens on {node.address}", flush=True)
        play(nodes, once, stopped)
    finally:
        for node in nodes.values():
            node.kernel.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Three nodes of a mesh.")
    parser.add_argument("--once", action="store_true", help="end after the first round")
    run(parser.parse_args().once)
