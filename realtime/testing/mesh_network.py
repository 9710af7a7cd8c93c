"""A network of mesh nodes in memory: any number of cores, a virtual clock, and every fault links and nodes can have.

Nothing here waits: ``run`` jumps from one event to the next. Everything follows from the seed::

    network = MeshNetwork(seed=1)
    ann = network.add("ann")
    bob = network.add("bob", seeds=["ann"])
    network.run(1.0)
    ann.come("a1")
    network.cut("ann", "bob")              # nothing passes from ann to bob any more; TCP keeps it for later
    network.run_until(lambda: bob.core.home("a1") == "ann", limit=30.0)

Links are the real protocol on pipes that keep order and lose nothing while they last, as TCP does. A node's address
is its id.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from realtime.config import MeshOptions
from realtime.errors import MeshError
from realtime.protocols.mesh import MeshProtocol
from realtime.protocols.mesh_actions import Action, DeliverToRoom, Dial, EndLink, RunCall, SendFrame
from realtime.protocols.mesh_core import MeshCore
from realtime.protocols.mesh_filters import Routes
from realtime.protocols.mesh_handshake import LIVELY, Authenticated, ByeReceived, Hello, Reason, Role

__all__ = ["MeshNetwork", "NetworkNode"]

_SECRET = b"in memory"


class _Link:
    """One connection: a pipe each way, and a protocol at each end."""

    def __init__(self, ends: dict[str, MeshProtocol]) -> None:
        self.ends = ends
        self.open = dict.fromkeys(ends, True)
        """Which ends still use it."""
        self.pipes: dict[str, deque[tuple[float, bytes]]] = {node: deque() for node in ends}
        """By who reads: when each piece can be read; an empty one is the end."""

    def other(self, node: str) -> str:
        """Return the other end."""
        return next(end for end in self.ends if end != node)


@dataclass
class NetworkNode:
    """One node, and what became of it."""

    id: str
    core: MeshCore
    instance: bytes
    alive: bool = True
    frozen: bool = False
    links: dict[str, _Link] = field(default_factory=dict)
    told: list[Action] = field(default_factory=list)
    """All actions but frames, dials and ends of links, in order."""
    errors: list[str] = field(default_factory=list)
    """Why this node ended links that broke the protocol."""
    clients: dict[str, dict[str, None]] = field(default_factory=dict)
    """Its own clients, each with its rooms in the order it joined them."""
    tick_at: float = float("inf")
    user: Callable[[Action], None] | None = None
    """Takes what else would be put into ``told``, and does what is to be done for clients."""

    def come(self, client: str, *, codec: str = "json", metadata: Mapping[str, Any] | None = None) -> None:
        """A client connects to this node."""
        self.core.client_came(client, metadata or {}, 0.0, codec)
        self.clients[client] = {}

    def go(self, client: str) -> None:
        """A client disconnects."""
        self.core.client_went(client)
        del self.clients[client]

    def join(self, room: str, client: str) -> None:
        """A client joins a room."""
        self.core.room_joined(room, client)
        self.clients[client][room] = None

    def leave(self, room: str, client: str) -> None:
        """A client leaves a room."""
        self.core.room_left(room, client)
        del self.clients[client][room]

    def members(self, room: str | None) -> list[str]:
        """Return its own clients that are in a room; all of them for None."""
        return [client for client, rooms in self.clients.items() if room is None or room in rooms]


class MeshNetwork:
    """The network.

    :param seed: of all that is random: delays, and what the cores draw.
    :param delay: seconds from one node to another, at least and at most.
    """

    def __init__(
        self, seed: int = 0, *, options: MeshOptions | None = None, delay: tuple[float, float] = (0.001, 0.01)
    ) -> None:
        self.now = 0.0
        self.nodes: dict[str, NetworkNode] = {}
        self.options = options or MeshOptions()
        self.frames: Counter[tuple[str, str]] = Counter()
        """SendFrames from one node to another."""
        self.bytes: Counter[tuple[str, str]] = Counter()
        self._seed = seed
        self._random = Random(seed)
        self._delay = delay
        self._cuts: set[tuple[str, str]] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    # Nodes -----------------------------------------------------------------------------------------------

    def add(self, node: str, *, seeds: Iterable[str] = (), routes: Routes | None = None) -> NetworkNode:
        """Start a node, or start one anew that was killed or has left."""
        known = self.nodes.get(node)
        assert known is None or not known.alive, f"{node} runs"
        number = next(self._numbers)
        instance = Random(f"{self._seed}/{node}/{number}").randbytes(16)
        core = MeshCore(
            node,
            instance,
            node,
            self.options,
            random=Random(f"{self._seed}/{node}/{number}/core"),
            now=self.now,
            seeds=seeds,
            routes=routes,
        )
        started = self.nodes[node] = NetworkNode(node, core, instance)
        self._settle(started)
        return started

    def kill(self, node: str) -> None:
        """End a node as SIGKILL does: its system closes its sockets."""
        killed = self.nodes[node]
        killed.alive = False
        for link in list(killed.links.values()):
            self._close(killed, link)

    def leave(self, node: str) -> None:
        """End a node in good order."""
        left = self.nodes[node]
        left.core.leave(self.now)
        self._settle(left)
        left.alive = False

    def freeze(self, node: str) -> None:
        """Stop a node as SIGSTOP does."""
        self.nodes[node].frozen = True

    def thaw(self, node: str) -> None:
        """Let a node go on: it finds what came meanwhile, and that its clock jumped."""
        thawed = self.nodes[node]
        thawed.frozen = False
        if thawed.alive:
            self._read_all()
            self._settle(thawed)

    # Faults of the network ----------------------------------------------------------------------------------

    def cut(self, source: str, target: str) -> None:
        """Let nothing pass from one node to another: what is sent waits, as TCP sends it again."""
        self._cuts.add((source, target))

    def heal(self, source: str | None = None, target: str | None = None) -> None:
        """Let everything pass again from one node to another, or everywhere."""
        if source is None or target is None:
            self._cuts.clear()
        else:
            self._cuts.discard((source, target))
        self._read_all()

    def partition(self, *groups: Iterable[str]) -> None:
        """Let nothing pass between groups of nodes."""
        sides = [set(group) for group in groups]
        for one in sides:
            for other in sides:
                if one is not other:
                    self._cuts.update((source, target) for source in one for target in other)

    def break_link(self, one: str, other: str) -> None:
        """Break the connection between two nodes: what is on its way is lost, and both notice."""
        link = self.nodes[one].links.get(other)
        if link is None:
            return
        for pipe in link.pipes.values():
            pipe.clear()
        for node in (one, other):
            self._end(self.nodes[node], link, Reason.LOST)

    # Time -----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, happen = heappop(self._events)
            happen()
        self.now = end

    def run_until(self, condition: Callable[[], bool], *, limit: float) -> bool:
        """Let time pass until something holds, ``limit`` seconds at most; tell whether it does."""
        end = self.now + limit
        while not condition():
            if not self._events or self._events[0][0] > end:
                self.now = end
                return condition()
            self.now, _, happen = heappop(self._events)
            happen()
        return True

    def flush(self) -> None:
        """Carry out what was asked of cores since the last event: at the end of a turn, as a node's owner does."""
        for node in list(self.nodes.values()):
            self._settle(node)

    @property
    def next_event(self) -> float | None:
        """When the next thing happens; None if nothing will."""
        return self._events[0][0] if self._events else None

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heappush(self._events, (time, next(self._numbers), happen))

    def _travel(self) -> float:
        return self._random.uniform(*self._delay)

    # What nodes want ------------------------------------------------------------------------------------------

    def _settle(self, node: NetworkNode) -> None:
        """Carry out a core's actions until there are none."""
        if not node.alive or node.frozen:
            return
        while actions := node.core.take_actions():
            for action in actions:
                self._carry_out(node, action)
        due = max(self.now, node.core.due)
        if due < node.tick_at:
            node.tick_at = due
            self._at(due, lambda: self._tick(node, due))

    def _tick(self, node: NetworkNode, due: float) -> None:
        if due != node.tick_at or not node.alive:
            return
        node.tick_at = float("inf")
        if node.frozen:
            return  # thawing settles, and finds the tick overdue
        node.core.tick(self.now)
        assert node.core.due > self.now, f"{node.id} would tick for ever"
        self._settle(node)

    def _carry_out(self, node: NetworkNode, action: Action) -> None:
        if isinstance(action, SendFrame):
            self.frames[node.id, action.node] += 1
            self.bytes[node.id, action.node] += len(action.data)
            self._write(node, node.links[action.node], action.data)
        elif isinstance(action, Dial):
            self._at(self.now + self._travel(), lambda: self._connect(node, action.address))
        elif isinstance(action, EndLink):
            link = node.links.get(action.node)
            if link is not None:
                self._write(node, link, link.ends[node.id].bye(action.reason, action.details))
                self._close(node, link)
        elif node.user is not None:
            node.user(action)
        else:
            node.told.append(action)
            if isinstance(action, DeliverToRoom) and action.confirm is not None:
                members = node.members(action.room)
                node.core.delivered(action.origin, action.confirm, len(set(members) - set(action.except_ids)))
            elif isinstance(action, RunCall):
                node.core.answer(action.origin, action.token, True, action.body)

    # Connecting --------------------------------------------------------------------------------------------------

    def _connect(self, dialler: NetworkNode, address: str) -> None:
        """A dialler's SYN arrives, or does not."""
        if not dialler.alive:
            return
        if address == dialler.id:
            self._dial_ended(dialler, address, Reason.SELF)
            return
        target = self.nodes.get(address)
        cut = {(dialler.id, address), (address, dialler.id)} & self._cuts
        if cut or dialler.frozen or (target is not None and target.frozen):
            wait = self.options.authentication
            self._at(self.now + wait, lambda: self._dial_ended(dialler, address, Reason.TIMEOUT))
        elif target is None or not target.alive:
            self._dial_ended(dialler, address, Reason.LOST)
        else:
            self._shake_hands(dialler, target)

    def _dial_ended(self, dialler: NetworkNode, address: str, reason: str) -> None:
        if dialler.alive:
            dialler.core.dial_ended(address, reason, self.now, node=address if reason == Reason.DUPLICATE else None)
            self._settle(dialler)

    def _shake_hands(self, dialler: NetworkNode, listener: NetworkNode) -> None:
        size = self.options.message_size
        ends = {
            node.id: MeshProtocol(role, self._hello(node), secret=_SECRET, message_size=size)
            for node, role in ((dialler, Role.DIALLER), (listener, Role.LISTENER))
        }
        self._talk(ends[dialler.id], ends[listener.id])
        decider, other = sorted((dialler, listener), key=lambda node: node.id)
        if self._is_taken(decider, other) or self._is_taken(other, decider):
            self._dial_ended(dialler, listener.id, Reason.NODE_ID)
            return
        if self._is_duplicate(decider, other):
            self._dial_ended(dialler, listener.id, Reason.DUPLICATE)
            return
        ends[decider.id].start()
        self._talk(ends[dialler.id], ends[listener.id])
        for node in (dialler, listener):
            old = node.links.get(listener.id if node is dialler else dialler.id)
            if old is not None:
                self._close(node, old)
        link = _Link(ends)
        for node, peer in ((dialler, listener), (listener, dialler)):
            node.links[peer.id] = link
            dialled = peer.id if node is dialler else None
            node.core.link_started(ends[peer.id].hello, self.now, dialled=dialled)
            self._settle(node)

    def _is_duplicate(self, decider: NetworkNode, other: NetworkNode) -> bool:
        current = decider.links.get(other.id)
        silence = decider.core.silence(other.id, self.now)
        return (
            current is not None
            and current.ends[other.id].hello.instance == other.instance
            and silence is not None
            and silence <= self.options.suspect
        )

    def _is_taken(self, node: NetworkNode, other: NetworkNode) -> bool:
        """Whether a node hears another instance of the other one's id."""
        current = node.links.get(other.id)
        silence = node.core.silence(other.id, self.now)
        return (
            current is not None
            and current.ends[other.id].hello.instance != other.instance
            and silence is not None
            and silence <= LIVELY * self.options.ping
        )

    def _hello(self, node: NetworkNode) -> Hello:
        return Hello(node.id, "default", node.instance, self._random.randbytes(16), node.id)

    def _talk(self, one: MeshProtocol, other: MeshProtocol) -> None:
        """Carry the handshake to its end, in no time."""
        while said := [(other, one.data_to_send()), (one, other.data_to_send())]:
            if not any(data for _, data in said):
                return
            for reader, data in said:
                reader.receive_data(data)
                while isinstance(reader.next_event(), Authenticated):
                    pass

    # Bytes -------------------------------------------------------------------------------------------------------

    def _write(self, node: NetworkNode, link: _Link, data: bytes) -> None:
        """Put bytes on their way; none are the end."""
        reader = link.other(node.id)
        pipe = link.pipes[reader]
        arrival = self.now + self._travel()
        if pipe and pipe[-1][0] > arrival:
            arrival = pipe[-1][0]
        pipe.append((arrival, data))
        self._at(arrival, lambda: self._read(self.nodes[reader], link))

    def _read_all(self) -> None:
        for node in list(self.nodes.values()):
            for link in list(node.links.values()):
                self._read(node, link)

    def _read(self, node: NetworkNode, link: _Link) -> None:
        """Give a node what has arrived for it."""
        pipe = link.pipes[node.id] if node.id in link.pipes else deque()
        source = link.other(node.id)
        while pipe and pipe[0][0] <= self.now:
            if not node.alive or node.frozen or not link.open[node.id] or (source, node.id) in self._cuts:
                return
            _, data = pipe.popleft()
            if not data:
                self._end(node, link, Reason.LOST)
                return
            self._take(node, link, source, data)

    def _take(self, node: NetworkNode, link: _Link, source: str, data: bytes) -> None:
        protocol = link.ends[node.id]
        protocol.receive_data(data)
        try:
            while link.open[node.id] and (event := protocol.next_event()) is not None:
                if isinstance(event, ByeReceived):
                    self._end(node, link, event.reason)
                else:
                    node.core.received(source, event, self.now)  # type: ignore[arg-type]
                    self._settle(node)
        except MeshError as error:
            node.errors.append(str(error))
            self._end(node, link, error.reason)
            self._settle(node)

    def _close(self, node: NetworkNode, link: _Link) -> None:
        """One end is done with a link: the other reads its end."""
        if link.open[node.id]:
            link.open[node.id] = False
            if node.links.get(link.other(node.id)) is link:
                del node.links[link.other(node.id)]
            self._write(node, link, b"")

    def _end(self, node: NetworkNode, link: _Link, reason: str) -> None:
        """A link is over for a node that did not want that."""
        if link.open[node.id]:
            current = node.links.get(link.other(node.id)) is link
            self._close(node, link)
            if current and node.alive:
                node.core.link_ended(link.other(node.id), reason, self.now)
                self._settle(node)
