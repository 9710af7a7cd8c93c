"""Servers that are several processes: nodes of a mesh, workers of a pool, and Flask-SocketIO around a Redis."""

from __future__ import annotations

import importlib.util
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from benchmarks.clients import Target
from benchmarks.peers.announce import free_port
from benchmarks.process import children, settle
from benchmarks.servers import PEERS, Peer, Server, ServerFailed, cores

__all__ = ["CLUSTERS", "FLASK", "ONE_NODE", "ONE_WORKER", "TWO_ALONE", "TWO_NODES", "TWO_WORKERS", "Cluster"]

ONE_NODE, TWO_NODES, FLASK = "one-node", "two-nodes", "flask-redis"
ONE_WORKER, TWO_WORKERS, TWO_ALONE = "one-worker", "two-workers", "two-alone"

_PATIENCE = 20.0  # seconds for processes to start
_PEERS = {peer.name: peer for peer in PEERS}
_NODE = Peer("node", "a node of the mesh", "realtime_mesh", ("realtime.transports.mesh",), ())
_POOL = Peer("pool", "a pool of workers", "realtime_workers", ("realtime.worker_pool",), ())


@dataclass(frozen=True)
class Cluster:
    """One way to serve; ``start`` has it running while it is used, all of its processes on the first core."""

    name: str
    label: str
    start: Callable[[ExitStack], Target]
    missing: Callable[[], str | None] = lambda: None
    """Why it cannot run here, and what to install."""

    @contextmanager
    def running(self) -> Iterator[Target]:
        """Start all of it, and stop all of it. Raises ServerFailed."""
        with ExitStack() as stack:
            target = self.start(stack)
            settle(*target.pids)
            yield target


def _serve(stack: ExitStack, peer: Peer) -> Target:
    server = Server(peer, cores()[0])
    stack.callback(server.stop)
    return server.start()


def _together(*targets: Target, more_pids: tuple[int, ...] = ()) -> Target:
    first, *others = targets
    pids = tuple(target.pid for target in others) + more_pids
    return replace(first, more_pids=pids, more_ports=tuple(target.port for target in others))


def _one_node(stack: ExitStack) -> Target:
    return _serve(stack, _PEERS["realtime"])


def _two_nodes(stack: ExitStack) -> Target:
    ports = free_port(), free_port()
    nodes = [_serve(stack, replace(_NODE, arguments=(str(ports[0]),)))]
    nodes.append(_serve(stack, replace(_NODE, arguments=(str(ports[1]), str(ports[0])))))
    return _together(*nodes)


def _two_alone(stack: ExitStack) -> Target:
    """Two processes cost more than one by themselves, as each wakes up for fewer messages at a time."""
    return _together(*(_serve(stack, _PEERS["realtime"]) for _ in range(2)))


def _pool(count: int) -> Callable[[ExitStack], Target]:
    def start(stack: ExitStack) -> Target:
        target = _serve(stack, replace(_POOL, arguments=(str(count),)))
        deadline = time.monotonic() + _PATIENCE
        while _listening(target.port) < count:
            if time.monotonic() > deadline:
                raise ServerFailed(f"fewer than {count} workers listen on port {target.port}")
            time.sleep(0.02)
        return replace(target, more_pids=children(target.pid))

    return start


def _listening(port: int) -> int:
    """How many sockets listen on a port."""
    wanted = f":{port:04X}"
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table]
    return sum(row[1].endswith(wanted) and row[3] == "0A" for row in rows)


def _flask(stack: ExitStack) -> Target:
    redis, port = _redis(stack)
    peer = replace(_PEERS["flask-socketio"], arguments=(f"redis://127.0.0.1:{port}/0",))
    return _together(_serve(stack, peer), _serve(stack, peer), more_pids=(redis,))


def _redis(stack: ExitStack) -> tuple[int, int]:
    """Start a Redis of our own, that keeps nothing; its pid and port."""
    program = shutil.which("redis-server")
    assert program is not None
    port = free_port()
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", directory)
    pinned = ("taskset", "-c", str(cores()[0]), program)
    # unbuffered: select does not see the lines that a buffer has taken in with an earlier one
    process = subprocess.Popen((*pinned, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    stack.callback(_end, process)
    deadline = time.monotonic() + _PATIENCE
    said = b""
    assert process.stdout is not None
    while b"Ready to accept connections" not in said:
        ready, _, _ = select.select((process.stdout,), (), (), max(0.0, deadline - time.monotonic()))
        line = process.stdout.readline() if ready else b""
        if not line:
            raise ServerFailed(f"redis-server did not start\n{said.decode(errors='replace')[-500:]}")
        said += line
    return process.pid, port


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _no_flask() -> str | None:
    if shutil.which("redis-server") is None:
        return "redis-server is not on PATH: apt-get install redis-server"
    absent = _PEERS["flask-socketio"].missing()
    if absent is None and importlib.util.find_spec("redis") is None:
        absent = "not installed: redis"
    return f"{absent}: pip install -r benchmarks/requirements.txt" if absent else None


CLUSTERS: tuple[Cluster, ...] = (
    Cluster(ONE_NODE, "realtime, one node", _one_node),
    Cluster(TWO_NODES, "realtime, two nodes", _two_nodes),
    Cluster(FLASK, "Flask-SocketIO, two processes and Redis", _flask, _no_flask),
    Cluster(ONE_WORKER, "realtime, one worker", _pool(1)),
    Cluster(TWO_WORKERS, "realtime, two workers", _pool(2)),
    Cluster(TWO_ALONE, "realtime, two servers that do not know each other", _two_alone),
)
