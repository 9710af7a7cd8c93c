"""The mesh, and the in-memory network of its model test, do what everything that joins nodes must do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from mesh_proxy import LoopbackNetwork

from realtime import MeshOptions, PeerMeshTransport
from realtime.testing import ClusterConformance
from realtime.testing.network_cluster import LiveNetwork, NetworkTransport
from realtime.transports.base import Transport

HASTY = MeshOptions(ping=0.05, suspect=0.3, down=0.6, backoff=0.05, backoff_max=0.1)


class TestPeerMesh(ClusterConformance):
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


class TestInMemory(ClusterConformance):
    def make_nodes(self, count: int) -> Sequence[Transport]:
        self.live = LiveNetwork(HASTY)
        return [NetworkTransport(self.live, f"node-{number}", seeds=["node-0"]) for number in range(count)]

    def vanish(self, joining: Transport) -> None:
        assert isinstance(joining, NetworkTransport)
        others = self.live.network.nodes.keys() - {joining.node_id}
        self.live.network.partition([joining.node_id], others)


def port_of(nodes: Sequence[Any], number: int) -> Callable[[], int]:
    """Return a function that tells where a node of a growing list listens."""
    return lambda: nodes[number].port  # type: ignore[no-any-return]
