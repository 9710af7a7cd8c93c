"""What it costs that nothing is lost: ``python -m benchmarks.recovery``.

* fan-out: one of 100 members publishes to a room that keeps its messages and stamps each with a cursor in one turn,
  and to a plain room with the same members in the next. Compared are deliveries a second of the server's CPU time.
* a thundering herd: 1,000 clients connect in the same moment, begin a session and join a room. They lose their
  connections, ten messages come, and in the same moment they are back: with their tokens after a reset, with their
  tokens while the server still believes that the old connections live, or without sessions by their cursors.
  Compared is the 99th percentile of the time from a client's connect until it has all. Every client is checked to
  have resumed, or recovered, and to have got what it missed once and in order.
* memory: what 1,000 rooms with 100 kept messages of 200 bytes each take, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.clients import Client, Target, close_clients, open_clients, send_all
from benchmarks.frames import client_frame, walk
from benchmarks.herd import Back, Visitor, arrive, cut, p99, publish, subscribe
from benchmarks.process import cpu_time, settle
from benchmarks.report import number, table
from benchmarks.servers import Peer, Server, cores, prioritise, raise_descriptor_limit

SERVER = Peer("recovery", "realtime", "realtime_recovery", ("realtime.kernel",), ())
ROOMS = ("plain:room", "kept:room")
FAN_OUT_GOAL = 0.8
HERD_GOAL = 4.0
MEMORY_GOAL = 60.0
"""MB (1,000,000 bytes)."""

_RESULTS = Path(__file__).parent / "results"
_MARK = b'"type":"chat"'
_PATIENCE = 20.0
_NUMBERS = 1000  # then they begin again


@dataclass(frozen=True)
class Goal:
    """What was wanted, and what came of it."""

    text: str
    wanted: str
    measured: str
    reached: bool


# Fan-out -------------------------------------------------------------------------------------------------------


class _Room:
    """The members of a room, and how many of its messages each has."""

    def __init__(self, clients: list[Client], room: str, in_flight: int) -> None:
        self._clients = clients
        self._message = {"type": "chat", "room": room}
        self._epoll = select.epoll()
        self._by_fd = {client.fd: client for client in clients}
        self._checked = clients[-1]  # whose messages are read in full
        self._seen = self._numbers = 0
        self._buffer = bytearray(1 << 18)
        self.complete = 0
        """How many messages everybody has."""
        self._span = in_flight + 1
        self._holding = [0] * self._span  # how many members hold n messages, by n modulo span
        self._holding[0] = len(clients)
        self._frames = [self._frame(number) for number in range(_NUMBERS)]
        for client in clients:
            client.tail, client.received = b"", 0
            self._epoll.register(client.fd, select.EPOLLIN)

    def _frame(self, number: int) -> bytes:
        payload = {"number": number, "text": "a sentence of sixty characters, as the other benchmarks have it"}
        return client_frame(json.dumps({**self._message, "payload": payload}).encode())

    def publish(self, count: int) -> None:
        """Send so many more."""
        first = self._numbers
        send_all(self._clients[0], b"".join(self._frames[(first + n) % _NUMBERS] for n in range(count)))
        self._numbers += count

    def read(self) -> int:
        """Take what has come; return how many deliveries."""
        deliveries = 0
        buffer, holding, span = self._buffer, self._holding, self._span
        for fd, _ in self._epoll.poll(1.0):
            client = self._by_fd[fd]
            size = client.recv_into(buffer)
            data = client.tail + buffer[:size]
            if client is self._checked:
                count, client.tail = self._check(data)
            else:
                count, client.tail = data.count(_MARK), data[1 - len(_MARK) :]
            held = client.received
            client.received += count
            holding[held % span] -= 1
            holding[client.received % span] += 1
            deliveries += count
        while self.complete < self._numbers and not holding[self.complete % span]:
            self.complete += 1
        return deliveries

    def _check(self, data: bytes) -> tuple[int, bytes]:
        used = count = 0
        for _, payload, end in walk(data):
            used = end
            if json.loads(payload)["payload"]["number"] != self._seen % _NUMBERS:
                raise SystemExit(f"not the message {self._seen}: {payload[:200]!r}")
            self._seen += 1
            count += 1
        return count, data[used:]

    def close(self) -> None:
        """Read no more."""
        self._epoll.close()


def fan_out(target: Target, clients: list[Client], room: str, seconds: float, in_flight: int) -> tuple[float, float]:
    """Return deliveries a second, and a second of the server's CPU time. Raises SystemExit if one is lost."""
    members = _Room(clients, room, in_flight)
    sent = received = 0
    try:
        cpu, began = cpu_time(target.pid).run, time.perf_counter()
        while time.perf_counter() < began + seconds or received < sent * len(clients):
            if time.perf_counter() < began + seconds:
                count = in_flight - (sent - members.complete)
                if count:
                    members.publish(count)
                    sent += count
            elif time.perf_counter() > began + seconds + _PATIENCE:
                raise SystemExit(f"{sent * len(clients) - received} deliveries lost")
            received += members.read()
        took = time.perf_counter() - began
        return received / took, received / (cpu_time(target.pid).run - cpu)
    finally:
        members.close()


def _join(clients: list[Client]) -> None:
    for client in clients:
        for room in ROOMS:
            join = {"type": "system:join", "room": room, "ack": room}
            send_all(client, client_frame(json.dumps(join).encode()))
    for client in clients:
        data = b""
        while data.count(b'"system:ack"') < len(ROOMS):
            select.select((client.sock,), (), (), _PATIENCE)
            data += client.sock.recv(1 << 16)


def measure_fan_out(seconds: float, turns: int, members: int, in_flight: int) -> dict[str, list[tuple[float, float]]]:
    """Return the turns of each room."""
    measured: dict[str, list[tuple[float, float]]] = {room: [] for room in ROOMS}
    server = Server(SERVER, cores()[0])
    target = server.start()
    try:
        clients = open_clients(target, members)
        _join(clients)
        for turn in range(turns + 1):
            for room in sorted(ROOMS, reverse=turn % 2 == 1):
                done = fan_out(target, clients, room, seconds, in_flight)
                if turn:  # the first warms up
                    measured[room].append(done)
        close_clients(clients)
    finally:
        server.stop()
    return measured


# Herd ----------------------------------------------------------------------------------------------------------


def measure_herd(turns: int, count: int) -> dict[Back | None, list[float]]:
    """Return the 99th percentiles of each turn, in milliseconds; None: the first connects."""
    measured: dict[Back | None, list[float]] = defaultdict(list)
    ways = list(Back)
    for turn in range(turns + 1):
        with ExitStack() as stack:
            server = Server(SERVER, cores()[0])
            stack.callback(server.stop)
            target = server.start()
            publisher = stack.enter_context(subscribe(target))
            for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
                visitors = [Visitor() for _ in range(count)]
                first = arrive(target, visitors, None)
                settle(target.pid)
                cut(visitors, way)
                publish(publisher)
                again = arrive(target, visitors, way)
                settle(target.pid)
                cut(visitors, Back.RESET)
                settle(target.pid)
                if turn:  # the first warms up
                    measured[None].append(p99(first))
                    measured[way].append(p99(again))
    return measured


# Memory --------------------------------------------------------------------------------------------------------


def measure_memory(rooms: int, messages: int, size: int) -> float:
    """Return what is taken, in MB."""
    command = [sys.executable, "-m", "benchmarks.kept_history", str(rooms), str(messages), str(size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1e6


# All -----------------------------------------------------------------------------------------------------------


def _fan_out_goals(arguments: argparse.Namespace) -> Iterable[Goal]:
    plain, kept = ROOMS
    for members, in_flight in ((100, 16), (1000, 4)):
        turns = measure_fan_out(arguments.seconds, arguments.turns, members, in_flight)
        ratios = [k[1] / p[1] for k, p in zip(turns[kept], turns[plain], strict=True)]
        ratio = statistics.median(ratios)
        rates = " : ".join(number(statistics.median(one[1] for one in turns[room])) for room in (kept, plain))
        seconds = " : ".join(number(statistics.median(one[0] for one in turns[room])) for room in (kept, plain))
        yield Goal(
            f"fan-out to {members}, {in_flight} in flight: deliveries a CPU second, recoverable to plain",
            f"at least {FAN_OUT_GOAL} times",
            f"{ratio:.2f} ({min(ratios):.2f}..{max(ratios):.2f}); {rates} ({seconds} a second)",
            ratio >= FAN_OUT_GOAL,
        )


def _herd_goals(arguments: argparse.Namespace) -> Iterable[Goal]:
    measured = measure_herd(arguments.herds, arguments.clients)
    first = statistics.median(measured[None])
    for way in Back:
        again = statistics.median(measured[way])
        yield Goal(
            f"{arguments.clients:,} come back at once, {way.value}: p99 to that of as many first connects",
            f"at most {HERD_GOAL:g} times",
            f"{again / first:.2f}; {again:,.0f} : {first:,.0f} ms",
            again / first <= HERD_GOAL,
        )


def _memory_goal() -> Goal:
    taken = measure_memory(1000, 100, 200)
    return Goal(
        "1,000 rooms with 100 kept messages of 200 bytes: resident memory",
        f"at most {MEMORY_GOAL:g} MB",
        f"{taken:.1f} MB",
        taken <= MEMORY_GOAL,
    )


def _report(goals: list[Goal], arguments: argparse.Namespace) -> str:
    server, load = cores()
    about = {
        "command": " ".join(["python -m benchmarks.recovery", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "cores": f"server on {server}, load generator on {load}",
        "measured": f"{arguments.turns} interleaved turns of {arguments.seconds:g} s, {arguments.herds} of each herd",
    }
    rows = [[goal.text, goal.wanted, goal.measured, "yes" if goal.reached else "no"] for goal in goals]
    lines = ["# What it costs that nothing is lost", "\n".join(f"- {name}: {text}" for name, text in about.items())]
    lines.append(table(["goal", "wanted", "measured", "reached"], rows, 3))
    return "\n\n".join(lines) + "\n"


def main() -> int:
    """Measure all; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each room")
    parser.add_argument("--herds", type=int, default=3, help="of each kind")
    parser.add_argument("--clients", type=int, default=1000, help="in a herd")
    parser.add_argument("--nice", type=int, default=0, help="of server and load; below 0 needs root")
    parser.add_argument("--save", help="write the table to results/ under this name")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    if arguments.nice:
        prioritise(arguments.nice)
    memory = _memory_goal()
    os.sched_setaffinity(0, {cores()[1]})
    report = _report([*_fan_out_goals(arguments), *_herd_goals(arguments), memory], arguments)
    print(report)
    if arguments.save:
        (_RESULTS / f"{arguments.save}.md").write_text(report)
    return 1 if "| no" in report else 0


if __name__ == "__main__":
    sys.exit(main())
