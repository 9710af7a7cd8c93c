"""realtime: one node of a mesh. Arguments: the mesh's port here, and those of nodes to connect to."""

from __future__ import annotations

import sys

import gevent

from benchmarks.peers.announce import announce
from benchmarks.peers.realtime_kernel import make_kernel
from realtime import PeerMeshTransport, WebSocketTransport

if __name__ == "__main__":
    port, *others = map(int, sys.argv[1:])
    transport = WebSocketTransport(port=0, path="/realtime")
    mesh = PeerMeshTransport(port, peers=[("127.0.0.1", other) for other in others])
    make_kernel(transport, mesh).start()
    announce(transport.port)
    gevent.wait()
