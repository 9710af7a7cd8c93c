"""Round trips per second of ``realtime.Client``, beside python-socketio's synchronous client and its own server.

    python -m benchmarks.client

Both clients stay connected, in plain threads of this process; they take turns at calling their servers, one call at
a time, and the ratio of each pair of turns is what counts. python-socketio speaks through its websocket transport
from the start. Exit code 1 if the goal is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.servers import Peer, Server, cores, prioritise
from realtime import Client

GOAL = 1.0
PAYLOADS = {"64 bytes": "x" * 64, "16 KiB": "x" * 16384}
OURS = Peer("client", "realtime.Client", "realtime_calls", ("simple_websocket",), ("realtime-toolkit",))
THEIRS = Peer(
    "socketio",
    "socketio.Client",
    "socketio_calls",
    ("socketio", "websocket", "werkzeug", "simple_websocket"),
    ("python-socketio", "websocket-client", "Werkzeug", "simple-websocket"),
)

Call = Callable[[str, Any], Any]


def round_trips(call: Call, payload: Any, seconds: float) -> float:
    """Call for so long, one after the other; return how many a second."""
    began = time.perf_counter()
    count = 0
    while (now := time.perf_counter()) < began + seconds:
        if call("echo", payload) != payload:
            raise SystemExit("a wrong answer")
        count += 1
    return count / (now - began)


def measure(calls: dict[str, Call], payload: Any, seconds: float, turns: int) -> dict[str, list[float]]:
    """Let the clients take turns; the one that begins changes with each."""
    rates: dict[str, list[float]] = {label: [] for label in calls}
    for label in calls:  # warm up
        round_trips(calls[label], payload, seconds / 2)
    for turn in range(turns):
        for label in sorted(calls, reverse=turn % 2 == 1):
            rates[label].append(round_trips(calls[label], payload, seconds))
    return rates


def main() -> int:
    """Run it; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each")
    parser.add_argument("--nice", type=int, default=0, help="of servers and clients; below 0 needs root")
    arguments = parser.parse_args()
    missing = THEIRS.missing()
    if missing:
        raise SystemExit(f"{missing}: pip install -r benchmarks/requirements.txt")
    import socketio  # type: ignore[import-untyped]

    if arguments.nice:
        prioritise(arguments.nice)
    os.sched_setaffinity(0, {cores()[1]})
    servers = [Server(OURS, cores()[0]), Server(THEIRS, cores()[0])]
    theirs = socketio.Client(reconnection=False)
    reached = True
    try:
        ports = [server.start().port for server in servers]
        theirs.connect(f"http://127.0.0.1:{ports[1]}", transports=["websocket"])
        with Client(f"ws://127.0.0.1:{ports[0]}/realtime") as ours:
            for name, payload in PAYLOADS.items():
                rates = measure(
                    {OURS.label: ours.call, THEIRS.label: theirs.call}, payload, arguments.seconds, arguments.turns
                )
                pairs = zip(rates[OURS.label], rates[THEIRS.label], strict=True)
                ratio = statistics.median(our / their for our, their in pairs)
                reached = reached and ratio >= GOAL
                print(f"round trips a second, {name}, median of {arguments.turns} turns:")
                for peer in (OURS, THEIRS):
                    print(f"  {peer.label:<16} {statistics.median(rates[peer.label]):8,.0f}   {peer.version()}")
                print(f"  ratio            {ratio:8.2f}   (goal: at least {GOAL:g})")
        theirs.disconnect()
    finally:
        for server in servers:
            server.stop()
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
