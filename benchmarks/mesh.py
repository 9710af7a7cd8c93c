"""What acting as one costs: ``python -m benchmarks.mesh``.

Servers of several processes beside servers of one, all up at the same time, all on the first core, taking turns.
Compared is the CPU time of every server process, a Redis' included, per delivered message
(``/proc/<pid>/task/*/schedstat``), as the median of the turns' ratios:

* fan-out to a room of 100: on one node (without a mesh), spread over two nodes, and spread over two processes of
  Flask-SocketIO with a Redis between them;
* echoes through two workers of a pool behind one port, through one, and through two servers without a mesh;
* the latency of deliveries on the publisher's node and on the other one, at 200 messages a second;
* what nodes cost that do nothing.

Then the mesh's growth up to 50 nodes, in a network in memory. Everything goes to ``benchmarks/results/mesh``.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.clients import Target
from benchmarks.clusters import CLUSTERS, FLASK, ONE_NODE, ONE_WORKER, TWO_ALONE, TWO_NODES, TWO_WORKERS
from benchmarks.counting import DeliveryFailed
from benchmarks.dialects import OpeningFailed
from benchmarks.load import Measurement, echo, fan_out, paced_latency
from benchmarks.mesh_growth import NODES, measure
from benchmarks.mesh_report import markdown, reached, svg
from benchmarks.mesh_results import ECHOES, FAN_OUTS, GOALS, IDLE, LATENCIES, MeshRun
from benchmarks.process import CpuTime, StillBusy, cpu_time
from benchmarks.report import number
from benchmarks.servers import ServerFailed, cores, prioritise, raise_descriptor_limit

_RESULTS = Path(__file__).parent / "results"
_RATE = 200.0  # messages a second for latency
_IDLE_SECONDS = 3


@dataclass(frozen=True)
class _Scenario:
    """One job, and who does it."""

    name: str
    run: Callable[[Target, float], Measurement]
    clusters: tuple[str, ...]


def _idle(target: Target, seconds: float) -> Measurement:
    """Nobody is connected; an operation is one second. ``seconds`` is not used: a ping comes once in one."""
    before = cpu_time(*target.pids)
    time.sleep(_IDLE_SECONDS)
    used = cpu_time(*target.pids) - before
    nothing = CpuTime(0.0, 0.0, 0.0)
    return Measurement({}, seconds=_IDLE_SECONDS, operations=_IDLE_SECONDS, server=used, load=nothing)


_SCENARIOS: tuple[_Scenario, ...] = (
    *(
        _Scenario(
            name, partial(fan_out, members=100, in_flight=count, metric=name), (ONE_NODE, TWO_NODES, FLASK)
        )
        for name, count in FAN_OUTS.items()
    ),
    *(
        _Scenario(name, partial(echo, clients=50, in_flight=count, metric=name), (ONE_WORKER, TWO_WORKERS, TWO_ALONE))
        for name, count in ECHOES.items()
    ),
    *(
        _Scenario(name, partial(paced_latency, members=count, rate=_RATE, times=2.0, metric=name), (TWO_NODES,))
        for name, count in LATENCIES.items()
    ),
    _Scenario(IDLE, _idle, (ONE_NODE, TWO_NODES)),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mesh", description=__doc__)
    parser.add_argument("--turns", type=int, default=7, help="of each server at each job")
    parser.add_argument("--seconds", type=float, default=0.7, help="length of one measurement")
    parser.add_argument("--nodes", type=int, default=max(NODES), help="growth is measured up to so many")
    parser.add_argument("--nice", type=int, default=0, help="of servers and load; below 0 needs root")
    parser.add_argument("--save", default="mesh", metavar="NAME", help="name of the files in benchmarks/results")
    parser.add_argument("--render", metavar="NAME", help="only report from results/NAME.json again")
    return parser.parse_args()


def _about(arguments: argparse.Namespace) -> dict[str, str]:
    server, load = cores()
    return {
        "command": " ".join(["python -m benchmarks.mesh", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, Linux {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": f"all servers on {server}, load generator on {load}",
        "measured": f"{arguments.turns} interleaved turns of {arguments.seconds:g} s",
    }


def _start_all(run: MeshRun, stack: ExitStack) -> dict[str, Target]:
    """Start every server that can be; why the others cannot is kept."""
    targets = {}
    for cluster in CLUSTERS:
        reason = cluster.missing()
        if reason is None:
            try:
                targets[cluster.name] = stack.enter_context(cluster.running())
            except ServerFailed as failure:
                reason = " ".join(str(failure).split())
        if reason is not None:
            print(f"skipping {cluster.label}: {reason}", flush=True)
            run.skipped[cluster.name] = reason
    return targets


def _take_turn(run: MeshRun, targets: dict[str, Target], seconds: float, *, backwards: bool) -> None:
    """Every server does each of its jobs once."""
    for scenario in _SCENARIOS:
        clusters = [name for name in scenario.clusters if name in targets]
        for name in reversed(clusters) if backwards else clusters:
            try:
                result = scenario.run(targets[name], seconds)
            except (OSError, OpeningFailed, DeliveryFailed, StillBusy) as error:
                run.failures.append(f"{scenario.name}, {name}: {error}")
                continue
            if result.lost or result.disordered:
                run.failures.append(f"{scenario.name}, {name}: {result.lost} lost, {result.disordered} out of order")
            cell = run.cells[scenario.name, name]
            cell.add(result)
            values = " / ".join(number(value) for value in result.values.values())
            print(f"  {scenario.name:12} {name:12} {cell.cost[-1]:8.2f} us  {values}", flush=True)


def _finish(run: MeshRun, name: str) -> int:
    """Report; 1 if a goal is missed or anything failed."""
    report = markdown(run)
    (_RESULTS / f"{name}.md").write_text(report)
    (_RESULTS / f"{name}.svg").write_text(svg(run))
    print(f"\n{report}\nwritten: benchmarks/results/{name}.md, .svg, .json")
    return 1 if run.failures or any(reached(goal, run) is False for goal in GOALS) else 0


def main() -> int:
    """Run the command."""
    arguments = _arguments()
    if arguments.render:
        return _finish(MeshRun.load(_RESULTS / f"{arguments.render}.json"), arguments.render)
    if not sys.platform.startswith("linux"):
        raise SystemExit("the benchmark needs Linux: epoll, /proc and pinning to cores")
    run = MeshRun(_about(arguments))
    raise_descriptor_limit()
    if arguments.nice:
        prioritise(arguments.nice)
    os.sched_setaffinity(0, {cores()[1]})
    with ExitStack() as stack:
        targets = _start_all(run, stack)
        for turn in range(arguments.turns):
            print(f"turn {turn + 1} of {arguments.turns}", flush=True)
            _take_turn(run, targets, arguments.seconds, backwards=turn % 2 == 1)
    for count in NODES:
        if count <= arguments.nodes:
            print(f"growth: {count} nodes", flush=True)
            run.growth.append(measure(count))
    _RESULTS.mkdir(exist_ok=True)
    run.save(_RESULTS / f"{arguments.save}.json")
    return _finish(run, arguments.save)


if __name__ == "__main__":
    raise SystemExit(main())
