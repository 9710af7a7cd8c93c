"""Three nodes that act together, with nothing else installed: who sees whom, and what one tells the others.

    python examples/mesh_nodes.py             three nodes in this process; Ctrl-C stops them
    python examples/mesh_nodes.py --once      the same, ended after the first round

Every few seconds one of them tells the others a price, then stops and is started again. Between machines it is the
same with ``host="0.0.0.0"``, ``secret="..."`` and each node in a program of its own.
"""

from __future__ import annotations

import argparse
import random
import signal
from itertools import cycle

import gevent
from gevent.event import Event

from realtime import MeshOptions, PeerMeshTransport, RealtimeKernel

PAUSE = 3.0  # seconds between two rounds
NAMES = ("ann", "bob", "cid")


class Node:
    """A kernel with a mesh. A real one has a WebSocketTransport for its clients, too."""

    def __init__(self, name: str, peers: list[str]) -> None:
        # one process stands for three machines: no need to wait a whole second before trying again
        options = MeshOptions(backoff=0.1)
        self.mesh = PeerMeshTransport(port=0, node_id=name, peers=peers, options=options)
        self.kernel = RealtimeKernel(transports=[self.mesh], log_level="error")

        @self.kernel.on("mesh:joined")
        @self.kernel.on("mesh:left")
        def changed(message, context, toolkit):
            event = message.type.removeprefix("mesh:")
            seen = ", ".join(node.id for node in self.mesh.nodes()) or "nobody"
            print(f"  {name}: {context.id} {event} ({message.payload['reason']}); {name} sees {seen}", flush=True)

        @self.kernel.on("mesh:price")
        def price(message, context, toolkit):
            print(f"  {name}: {context.id} says the price is {message.payload}", flush=True)
            toolkit.reply({"type": "mesh:thanks", "payload": name})

        @self.kernel.on("mesh:thanks")
        def thanks(message, context, toolkit):
            print(f"  {name}: thanks from {message.payload}", flush=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"


def start() -> dict[str, Node]:
    """Start the nodes; each knows those before it."""
    nodes: dict[str, Node] = {}
    for name in NAMES:
        node = Node(name, [other.address for other in nodes.values()])
        node.kernel.start()
        nodes[name] = node
        print(f"{name} listens on {node.address}", flush=True)
    return nodes


def all_are_linked(nodes: dict[str, Node]) -> bool:
    return all(len(node.mesh.nodes()) == len(nodes) - 1 for node in nodes.values())


def play(nodes: dict[str, Node], once: bool, stopped: Event) -> None:
    """One node speaks, leaves and comes back; then the next."""
    for name in cycle(NAMES):
        while not all_are_linked(nodes) and not stopped.is_set():
            gevent.sleep(0.01)
        gevent.sleep(0.1)
        print(f"{name} tells the others a price", flush=True)
        nodes[name].mesh.broadcast({"type": "mesh:price", "payload": random.randint(90, 110)})
        gevent.sleep(0.1)
        print(f"{name} stops", flush=True)
        nodes[name].kernel.stop()
        gevent.sleep(0.1)
        if once or stopped.wait(PAUSE):
            return
        again = Node(name, [node.address for other, node in nodes.items() if other != name])
        again.kernel.start()
        nodes[name] = again
        print(f"{name} is back, on {again.address}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Three nodes of a mesh.")
    parser.add_argument("--once", action="store_true", help="end after the first round")
    arguments = parser.parse_args()
    stopped = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, stopped.set)
    running = start()
    try:
        play(running, arguments.once, stopped)
    finally:
        for node in running.values():
            node.kernel.stop()
