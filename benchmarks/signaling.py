"""What signaling costs: ``python -m benchmarks.signaling``.

Two measurements, each against a server of its own on one core:

* relay: pairs of clients keep one offer of 4 KiB in flight each way; the offers go through the bridge in one turn
  and through a handler that does nothing but ``toolkit.send`` in the next, many times over. Compared is the
  server's CPU time per delivered offer (``/proc/<pid>/task/*/schedstat``), because that is what other programs on
  the machine disturb least. The goal is a ratio of at most 1.3.
* calls: 1,000 rooms of two clients each enter their calls, exchange an offer, an answer and ten candidates each
  way, and leave, all at once. Every message is counted: none may be lost and none may be an error.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.clients import Client, Target, close_clients, open_clients, send_all
from benchmarks.frames import TEXT, client_frame, walk
from benchmarks.process import cpu_time, settle
from benchmarks.servers import Peer, Server, cores, prioritise, raise_descriptor_limit

SERVER = Peer("signaling", "realtime signaling", "realtime_signaling", ("realtime.signaling",), ())
GOAL = 1.3
SDP = "v=0\r\n" + "a=candidate-padding:0123456789abcdefghijklmnopqrstuvwxyz\r\n" * 71  # 4,052 bytes
_PATIENCE = 60.0  # seconds until what has not come is lost


def _frame(event: str, payload: dict[str, Any], ack: int | None = None) -> bytes:
    message: dict[str, Any] = {"type": event, "payload": payload}
    if ack is not None:
        message["ack"] = ack
    return client_frame(json.dumps(message, separators=(",", ":")).encode())


def _read(client: Client) -> list[dict[str, Any]]:
    """Return the messages that have arrived."""
    client.tail += client.sock.recv(1 << 18)
    messages = []
    used = 0
    for opcode, payload, end in walk(client.tail):
        used = end
        if opcode == TEXT:
            messages.append(json.loads(payload))
    client.tail = client.tail[used:]
    return messages


def _learn_ids(clients: list[Client]) -> list[str]:
    ids = []
    for client in clients:
        send_all(client, _frame("system:hello", {}))
    for client in clients:
        select.select((client.sock,), (), (), _PATIENCE)
        (welcome,) = _read(client)
        ids.append(welcome["payload"]["id"])
    return ids


# Relay ---------------------------------------------------------------------------------------------------------


def relay_cost(target: Target, clients: list[Client], frames: dict[int, bytes], seconds: float) -> float:
    """Each client keeps one offer on the way to its partner; return the server's CPU microseconds per offer."""
    partner = {client.fd: clients[index ^ 1] for index, client in enumerate(clients)}
    by_fd = {client.fd: client for client in clients}
    epoll = select.epoll()
    for client in clients:
        epoll.register(client.fd, select.EPOLLIN)
        send_all(client, frames[client.fd])
    done = 0
    before = cpu_time(target.pid).run
    end = time.perf_counter() + seconds
    in_flight = len(clients)
    try:
        while in_flight:
            sending = time.perf_counter() < end
            for fd, _ in epoll.poll(1.0):
                client = by_fd[fd]
                client.tail += client.sock.recv(1 << 18)
                used = 0
                for _, payload, end_of_frame in walk(client.tail):
                    used = end_of_frame
                    if b":offer" not in payload[:40]:
                        raise SystemExit(f"an offer was refused: {payload[:300]!r}")
                    done += 1
                    in_flight -= 1
                    if sending:
                        source = partner[fd]
                        send_all(source, frames[source.fd])
                        in_flight += 1
                client.tail = client.tail[used:]
    finally:
        epoll.close()
    return (cpu_time(target.pid).run - before) / done * 1e6


def measure_relay(seconds: float, turns: int, pairs: int) -> tuple[list[float], list[float]]:
    """Return the costs of each turn: through the plain handler, and through the bridge."""
    server = Server(SERVER, cores()[0])
    target = server.start()
    costs: dict[str, list[float]] = {"plain": [], "webrtc": []}
    try:
        clients = open_clients(target, 2 * pairs)
        ids = _learn_ids(clients)
        frames: dict[str, dict[int, bytes]] = {}
        for event in costs:
            frames[event] = {
                client.fd: _frame(
                    f"{event}:offer", {"target": ids[index ^ 1], "description": {"type": "offer", "sdp": SDP}}
                )
                for index, client in enumerate(clients)
            }
        for event in costs:  # warm up
            relay_cost(target, clients, frames[event], 0.3)
        for turn in range(turns):
            for event in sorted(costs, reverse=turn % 2 == 1):
                costs[event].append(relay_cost(target, clients, frames[event], seconds))
        close_clients(clients)
        settle(target.pid)
    finally:
        server.stop()
    return costs["plain"], costs["webrtc"]


# Calls ---------------------------------------------------------------------------------------------------------


@dataclass
class _Page:
    """One participant, driven by what it receives, as a page would be."""

    client: Client
    room: str
    seen: Counter[str] = field(default_factory=Counter)

    def enter(self) -> None:
        send_all(self.client, _frame("webrtc:join", {"room": self.room}))

    def take(self, message: dict[str, Any]) -> None:
        """React to one message."""
        event, payload = message["type"], message.get("payload")
        self.seen[event] += 1
        if event == "webrtc:peers" and payload["peers"]:
            self._describe("offer", payload["peers"][0]["id"])
        elif event == "webrtc:offer":
            self._describe("answer", payload["from"])

    def _describe(self, kind: str, target: str) -> None:
        description = {"type": kind, "sdp": SDP}
        payload = {"target": target, "description": description, "negotiation": self.room}
        frames = [_frame(f"webrtc:{kind}", payload)]
        for number in range(10):
            candidate = {"candidate": f"candidate:{number} 1 udp 2122260223 10.0.0.7 54321 typ host", "sdpMid": "0"}
            frames.append(
                _frame("webrtc:candidate", {"target": target, "candidate": candidate, "negotiation": self.room})
            )
        send_all(self.client, b"".join(frames))

    @property
    def done(self) -> bool:
        return self.seen["webrtc:candidate"] == 10


def measure_calls(rooms: int) -> tuple[float, float, Counter[str]]:
    """Return the seconds it took, the server's CPU seconds, and what was received by type."""
    server = Server(SERVER, cores()[0])
    target = server.start()
    try:
        clients = open_clients(target, 2 * rooms)
        pages = {client.fd: _Page(client, f"room-{index // 2}") for index, client in enumerate(clients)}
        epoll = select.epoll()
        for client in clients:
            epoll.register(client.fd, select.EPOLLIN)
        cpu, began = cpu_time(target.pid).run, time.perf_counter()
        for page in pages.values():
            page.enter()
        waiting = set(pages)
        while waiting and time.perf_counter() < began + _PATIENCE:
            for fd, _ in epoll.poll(1.0):
                page = pages[fd]
                for message in _read(page.client):
                    page.take(message)
                if page.done:
                    waiting.discard(fd)
        took, cpu = time.perf_counter() - began, cpu_time(target.pid).run - cpu
        seen: Counter[str] = sum((page.seen for page in pages.values()), Counter())
        epoll.close()
        close_clients(clients)
        settle(target.pid)
        return took, cpu, seen
    finally:
        server.stop()


def main() -> int:
    """Run both; 1 if a goal is missed or a message lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.signaling", description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one turn")
    parser.add_argument("--turns", type=int, default=9, help="turns of each")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of clients that exchange offers")
    parser.add_argument("--rooms", type=int, default=1000, help="calls of two")
    parser.add_argument("--nice", type=int, default=0, help="of server and load; below 0 needs root")
    arguments = parser.parse_args()
    raise_descriptor_limit()
    if arguments.nice:
        prioritise(arguments.nice)
    os.sched_setaffinity(0, {cores()[1]})
    plain, bridge = measure_relay(arguments.seconds, arguments.turns, arguments.pairs)
    ratio = statistics.median(b / p for b, p in zip(bridge, plain, strict=True))
    print(f"an offer of {len(SDP)} bytes, CPU of the server, median of {len(plain)} turns:")
    print(f"  toolkit.send      {statistics.median(plain):6.1f} us")
    print(f"  signaling bridge  {statistics.median(bridge):6.1f} us")
    print(f"  ratio             {ratio:6.2f}  (goal: at most {GOAL})")
    took, cpu, seen = measure_calls(arguments.rooms)
    rooms = arguments.rooms
    expected = {
        "webrtc:peers": 2 * rooms,
        "webrtc:peer-joined": rooms,
        "webrtc:offer": rooms,
        "webrtc:answer": rooms,
        "webrtc:candidate": 20 * rooms,
    }
    whole = dict(seen) == expected
    print(f"{rooms} calls of two, 10 candidates each way: {took:.2f} s, {cpu:.2f} s of the server's CPU")
    verdict = "none lost, no error" if whole else f"{dict(seen)}; expected {expected}"
    print(f"  {sum(seen.values())} messages, {verdict}")
    return 0 if whole and ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
