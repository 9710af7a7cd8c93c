"""Any schedule of joins, kills, partitions and heals: views converge, events pair up, order per sender holds.

The cores are driven directly on an in-memory network with a virtual clock. Runs a few seconds by default; for a
thousand schedules and more, say for how many seconds::

    REALTIME_FUZZ_SECONDS=600 python -m pytest tests/fuzz/test_mesh_model.py
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import count, pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from realtime.config import MeshOptions
from realtime.protocols.mesh_actions import (
    ClientCame,
    ClientFound,
    ClientLost,
    ClientWent,
    DeliverToRoom,
    Gap,
    NodeJoined,
    NodeLeft,
    NodeRefuted,
    NodeSuspect,
    RoomJoined,
    RoomLeft,
)
from realtime.testing.mesh_network import MeshNetwork, NetworkNode

SECONDS = float(os.environ.get("REALTIME_FUZZ_SECONDS", "0"))
NAMES = ["ann", "bob", "cyd", "dan", "eve"]
SEEDS = ["ann", "bob"]
ROOMS = ["hall", "den"]
CONVERGENCE = 120.0  # virtual seconds after everything is healed: the longest backoff, a few times

names = st.sampled_from(NAMES)
rooms = st.sampled_from(ROOMS)


class Cluster(RuleBasedStateMachine):
    """Up to five nodes, and whatever can happen to them."""

    @initialize(seed=st.integers(0, 2**32), nodes=st.integers(2, 5), kept=st.sampled_from([65_536, 65_536, 30]))
    def begin(self, seed: int, nodes: int, kept: int) -> None:
        self.network = MeshNetwork(seed, options=MeshOptions(resend_frames=kept))
        self.everybody: list[NetworkNode] = []
        self.numbers = count(1)
        self.sent: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
        """Numbers of messages by sending and receiving instance."""
        for name in NAMES[:nodes]:
            self.start(name)
            self.client_comes(self.network.nodes[name], ROOMS[0], "json")
        self.network.run(2.0)

    def start(self, name: str) -> None:
        self.everybody.append(self.network.add(name, seeds=SEEDS))

    def running(self, name: str) -> NetworkNode | None:
        """The node if it can do anything now."""
        node = self.network.nodes.get(name)
        return node if node is not None and node.alive and not node.frozen else None

    # Faults ---------------------------------------------------------------------------------------------

    @rule(name=names, ending=st.sampled_from(["kill", "leave", "freeze", "freeze"]))
    def a_node_ends_or_begins(self, name: str, ending: str) -> None:
        node = self.network.nodes.get(name)
        if node is None or not node.alive:
            self.start(name)
        elif node.frozen:
            self.network.thaw(name)
        else:
            getattr(self.network, ending)(name)

    @rule(one=names, other=names, fault=st.sampled_from(["break", "break", "cut", "cut both ways", "heal"]))
    def a_link_suffers(self, one: str, other: str, fault: str) -> None:
        if one == other or one not in self.network.nodes:
            return
        if fault == "break":
            self.network.break_link(one, other)
        elif fault == "cut":
            self.network.cut(one, other)
        elif fault == "cut both ways":
            self.network.partition([one], [other])
        else:
            self.network.heal()

    @rule(one=names, other=names, data=st.data())
    def a_link_breaks_in_a_stream(self, one: str, other: str, data: st.DataObject) -> None:
        node = self.running(one)
        if node is None or one == other:
            return
        for _ in range(data.draw(st.integers(1, 4))):
            for _ in range(data.draw(st.sampled_from([5, 70]))):
                self.publish(node, ROOMS[0])
            self.network.flush()
            self.network.run(data.draw(st.sampled_from([0.0, 0.004, 0.02, 0.06])))
            self.network.break_link(one, other)
            self.network.run(data.draw(st.sampled_from([0.0, 0.5, 3.0])))

    @rule(side=st.sets(names), healed=st.booleans())
    def the_network_parts_or_heals(self, side: set[str], healed: bool) -> None:
        self.network.heal()
        if not healed:
            self.network.partition(side, set(NAMES) - side)

    @rule(seconds=st.sampled_from([0.001, 0.01, 0.1, 1.0]))
    def a_moment_passes(self, seconds: float) -> None:
        self.network.run(seconds)

    @rule(seconds=st.sampled_from([3.0, 6.0, 12.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.network.run(seconds)

    # Clients and messages -------------------------------------------------------------------------------

    @rule(name=names, room=rooms, codec=st.sampled_from(["json", "msgpack"]))
    def a_client_comes_and_joins(self, name: str, room: str, codec: str) -> None:
        node = self.running(name)
        if node:
            self.client_comes(node, room, codec)

    def client_comes(self, node: NetworkNode, room: str, codec: str) -> None:
        client = f"{node.id}{next(self.numbers)}"
        node.come(client, codec=codec, metadata={"n": client})
        node.join(room, client)
        self.network.flush()

    @rule(name=names, room=st.sampled_from([*ROOMS, None]), data=st.data())
    def a_client_changes_or_goes(self, name: str, room: str | None, data: st.DataObject) -> None:
        node = self.running(name)
        if node is None or not node.clients:
            return
        client = data.draw(st.sampled_from(list(node.clients)))
        if room is None:
            node.go(client)
        elif room in node.clients[client]:
            node.leave(room, client)
        else:
            node.join(room, client)
            node.core.metadata_replaced(client, {"n": client, "changed": next(self.numbers)})
        self.network.flush()

    @rule(name=names, room=st.sampled_from([*ROOMS, None]), times=st.sampled_from([1, 3, 20]))
    def a_node_publishes(self, name: str, room: str | None, times: int) -> None:
        node = self.running(name)
        if node:
            for _ in range(times):
                self.publish(node, room)
            self.network.flush()

    def publish(self, node: NetworkNode, room: str | None) -> None:
        number = next(self.numbers)
        body = node.instance + number.to_bytes(8, "big")
        known = node.core._peers.known
        for receiver in node.core.publish(room, "number", {"json": body, "msgpack": body}).nodes:
            self.sent[node.instance, known[receiver].instance].append(number)

    # What must hold ----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "network"):
            return
        network = self.network
        network.heal()
        for node in network.nodes.values():
            if node.frozen:
                network.thaw(node.id)
        if not any(name in network.nodes and network.nodes[name].alive for name in SEEDS):
            self.start(SEEDS[0])  # nodes that know nobody who lives cannot find each other
        alive = [node for node in network.nodes.values() if node.alive]
        self.wait(lambda: all(self.sees_all(node, alive) for node in alive))
        assert [self.difference(node, alive) for node in alive] == [""] * len(alive)
        for node in alive:
            for room in (*ROOMS, None):
                self.publish(node, room)
        network.flush()
        self.wait(lambda: all(status.kept == 0 for node in alive for status in node.core.nodes()))
        for node in self.everybody:
            assert node.errors == []
            Pairs().check(node)
        self.check_messages(alive)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Let time pass until something holds; it must in the end."""
        end = self.network.now + CONVERGENCE
        while not condition() and self.network.now < end:
            self.network.run(0.2)

    def sees_all(self, node: NetworkNode, alive: list[NetworkNode]) -> bool:
        return not self.difference(node, alive)

    def difference(self, node: NetworkNode, alive: list[NetworkNode]) -> str:
        """What a node sees wrong; empty if nothing."""
        core = node.core
        others = [other for other in alive if other is not node]
        nodes = core.nodes()
        if {status.node for status in nodes} != {other.id for other in others}:
            return f"{node.id} sees nodes {[status.node for status in nodes]}"
        if not all(status.linked and not status.suspect for status in nodes):
            return f"{node.id} sees {nodes}"
        expected = {client: other for other in others for client in other.clients}
        if set(core.clients()) != set(expected):
            return f"{node.id} sees clients {sorted(core.clients())}, not {sorted(expected)}"
        for client, other in expected.items():
            entry = core.entry(client)
            if entry is None or core.home(client) != other.id or set(entry["rooms"]) != set(other.clients[client]):
                return f"{node.id} sees {client} as {entry}"
            if entry["metadata"]["n"] != client:
                return f"{node.id} sees metadata {entry}"
        for room in ROOMS:
            members = [client for other in others for client in other.members(room)]
            if sorted(core.members(room)) != sorted(members) or core.rooms().get(room, 0) != len(members):
                return f"{node.id} sees {core.members(room)} in {room}, not {members}"
        for other in others:
            state = core._replicas.state_of(other.id)
            if state is None or state.digest() != other.core._own.digest():
                return f"{node.id} has another digest of {other.id}"
        return ""

    def check_messages(self, alive: list[NetworkNode]) -> None:
        by_instance = {node.instance: node for node in self.everybody}
        for receiver in self.everybody:
            got: dict[bytes, list[int]] = defaultdict(list)
            for action in receiver.told:
                if isinstance(action, DeliverToRoom):
                    body = next(iter(action.bodies.values()))
                    got[body[:16]].append(int.from_bytes(body[16:], "big"))
            for instance, numbers in got.items():
                sender = by_instance[instance]
                sent = self.sent[instance, receiver.instance]
                assert all(one < other for one, other in pairwise(numbers)), "in order, and none twice"
                assert set(numbers) <= set(sent), "only what was sent to it"
                assert {action.origin for action in receiver.told if isinstance(action, DeliverToRoom)} <= set(NAMES)
                if sender in alive and receiver in alive:
                    self.check_pair(sender, receiver, sent, numbers)
        for (instance, other), sent in self.sent.items():
            sender, receiver = by_instance[instance], by_instance[other]
            if sender in alive and receiver in alive and not gaps(sender, receiver.id, "out"):
                assert sent, "something was published at the end at least"

    def check_pair(self, sender: NetworkNode, receiver: NetworkNode, sent: list[int], got: list[int]) -> None:
        """Between two nodes that both live: exactly once, but for gaps that both were told of."""
        out = gaps(sender, receiver.id, "out")
        missing = len(sent) - len(got)
        if not out:
            assert missing == 0, "nothing is lost in silence"
        assert missing <= sum(out), "no more is lost than was told"


def gaps(node: NetworkNode, other: str, direction: str) -> list[int]:
    return [
        action.count or 0
        for action in node.told
        if isinstance(action, Gap) and (action.node, action.direction) == (other, direction)
    ]


class Pairs:
    """What a node was told, replayed: everything comes before it goes, and goes once."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.suspects: set[str] = set()
        self.clients: set[tuple[str, str]] = set()
        self.members: set[tuple[str, str, str]] = set()

    def check(self, node: NetworkNode) -> None:
        for action in node.told:
            self.replay(action)
        assert self.nodes == {status.node for status in node.core.nodes()}
        assert {client for _, client in self.clients} == set(node.core.clients())
        rooms = node.core.rooms()
        assert sorted(room for _, room, _ in self.members) == sorted(
            room for room, number in rooms.items() for _ in range(number)
        )

    def replay(self, action: object) -> None:
        if isinstance(action, NodeJoined):
            assert action.node not in self.nodes
            self.nodes.add(action.node)
        elif isinstance(action, NodeLeft):
            self.nodes.remove(action.node)
            self.suspects.discard(action.node)
            assert not any(node == action.node for node, _ in self.clients), "its clients went before"
        elif isinstance(action, NodeSuspect):
            assert action.node in self.nodes - self.suspects
            self.suspects.add(action.node)
        elif isinstance(action, NodeRefuted):
            self.suspects.remove(action.node)
        elif isinstance(action, ClientCame):
            assert action.node in self.nodes
            assert (action.node, action.client) not in self.clients
            self.clients.add((action.node, action.client))
        elif isinstance(action, ClientWent):
            self.clients.remove((action.node, action.client))
            assert not any(member[::2] == (action.node, action.client) for member in self.members)
        elif isinstance(action, (ClientFound, ClientLost)):
            assert (action.node, action.client) in self.clients
            rooms = [room for node, room, client in self.members if (node, client) == (action.node, action.client)]
            assert sorted(action.rooms) == sorted(rooms) != []
        elif isinstance(action, RoomJoined):
            member = (action.node, action.room, action.client)
            assert member not in self.members
            assert (action.node, action.client) in self.clients
            self.members.add(member)
        elif isinstance(action, RoomLeft):
            self.members.remove((action.node, action.room, action.client))


def run(schedules: int, *, fresh: bool) -> None:
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=40,
            deadline=None,
            derandomize=not fresh,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_schedule_converges_with_events_in_pairs_and_messages_in_order() -> None:
    run(40, fresh=False)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        run(250, fresh=True)
