"""All processors of a machine behind one port: who answers, and a room with members in every process.

    python examples/cluster_echo.py                      one worker for each processor, but at least two
    python examples/cluster_echo.py --workers 4

Eight clients, from Python::

    import json
    from contextlib import ExitStack

    from websockets.sync.client import connect

    with ExitStack() as stack:
        clients = [stack.enter_context(connect("ws://127.0.0.1:8768/")) for _ in range(8)]
        for client in clients:
            client.send(json.dumps({"type": "echo", "payload": "hello", "ack": 1}))
            print(json.loads(client.recv())["payload"]["result"])
        clients[0].send(json.dumps({"type": "say", "payload": "good morning"}))
        print(sum(json.loads(client.recv())["type"] == "said" for client in clients), "heard it")

Every answer names the worker that gave it, such as ``{'echo': 'hello', 'worker': 1, 'pid': 4712}``: the system
spreads connections over the workers, by chance and evenly in the long run. What one client says is heard by all eight,
whichever worker they are connected to.

Kill a worker (``kill -9 PID``): another process takes its place, and the others' clients notice nothing. ``kill -HUP``
with the pid that is printed first replaces all of them one by one. Ctrl-C stops everything. An application in modules
of its own is started the same way with ``realtime serve module:kernel --workers 4``.
"""

from __future__ import annotations

import argparse
import os

from gevent import monkey

from realtime import RealtimeKernel, WebSocketTransport, WorkerPool
from realtime.worker_pool import usable_cpus

EVERYBODY = "everybody"


def make_kernel(worker, port):
    """Make the kernel of one worker; called in its process, which alone is to be patched."""
    monkey.patch_all()
    kernel = RealtimeKernel([WebSocketTransport(port=port, path="/")])
    me = {"worker": worker.index, "pid": os.getpid()}

    @kernel.on("client:connected")
    def welcome(message, context, toolkit):
        toolkit.rooms.join(EVERYBODY)

    @kernel.on("echo")
    def echo(message, context, toolkit):
        return {"echo": message.payload, **me}

    @kernel.on("say")
    def say(message, context, toolkit):
        toolkit.rooms.broadcast({"type": "said", "payload": {"said": message.payload, **me}}, EVERYBODY)

    return kernel


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server in several processes.")
    parser.add_argument("--port", type=int, default=8768)
    parser.add_argument("--workers", type=int, default=max(2, usable_cpus()))
    arguments = parser.parse_args()
    print(f"{arguments.workers} workers; the pool is process {os.getpid()}", flush=True)
    WorkerPool(arguments.workers, lambda worker: make_kernel(worker, arguments.port)).run()
