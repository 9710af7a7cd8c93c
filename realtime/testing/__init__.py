"""For the tests of applications: a kernel with clients that need no sockets.

::

    from realtime.testing import KernelTest

    def test_chat():
        with KernelTest(kernel) as kernel_test:
            ann, bob = kernel_test.connect(), kernel_test.connect()
            bob.call("join", room="lobby")
            ann.send({"type": "chat:message", "payload": "hi", "room": "lobby"})
            assert bob.receive_until("chat:message")["payload"] == "hi"
"""

from realtime.testing.cluster_conformance import ClusterConformance
from realtime.testing.conformance import TransportConformance
from realtime.testing.kernel_test import KernelTest
from realtime.testing.peers import ConformanceClient
from realtime.transports.memory import MemoryClient, MemoryTransport

__all__ = [
    "ClusterConformance",
    "ConformanceClient",
    "KernelTest",
    "MemoryClient",
    "MemoryTransport",
    "TransportConformance",
]
