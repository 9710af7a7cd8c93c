"""The mesh, and the in-memory network of its model test, do what everything that joins nodes must do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from mesh_proxy import LoopbackNetwork

from realtime import MeshOptions, PeerMeshTransport
from realtime.testing import ClusterConformance
from realtime.testing.live_network import LiveNetwork
from realtime.testing.network_cluster import NetworkTransport
from realtime.testing.presence_conformance import FAST, ClusterWatcher
from realtime.transports.base import Transport

HASTY = MeshOptions(ping=0.05, suspect=0.3, down=0.6, backoff=0.05, backoff_max=0.1)


class MeshConformance(ClusterConformance):
    """What nodes must do that find each other again."""

    @pytest.fixture(autouse=True)
    def patiently(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nodes that live answer, however long that takes on a busy machine; one that vanished is down by then."""
        monkeypatch.setattr("realtime.history.SYNC_TIMEOUT", 60.0)

    @abstractmethod
    def heal(self) -> None:
        """Have nodes that vanished come back."""

    def test_watchers_on_both_sides_of_a_partition_see_one_leave_and_one_join(self) -> None:
        with self.cluster(limits=FAST) as nodes:
            watchers = [ClusterWatcher(node) for node in nodes]
            brief = [node.connect() for node in nodes]
            for node, client in zip(nodes, brief, strict=True):
                node.kernel.rooms.join("tea", client.id)
            for watcher in watchers:
                watcher.sees(*watchers, *brief)
            self.vanish(nodes[1].joining)
            for watcher, client in zip(watchers, brief, strict=True):
                watcher.sees(watcher, client)
            for client in brief:
                client.close()
            late = nodes[1].connect(identity="ada")
            nodes[1].kernel.rooms.join("tea", late.id)
            self.heal()
            for watcher in watchers:
                watcher.sees(*watchers, late)
                other = watchers[0] if watcher is watchers[1] else watchers[1]
                assert {other.id, *(client.id for client in brief)} <= set(watcher.view.leaves)
                assert watcher.view.joins.count("ada") - watcher.view.leaves.count("ada") == 1


class TestPeerMesh(MeshConformance):
    network: LoopbackNetwork

    @pytest.fixture(autouse=True)
    def in_a_network(self) -> Iterator[None]:
        """Nodes reach each other through proxies, so that one can be cut off."""
        self.network = LoopbackNetwork()
        yield
        self.network.close()

    def make_nodes(self, count: int) -> Sequence[Transport]:
        nodes: list[PeerMeshTransport] = []
        for number in range(count):
            node_id = f"node-{number}"
            address = self.network.in_front_of(node_id, port_of(nodes, number))
            peers = [nodes[0].address] if nodes else []
            nodes.append(PeerMeshTransport(0, node_id=node_id, advertise=address, peers=peers, options=HASTY))
        return nodes

    def vanish(self, joining: Transport) -> None:
        assert isinstance(joining, PeerMeshTransport)
        self.network.cut(joining.node_id, "*")
        self.network.cut("*", joining.node_id)

    def heal(self) -> None:
        self.network.heal()


class TestInMemory(MeshConformance):
    def make_nodes(self, count: int) -> Sequence[Transport]:
        self.live = LiveNetwork(HASTY)
        return [NetworkTransport(self.live, f"node-{number}", seeds=["node-0"]) for number in range(count)]

    def vanish(self, joining: Transport) -> None:
        assert isinstance(joining, NetworkTransport)
        others = self.live.network.nodes.keys() - {joining.node_id}
        self.live.network.partition([joining.node_id], others)

    def heal(self) -> None:
        self.live.network.heal()


def port_of(nodes: Sequence[Any], number: int) -> Callable[[], int]:
    """Return a function that tells where a node of a growing list listens."""
    return lambda: nodes[number].port  # type: ignore[no-any-return]
