"""Clusters to test: nodes that a suite makes, runs, and looks into. What the suites of ``ClusterConformance`` share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from realtime.connection import Context
from realtime.kernel import RealtimeKernel
from realtime.message import Message
from realtime.testing.peers import PATIENCE, wait_until
from realtime.toolkit import Toolkit
from realtime.transports.base import Transport
from realtime.transports.memory import MemoryTransport
from realtime.transports.memory_client import MemoryClient

__all__ = ["ClusterNodeUnderTest", "ClusterSuite"]


class ClusterNodeUnderTest:
    """One node: a kernel with a cluster and in-process clients."""

    def __init__(self, joining: Transport, **options: Any) -> None:
        self.clients = MemoryTransport()
        self.joining = joining
        self.kernel = RealtimeKernel([self.clients, joining], log_level="warning", **options)
        self._register()

    def connect(self, **options: Any) -> MemoryClient:
        """Connect a client to this node."""
        return self.clients.connect(**options)

    def _register(self) -> None:
        kernel = self.kernel
        kernel.rooms.configure("kept:*", join=True, history=50, recover=True)

        @kernel.on("join")
        def join(message: Message, context: Context, toolkit: Toolkit) -> None:
            toolkit.rooms.join(message.room or "")

        @kernel.on("say")
        def say(message: Message, context: Context, toolkit: Toolkit) -> int:
            return toolkit.rooms.broadcast({"type": "said", "payload": message.payload}, message.room, except_self=True)

        @kernel.on("ask")
        def ask(message: Message, context: Context, toolkit: Toolkit) -> Any:
            assert isinstance(message.target, str)
            return toolkit.call(message.target, {"type": "question", "payload": message.payload}, timeout=PATIENCE)


class ClusterSuite:
    """Tests that run on nodes of whatever a subclass makes."""

    @abstractmethod
    def make_nodes(self, count: int) -> Sequence[Transport]:
        """Return so many transports that will find each other once their kernels run, in this order."""

    @abstractmethod
    def vanish(self, joining: Transport) -> None:
        """Have a node vanish from the cluster without a word, as when its machine dies."""

    @contextmanager
    def cluster(self, count: int = 2, **options: Any) -> Iterator[list[ClusterNodeUnderTest]]:
        """Run nodes that know of each other for the length of a ``with`` block, then take them down.

        :param options: of their kernels.
        """
        nodes = [ClusterNodeUnderTest(joining, **options) for joining in self.make_nodes(count)]
        started: list[ClusterNodeUnderTest] = []
        try:
            for node in nodes:
                node.kernel.start()
                started.append(node)
            probes = [node.connect() for node in nodes]
            for node in nodes:  # each sees every other's client: they know each other
                wait_until(lambda node=node: len(node.kernel.presence.list()) == count)  # type: ignore[misc]
            for probe in probes:
                probe.close()
            for node in nodes:
                wait_until(lambda node=node: not node.kernel.presence.list())  # type: ignore[misc]
            yield nodes
        finally:
            for node in started:
                node.kernel.stop(5)

    @staticmethod
    def _outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
        """Return what a function returns, or what it raises."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            return error

    @staticmethod
    def _know(nodes: Sequence[ClusterNodeUnderTest], count: int) -> None:
        """Wait until every node sees so many clients."""
        for node in nodes:
            wait_until(lambda node=node: node.kernel.presence.list().total == count)  # type: ignore[misc]

    @staticmethod
    def _join(
        nodes: Sequence[ClusterNodeUnderTest], room: str, *members: tuple[ClusterNodeUnderTest, MemoryClient]
    ) -> None:
        """Put clients into a room, and wait until every node knows."""
        for _, client in members:
            client.call("join", room=room, timeout=PATIENCE)
        for node in nodes:
            wait_until(lambda node=node: len(node.kernel.rooms.members(room)) == len(members))  # type: ignore[misc]
