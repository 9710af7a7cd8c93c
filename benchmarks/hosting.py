"""What being hosted costs: gunicorn's gevent worker beside our own server, and importing realtime beside gevent.

Both servers run the same kernel and take turns on one core; CPU time is what is compared, so that a busy machine
changes little. Run ``python -m benchmarks.hosting``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace

from benchmarks.clients import Target
from benchmarks.load import Measurement, fan_out
from benchmarks.process import children, settle
from benchmarks.servers import Peer, Server, ServerFailed, cores, prioritise, raise_descriptor_limit

OWN = Peer("own", "our own server", "realtime_kernel", ("realtime.kernel",), ())
HOSTED = Peer("gunicorn", "gunicorn -k gevent", "realtime_hosted", ("gunicorn", "realtime.integrations"), ())

GOAL = 0.85
"""Deliveries of the hosted kernel, to those of our own server, in the same CPU time, at least."""
IMPORT_GOAL = 1.5
"""The time that ``import realtime`` takes, to that of ``import gevent.pywsgi``, at most."""

_PATIENCE = 20.0
_IMPORT = "import time; began = time.process_time(); {statement}; print(time.process_time() - began)"
_IMPORTS = ("import gevent.pywsgi", "import realtime", "from realtime import RealtimeKernel, WebSocketTransport")


def start(stack: ExitStack, peer: Peer) -> Target:
    """Start a server, all of its processes on the first core."""
    server = Server(peer, cores()[0])
    stack.callback(server.stop)
    return server.start()


def with_worker(target: Target) -> Target:
    """Return the target with the process that gunicorn serves in."""
    deadline = time.monotonic() + _PATIENCE
    while not (workers := children(target.pid)):
        if time.monotonic() > deadline:
            raise ServerFailed("gunicorn starts no worker")
        time.sleep(0.05)
    return replace(target, more_pids=workers)


def per_cpu_second(measured: Measurement) -> float:
    """Deliveries in a second of the server's CPU time. Raises SystemExit if some were lost."""
    if measured.lost or measured.disordered:
        raise SystemExit(f"{measured.lost} deliveries lost, {measured.disordered} out of order")
    assert measured.server is not None
    return measured.operations / measured.server.run


def measure_fan_out(seconds: float, turns: int, members: int, in_flight: int) -> dict[str, list[Measurement]]:
    """Return the turns of each server."""
    measured: dict[str, list[Measurement]] = {OWN.name: [], HOSTED.name: []}
    with ExitStack() as stack:
        targets = {OWN.name: start(stack, OWN), HOSTED.name: with_worker(start(stack, HOSTED))}
        for target in targets.values():
            settle(*target.pids)
        for turn in range(turns + 1):
            for name in sorted(targets, reverse=turn % 2 == 1):
                done = fan_out(targets[name], seconds, members=members, in_flight=in_flight, metric="rate")
                if turn:  # the first warms up
                    measured[name].append(done)
    return measured


def measure_imports(turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each import, in interpreters of their own, with all modules compiled before."""
    seconds: dict[str, list[float]] = {statement: [] for statement in _IMPORTS}
    with tempfile.TemporaryDirectory() as compiled:  # whatever the environment says of writing it elsewhere
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled, "PYTHONDONTWRITEBYTECODE": ""}
        for turn in range(turns + 1):
            for statement in sorted(seconds, reverse=turn % 2 == 1):
                command = [sys.executable, "-c", _IMPORT.format(statement=statement)]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                if turn:  # the first compiles
                    seconds[statement].append(float(done.stdout))
    return seconds


def main() -> int:
    """Measure both; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosting", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each")
    parser.add_argument("--nice", type=int, default=0, help="of server and load; below 0 needs root")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    if arguments.nice:
        prioritise(arguments.nice)
    os.sched_setaffinity(0, {cores()[1]})
    reached = True
    for members, in_flight in ((100, 16), (1000, 4)):
        turns = measure_fan_out(arguments.seconds, arguments.turns, members, in_flight)
        rates = {name: [per_cpu_second(one) for one in done] for name, done in turns.items()}
        ratio = statistics.median(h / o for h, o in zip(rates[HOSTED.name], rates[OWN.name], strict=True))
        print(f"a room of {members}, {in_flight} in flight, deliveries per second and per CPU second:")
        for peer in (OWN, HOSTED):
            wall = statistics.median(one.values["rate"] for one in turns[peer.name])
            print(f"  {peer.label:20} {wall:9,.0f} {statistics.median(rates[peer.name]):9,.0f}")
        print(f"  {'ratio':20} {'':9} {ratio:9.2f}  (goal: at least {GOAL})")
        reached = reached and ratio >= GOAL
    seconds = measure_imports(2 * arguments.turns)
    medians = {statement: statistics.median(took) for statement, took in seconds.items()}
    print("an import, milliseconds of CPU time:")
    for statement, median in medians.items():
        print(f"  {statement:56} {median * 1000:4.0f}")
    ratio = medians[_IMPORTS[1]] / medians[_IMPORTS[0]]
    print(f"  {'ratio of the first two':56} {ratio:4.2f}  (goal: at most {IMPORT_GOAL})")
    return 0 if reached and ratio <= IMPORT_GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
