"""How the mesh grows with its number of nodes: the cores themselves, in a network in memory with a virtual clock.

Times are seconds of the virtual clock, over links that take 1 to 10 ms one way. Bytes and frames are those of the
mesh on all links together; TCP's and the handshakes' own are not among them.
"""

from __future__ import annotations

from dataclasses import dataclass

from realtime.testing.mesh_network import MeshNetwork, NetworkNode

__all__ = ["CLIENTS", "NODES", "Growth", "measure"]

NODES = (2, 3, 5, 10, 20, 30, 40, 50)
CLIENTS = 20
"""On each node, each in the one room."""

_IDLE = 60.0  # virtual seconds: two digests of every node
_LIMIT = 120.0  # virtual seconds until what has not converged never will
_COMES = 5  # clients whose coming is measured, each on another node where there are as many


@dataclass(frozen=True)
class Growth:
    """One number of nodes."""

    nodes: int
    came: float
    """From a client's coming, and joining the room, until every other node knows: seconds."""
    came_bytes: float
    came_frames: float
    joined: float
    """From a node's start until all nodes know of each other and of all clients: seconds."""
    joined_bytes: int
    """Meanwhile on all links, the idle ones' pings included."""
    started: float
    """From the start of all nodes at one moment, each knowing the first, until the same: seconds."""
    idle_bytes: float
    """That one node sends in a second in which nothing happens."""
    idle_frames: float


def measure(count: int) -> Growth:
    """Measure with this many nodes."""
    network = MeshNetwork(seed=count)
    started = _start(network, count)
    network.run(5.0)  # acks, and what the start made dial twice
    came = [_come(network, number) for number in range(_COMES)]
    network.run(5.0)
    idle_bytes, idle_frames = _idle(network)
    joined, joined_bytes = _join(network)
    return Growth(
        count,
        came=max(seconds for seconds, _, _ in came),
        came_bytes=sum(size for _, size, _ in came) / _COMES,
        came_frames=sum(frames for _, _, frames in came) / _COMES,
        joined=joined,
        joined_bytes=joined_bytes,
        started=started,
        idle_bytes=idle_bytes / count,
        idle_frames=idle_frames / count,
    )


def _start(network: MeshNetwork, count: int) -> float:
    """Start all nodes at one moment, with their clients; seconds until their views are equal."""
    for number in range(count):
        _populate(network, network.add(f"node-{number:02}", seeds=["node-00"] if number else []))
    return _until_equal(network, count)


def _populate(network: MeshNetwork, node: NetworkNode) -> None:
    for number in range(CLIENTS):
        client = f"{node.id}-client-{number:02}"
        node.come(client, metadata={"name": client})
        node.join("room", client)
    network.flush()


def _until_equal(network: MeshNetwork, count: int) -> float:
    """Seconds until every node knows all others and their clients."""
    began = network.now
    behind = set(network.nodes)

    def equal() -> bool:
        for name in list(behind):
            if not _knows_all(network.nodes[name], count):
                return False
            behind.discard(name)
        return True

    _require(network.run_until(equal, limit=_LIMIT), f"{count} nodes do not converge")
    return network.now - began


def _knows_all(node: NetworkNode, count: int) -> bool:
    core = node.core
    elsewhere = (count - 1) * CLIENTS
    return len(core.nodes()) == count - 1 and len(core.clients()) >= elsewhere <= core.rooms().get("room", 0)


def _come(network: MeshNetwork, number: int) -> tuple[float, int, int]:
    """A client comes and joins the room: seconds, bytes and frames until all know."""
    nodes = list(network.nodes.values())
    home = nodes[number % len(nodes)]
    others = [node.core for node in nodes if node is not home]
    client = f"guest-{number}"
    network.run(0.5)  # between two pings, mostly
    began, size, frames = network.now, sum(network.bytes.values()), sum(network.frames.values())
    home.come(client, metadata={"name": client})
    home.join("room", client)
    network.flush()
    known = network.run_until(lambda: all(core.is_member("room", client) for core in others), limit=_LIMIT)
    _require(known, f"{client} is not known everywhere")
    return network.now - began, sum(network.bytes.values()) - size, sum(network.frames.values()) - frames


def _join(network: MeshNetwork) -> tuple[float, int]:
    """One more node starts, with its clients: seconds and bytes until all views are equal."""
    size = sum(network.bytes.values())
    _populate(network, network.add("late", seeds=["node-00"]))
    seconds = _until_equal(network, len(network.nodes))
    return seconds, sum(network.bytes.values()) - size


def _idle(network: MeshNetwork) -> tuple[float, float]:
    """Bytes and frames per second of all nodes together while nothing happens."""
    size, frames = sum(network.bytes.values()), sum(network.frames.values())
    network.run(_IDLE)
    return (sum(network.bytes.values()) - size) / _IDLE, (sum(network.frames.values()) - frames) / _IDLE


def _require(held: bool, otherwise: str) -> None:
    if not held:
        raise SystemExit(f"in the network in memory, {otherwise} within {_LIMIT:g} s")
