"""realtime: several workers behind one port. Argument: how many."""

from __future__ import annotations

import sys

from benchmarks.peers.announce import announce, free_port
from realtime import RealtimeKernel, WorkerPool
from realtime.worker_pool import Worker


def setup(worker: Worker) -> RealtimeKernel:
    """Make the kernel of one worker, in its process."""
    from benchmarks.peers.realtime_kernel import make_kernel
    from realtime import WebSocketTransport

    return make_kernel(WebSocketTransport(port=port, path="/realtime"))


if __name__ == "__main__":
    port = free_port()
    announce(port)
    WorkerPool(int(sys.argv[1]), setup, log_level="warning").run()
