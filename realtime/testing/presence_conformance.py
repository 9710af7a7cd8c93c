"""What live presence must be across the nodes of a cluster, as tests: a part of ``ClusterConformance``.

Each watcher applies what it is told as a strict client does, so that a join without its one leave, or a leave without
its join, fails wherever it happens.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import gevent

from realtime.config import Limits
from realtime.errors import TimedOut
from realtime.testing.cluster_suite import ClusterNodeUnderTest, ClusterSuite
from realtime.testing.presence_view import PresenceView
from realtime.transports.memory_client import MemoryClient

__all__ = ["ClusterWatcher", "LivePresenceConformance"]

PATIENCE = 30.0
FAST = Limits(presence_quiet=0.005, presence_busy=0.02, presence_listed=20)


class ClusterWatcher:
    """A client of one node that watches a room."""

    def __init__(self, node: ClusterNodeUnderTest, room: str = "tea", **options: Any) -> None:
        self.client: MemoryClient = node.connect(**options)
        self.id = self.client.id
        self.view = PresenceView(room)
        node.kernel.rooms.join(room, self.id, presence=True)

    def sees(self, *clients: MemoryClient | ClusterWatcher) -> None:
        """Apply what comes until just these are shown."""
        ids = {client.id for client in clients}
        self.until(lambda view: view.clients == ids)

    def until(self, condition: Callable[[PresenceView], bool]) -> None:
        """Apply what comes until something holds."""
        while not condition(self.view):
            try:
                message = self.client.receive(PATIENCE)
            except TimedOut:
                raise AssertionError(f"{self.id} still sees {self.view.presences}, {self.view.total}") from None
            self.view.take(message["type"], message["payload"])


class LivePresenceConformance(ClusterSuite):
    """The tests of live presence."""

    def test_a_watcher_sees_members_of_every_node_come_and_go(self) -> None:
        with self.cluster(3, limits=FAST) as nodes:
            there = [node.connect(metadata={"node": number}) for number, node in enumerate(nodes)]
            nodes[1].kernel.rooms.join("tea", there[1].id)
            watchers = [ClusterWatcher(node) for node in nodes]
            for watcher in watchers:
                watcher.sees(*watchers, there[1])
            nodes[2].kernel.rooms.join("tea", there[2].id)
            for watcher in watchers:
                watcher.sees(*watchers, *there[1:])
                assert watcher.view.presences is not None
                assert watcher.view.presences[there[2].id]["metas"] == [{"id": there[2].id, "node": 2}]
            nodes[1].kernel.rooms.leave("tea", there[1].id)
            there[2].kill()
            for watcher in watchers:
                watcher.sees(*watchers)
                assert {there[1].id, there[2].id} <= set(watcher.view.leaves)
                assert watcher.view.states == 1
            assert watchers[0].view.joins.count(there[2].id) == watchers[0].view.leaves.count(there[2].id)

    def test_connections_of_one_identity_on_two_nodes_are_one_presence(self) -> None:
        with self.cluster(limits=FAST) as nodes:
            watchers = [ClusterWatcher(node) for node in nodes]
            here, there = (node.connect(identity="ada") for node in nodes)
            nodes[0].kernel.rooms.join("tea", here.id)
            nodes[1].kernel.rooms.join("tea", there.id)
            for watcher in watchers:
                watcher.sees(*watchers, here, there)
                assert watcher.view.total == 3
            here.close()
            for watcher in watchers:
                watcher.sees(*watchers, there)
                assert "ada" in (watcher.view.presences or ())
            there.close()
            for watcher in watchers:
                watcher.sees(*watchers)
                assert watcher.view.joins.count("ada") == watcher.view.leaves.count("ada")

    def test_an_update_elsewhere_is_an_update_here(self) -> None:
        with self.cluster(limits=FAST) as nodes:
            watcher, there = ClusterWatcher(nodes[0]), nodes[1].connect()
            nodes[1].kernel.rooms.join("tea", there.id)
            watcher.sees(watcher, there)
            nodes[1].kernel.presence.update(there.id, {"mood": "fine"})
            shown = {"metas": [{"id": there.id, "mood": "fine"}]}
            watcher.until(lambda view: (view.presences or {}).get(there.id) == shown)
            assert watcher.view.joins.count(there.id) == watcher.view.leaves.count(there.id) + 1

    def test_a_client_of_another_node_can_be_made_a_watcher(self) -> None:
        with self.cluster(limits=FAST) as nodes:
            there = ClusterWatcher(nodes[1], "hall")
            self._know(nodes, 1)
            nodes[0].kernel.rooms.join("tea", there.id, presence=True)
            there.view = PresenceView("tea")
            kinds = [there.client.receive(PATIENCE) for _ in range(2)]  # the state of each room
            there.view.take(kinds[1]["type"], kinds[1]["payload"])
            assert there.view.clients == {there.id}

    def test_members_of_a_node_that_stops_leave_once(self) -> None:
        with self.cluster(limits=FAST) as nodes:
            watchers = [ClusterWatcher(node) for node in nodes]
            for watcher in watchers:
                watcher.sees(*watchers)
            nodes[1].kernel.stop(1)
            watchers[0].sees(watchers[0])
            assert watchers[1].id in watchers[0].view.leaves

    def test_members_of_a_node_that_vanishes_leave_once(self) -> None:
        with self.cluster(3, limits=FAST) as nodes:
            watchers = [ClusterWatcher(node) for node in nodes]
            for watcher in watchers:
                watcher.sees(*watchers)
            self.vanish(nodes[2].joining)
            for watcher in watchers[:2]:
                watcher.sees(*watchers[:2])
                assert watchers[2].id in watcher.view.leaves

    def test_whatever_happens_all_watchers_see_the_same_in_the_end(self) -> None:
        with self.cluster(3, limits=FAST) as nodes:
            random = Random(1)
            watchers = [ClusterWatcher(node) for node in nodes]
            crowd = [
                (node, node.connect(identity=random.choice([None, "ada", "ben"]))) for node in nodes for _ in range(9)
            ]
            for number in range(600):
                node, client = random.choice(crowd)
                happens = random.choice([node.kernel.rooms.join, node.kernel.rooms.join, node.kernel.rooms.leave])
                happens("tea", client.id)
                if number % 7 == 0:
                    node.kernel.presence.update(client.id, {"number": number})
                if number % 5 == 0:
                    gevent.sleep(0)
            for node, client in crowd[::2]:
                node.kernel.rooms.leave("tea", client.id)
            staying = [client for node, client in crowd if client.id in node.kernel.rooms.members("tea", scope="local")]
            for watcher in watchers:
                watcher.sees(*watchers, *staying)
            keys = [set(watcher.view.presences or ()) for watcher in watchers]
            assert keys == [keys[0]] * 3
