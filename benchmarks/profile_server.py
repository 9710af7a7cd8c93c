"""Where a server's microseconds go: ``python -m benchmarks.profile_server room-100-16``.

The scenario runs twice against one fresh server: first alone, for the CPU time of one operation (an echo, a
delivery, a handshake), split into Python and kernel; then with py-spy looking at the server's stack hundreds
of times a second. Each function, line and file gets its share of the first run's time. A line that calls
into C (a ``send``, a decoder) is charged with the call, the kernel's part included.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from benchmarks.clients import Target
from benchmarks.load import Measurement
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.servers import PEERS, Server, cores, raise_descriptor_limit

_OPENING = 1.0
"""Seconds left for opening connections before samples are taken."""
_FRAME = re.compile(r"(?P<function>.+) \((?P<file>.+?)(?::(?P<line>\d+))?\)$")


def _py_spy() -> str:
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise SystemExit("py-spy is missing: pip install -r benchmarks/requirements.txt")
    return found


Stacks = list[tuple[list[str], int]]
"""Each stack seen, its frames from the outside in, and how often."""


def _sampled(scenario: Scenario, target: Target, seconds: float, rate: int, native: bool) -> Stacks:
    """Run the scenario and, once it is under way, py-spy on the server's main thread."""
    runner = threading.Thread(target=scenario.run, args=(target, seconds + _OPENING))
    runner.start()
    runner.join(_OPENING)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "stacks"
        command = [_py_spy(), "record", "--pid", str(target.pid), "--rate", str(rate), "--format", "raw"]
        command += ["--duration", str(int(seconds)), "--output", str(output), "--threads"]
        command += ["--native"] if native else []
        done = subprocess.run(command, capture_output=True, text=True)
        runner.join()
        if done.returncode:
            raise SystemExit(f"py-spy failed (it needs root or ptrace rights): {done.stderr[-500:]}")
        lines = [line.rpartition(" ") for line in output.read_text().splitlines()]
    stacks = [(stack.split(";"), int(count)) for stack, _, count in lines]
    return [(frames[1:], count) for frames, count in stacks if "MainThread" in frames[0] and frames[1:]]


def _shorten(frame: str) -> str:
    """The path from the package on, whatever machine it was."""
    for mark in ("site-packages/", f"{Path(__file__).parent.parent}/", "lib/python3"):
        head, found, tail = frame.rpartition(mark)
        if found:
            return f"{head[: head.find('(') + 1]}{tail}"
    return frame


def _print_shares(title: str, shares: Counter[str], samples: int, cost: float, top: int) -> None:
    print(f"\n{title}\n{'µs':>8}  {'share':>6}")
    for name, count in shares.most_common(top):
        print(f"{count / samples * cost:8.3f}  {count / samples:6.1%}  {name}")


def _parts(frame: str) -> tuple[str, str]:
    """``(function (file), file)`` of a frame."""
    found = _FRAME.match(frame)
    return (f"{found['function']} ({found['file']})", found["file"]) if found else (frame, frame)


def _print_profile(stacks: Stacks, cost: float, top: int) -> None:
    lines: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    files: Counter[str] = Counter()
    within: Counter[str] = Counter()
    samples = 0
    for stack, count in stacks:
        frames = [_shorten(frame) for frame in stack]
        samples += count
        lines[frames[-1]] += count
        function, file = _parts(frames[-1])
        functions[function] += count
        files[file] += count
        for name in {_parts(frame)[0] for frame in frames}:
            within[name] += count
    if not samples:
        raise SystemExit("py-spy saw nothing: is the server idle in this scenario?")
    print(f"\n{samples} samples")
    _print_shares("Files (own time)", files, samples, cost, 15)
    _print_shares("Functions (own time)", functions, samples, cost, top)
    _print_shares("Functions (with what they call)", within, samples, cost, top)
    _print_shares("Lines (own time)", lines, samples, cost, top)


def _print_cost(scenario: Scenario, result: Measurement) -> float:
    """CPU time of one operation in microseconds, printed and returned."""
    assert result.server is not None
    assert result.load is not None
    cost = result.server.run / result.operations * 1e6
    kernel = result.server.kernel / result.server.run
    print(f"{scenario.name}: {result.operations:,} operations in {result.seconds:.1f} s")
    own = cost * (1 - kernel)
    print(f"server: {cost:.2f} µs of CPU each, {own:.2f} in Python and C, {cost - own:.2f} in the kernel")
    server, load = result.server.run / result.seconds, result.load.run / result.seconds
    print(f"server busy {server:.0%}, load {load:.0%}")
    return cost


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_server", description=__doc__)
    scenarios = [scenario.name for scenario in SCENARIOS if not scenario.fresh]
    servers = [peer.name for peer in PEERS if peer.name != "ws"]
    parser.add_argument("scenario", nargs="?", default="room-100-16", choices=scenarios)
    parser.add_argument("--server", default="realtime", choices=servers)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rate", type=int, default=400, help="samples a second")
    parser.add_argument("--native", action="store_true", help="look into C as well (slower)")
    parser.add_argument("--top", type=int, default=25, help="rows of each table")
    arguments = parser.parse_args()
    _py_spy()
    scenario = next(s for s in SCENARIOS if s.name == arguments.scenario)
    server_core, load_core = cores()
    raise_descriptor_limit()
    os.sched_setaffinity(0, {load_core})
    server = Server(next(peer for peer in PEERS if peer.name == arguments.server), server_core)
    target = server.start()
    try:
        cost = _print_cost(scenario, scenario.run(target, arguments.seconds))
        stacks = _sampled(scenario, target, arguments.seconds, arguments.rate, arguments.native)
        _print_profile(stacks, cost, arguments.top)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
