"""The mesh behind the kernel's seam: who has confirmed a broadcast, and for whom a link is held up."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from realtime.cluster import Alone, Then
from realtime.cluster_node import MOST_STALLS, _Patience
from realtime.errors import ConnectionClosed, MessageTooBig, NotConfirmed
from realtime.message import Outbound
from realtime.protocols.mesh_actions import Action, CallLost, Confirmed, ConfirmFailed
from realtime.protocols.mesh_outgoing import Published
from realtime.testing import KernelTest
from realtime.transports.mesh_cluster import MeshCluster


class Answering:
    """An engine whose nodes answer before the publisher has begun to wait, as they may while it stalls."""

    def __init__(self, cluster: MeshCluster, *answers: Action) -> None:
        self.core = SimpleNamespace(codecs=lambda room: {"json"}, publish=self._publish)
        self.links: dict[str, Any] = {}
        self._cluster = cluster
        self._answers = answers

    def _publish(self, *args: Any, **options: Any) -> Published:
        return Published(["ann", "bob"], 5)

    def act(self) -> None:
        for answer in self._answers:
            self._cluster.resolved(answer)


def cluster_with(*answers: Any) -> MeshCluster:
    """A cluster of three nodes, seen from the third."""
    hub: Any = SimpleNamespace(workers=SimpleNamespace(parked=nullcontext), limits=SimpleNamespace(stall=0.005))
    cluster = MeshCluster(hub, "cat", lambda nodes: nullcontext())
    cluster.engine = Answering(cluster, *answers)  # type: ignore[assignment]
    return cluster


def test_nodes_that_confirm_while_the_publisher_stalls_have_confirmed() -> None:
    cluster = cluster_with(Confirmed(1, "ann", 2), Confirmed(1, "bob", 3))
    assert cluster.publish_confirmed("tea", Outbound({"type": "news"}, timestamp=0), (), 0.05, lambda: None) == 5


def test_a_node_that_fails_while_the_publisher_stalls_is_named() -> None:
    cluster = cluster_with(Confirmed(1, "ann", 2), ConfirmFailed(1, "bob", "gone"))
    with pytest.raises(NotConfirmed, match=r"by bob \(has left the cluster\)$") as caught:
        cluster.publish_confirmed("tea", Outbound({"type": "news"}, timestamp=0), (), 0.05, lambda: None)
    assert (caught.value.nodes, caught.value.delivered) == (("bob",), 2)


class FakeOutbox:
    """What patience looks at."""

    progress = 0
    closed = False


def test_patience_with_a_member_ends_until_it_makes_progress() -> None:
    patience, slow, other = _Patience(), FakeOutbox(), FakeOutbox()
    for _ in range(2):
        assert [patience.waits_for(slow) for _ in range(MOST_STALLS + 2)] == [True] * MOST_STALLS + [False] * 2  # type: ignore[arg-type]
        assert patience.waits_for(other)  # type: ignore[arg-type]
        slow.progress += 1


def test_patience_does_not_remember_who_has_gone() -> None:
    patience = _Patience()
    for _ in range(100):
        gone = FakeOutbox()
        patience.waits_for(gone)  # type: ignore[arg-type]
        gone.closed = True
    assert len(patience._stalls) == 1


class Refusing:
    """An engine that sends no question: too large, or lost at once."""

    def __init__(self, cluster: MeshCluster, error: Exception | None) -> None:
        self.core = SimpleNamespace(call_node=self._call_node)
        self._cluster = cluster
        self._error = error
        self._lost: list[int] = []

    def _call_node(self, token: int, node: str, body: bytes, *, timeout: float, now: float) -> bool:
        if self._error is not None:
            raise self._error
        self._lost.append(token)
        return True

    def act(self) -> None:
        for token in self._lost:
            self._cluster.resolved(CallLost(token, "busy"))


@pytest.mark.parametrize("error", [None, MessageTooBig("too much")])
def test_a_question_that_is_never_sent_is_forgotten(error: Exception | None) -> None:
    cluster = cluster_with()
    cluster.engine = Refusing(cluster, error)  # type: ignore[assignment]
    answers: list[Any] = []
    with nullcontext() if error is None else pytest.raises(MessageTooBig):
        cluster.ask_node("ann", "claim", {}, 1.0, lambda result, lost: answers.append(lost))
    assert [type(answer) for answer in answers] == ([ConnectionClosed] if error is None else [])
    assert cluster._asked == {}


def test_who_asks_for_a_session_that_cannot_be_asked_for_is_remembered_no_more(kernel_test: KernelTest) -> None:
    class Lost(Alone):
        def node_ids(self) -> list[str]:
            return ["ann"]

        def ask_node(self, node: str, operation: str, arguments: Any, timeout: float, then: Then) -> None:
            then(None, ConnectionClosed(1006, "the question was lost on the way"))

    hub = kernel_test.kernel.hub
    hub.join_cluster(Lost())
    client = kernel_test.connect()
    client.send({"type": "system:hello", "payload": {"session": {"token": "ann.token", "received": 0}}})
    about = client.receive()["payload"]["session"]
    assert (about["resumed"], about["reason"]) == (False, "its node cannot be reached")
    assert not hub.sessions.arrivals.is_claiming(hub.connections[client.id])
