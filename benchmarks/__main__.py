"""``python -m benchmarks``: run every server through every scenario, side by side, and report."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.chart import svg
from benchmarks.clients import Target
from benchmarks.counting import DeliveryFailed
from benchmarks.dialects import OpeningFailed
from benchmarks.process import StillBusy
from benchmarks.report import markdown, number
from benchmarks.results import Run
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import PEERS, Peer, Server, ServerFailed, cores, prioritise, raise_descriptor_limit

_RESULTS = Path(__file__).parent / "results"


def _arguments() -> argparse.Namespace:
    names = f"scenarios: {' '.join(s.name for s in SCENARIOS)}; servers: {' '.join(p.name for p in PEERS)}"
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=names)
    parser.add_argument("--quick", action="store_true", help="the main scenarios, one short round")
    only = "these scenarios and servers, and no others"
    parser.add_argument("--only", action="append", default=[], metavar="NAME,NAME", help=only)
    parser.add_argument("--rounds", type=int, help="how often each pair is measured (3; with --quick 1)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (2; with --quick 0.7)")
    parser.add_argument("--nice", type=int, default=0, help="of servers and load; below 0 needs root")
    parser.add_argument("--save", metavar="NAME", help="name of the files in benchmarks/results")
    parser.add_argument("--render", metavar="NAME", help="only report from results/NAME.json again")
    return parser.parse_args()


def _selected(arguments: argparse.Namespace) -> tuple[list[Scenario], list[Peer]]:
    """What ``--only`` and ``--quick`` leave. A name may be a scenario's beginning: ``room-100``."""
    wanted = [name for group in arguments.only for name in group.split(",") if name]
    scenarios = [s for s in SCENARIOS if any(f"{s.name}-".startswith(f"{name}-") for name in wanted)]
    peers = [peer for peer in PEERS if peer.name in wanted]
    known = {s.name for s in scenarios} | {p.name for p in peers}
    unknown = [name for name in wanted if not any(f"{k}-".startswith(f"{name}-") for k in known)]
    if unknown:
        raise SystemExit(f"no such scenario or server: {', '.join(unknown)}; see --help")
    if not scenarios:
        scenarios = [s for s in SCENARIOS if s.quick or not arguments.quick]
    if not peers:
        peers = [p for p in PEERS if p.default and not (arguments.quick and p.name == "ceiling")]
    return scenarios, peers


def _processor() -> str:
    with open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _about(peers: list[Peer], rounds: int, seconds: float) -> dict[str, str]:
    server, load = cores()
    return {
        "command": " ".join(["python -m benchmarks", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{_processor()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": f"servers on {server}, load generator on {load}{' (the same!)' * (server == load)}",
        "measured": f"{rounds} interleaved rounds of {seconds:g} s",
        **{peer.label: version for peer in peers if (version := peer.version())},
    }


def _measure(run: Run, scenario: Scenario, peer: Peer, target: Target, seconds: float) -> str:
    """One measurement; what to print of it."""
    try:
        measurement = scenario.run(target, seconds)
    except (OSError, OpeningFailed, DeliveryFailed, StillBusy) as error:
        run.failures.append(f"{scenario.name}, {peer.label}: {error}")
        return "failed"
    if measurement.lost:
        run.failures.append(f"{scenario.name}, {peer.label}: {measurement.lost} deliveries lost or repeated")
    run.cells[scenario.name, peer.name].add(measurement)
    return " / ".join(number(value) for value in measurement.values.values())


def _start_all(run: Run, peers: list[Peer]) -> dict[str, tuple[Server, Target]]:
    """Start every server; one that does not start is left out of the run, with what it said."""
    servers: dict[str, tuple[Server, Target]] = {}
    for peer in list(peers):
        server = Server(peer, cores()[0])
        try:
            servers[peer.name] = (server, server.start())
        except ServerFailed as failure:
            print(f"skipping {failure}", flush=True)
            run.skipped[peer.name] = str(failure).strip().splitlines()[-1]
            peers.remove(peer)
            run.peers.remove(peer.name)
    return servers


def _round(run: Run, scenarios: list[Scenario], peers: list[Peer], seconds: float) -> None:
    """Take every server through every scenario, taking turns. The others are up meanwhile, and idle."""
    servers = _start_all(run, peers)
    try:
        for scenario in scenarios:
            for peer in peers:
                if scenario.fresh:
                    servers[peer.name][0].stop()
                    server = Server(peer, cores()[0])
                    servers[peer.name] = (server, server.start())
                result = _measure(run, scenario, peer, servers[peer.name][1], seconds)
                print(f"  {scenario.name:14} {peer.label:26} {result}", flush=True)
    finally:
        for server, _ in servers.values():
            server.stop()


def _finish(run: Run, name: str) -> None:
    _RESULTS.mkdir(exist_ok=True)
    report = markdown(run)
    (_RESULTS / f"{name}.md").write_text(report)
    (_RESULTS / f"{name}.svg").write_text(svg(run))
    print(f"\n{report}\nwritten: benchmarks/results/{name}.md, .svg, .json")


def main() -> int:
    """Run the command; 1 if any measurement failed or lost a delivery."""
    arguments = _arguments()
    if arguments.render:
        run = Run.load(_RESULTS / f"{arguments.render}.json")
        _finish(run, arguments.render)
        return 0
    if not sys.platform.startswith("linux"):
        raise SystemExit("the benchmark needs Linux: epoll, /proc and pinning to cores")
    scenarios, wanted = _selected(arguments)
    skipped = {peer.name: reason for peer in wanted if (reason := peer.missing())}
    peers = [peer for peer in wanted if peer.name not in skipped]
    labels = {peer.name: peer.label for peer in wanted}
    for name, reason in skipped.items():
        print(f"skipping {labels[name]}: {reason}")
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    seconds = arguments.seconds or (0.7 if arguments.quick else 2.0)
    about = _about(peers, rounds, seconds)
    raise_descriptor_limit()
    if arguments.nice:
        prioritise(arguments.nice)
    os.sched_setaffinity(0, {cores()[1]})
    run = Run(about, [peer.name for peer in peers], labels, [s.name for s in scenarios], skipped=skipped)
    for index in range(rounds):
        print(f"round {index + 1} of {rounds}", flush=True)
        _round(run, scenarios, peers, seconds)
    name = arguments.save or ("partial" if arguments.only else "quick" if arguments.quick else "latest")
    _RESULTS.mkdir(exist_ok=True)
    run.save(_RESULTS / f"{name}.json")
    _finish(run, name)
    return 1 if run.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
