"""The load generator: one thread, one epoll, non-blocking sockets, frames made beforehand.

Each function drives one server once and returns a :class:`Measurement`. Throughput is closed-loop: a fixed
number of messages is in flight and the next goes out when one has fully arrived. A measurement is taken
between two moments of an already running load; then sending stops and everything sent must still arrive.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.clients import Client, Opener, Target, close_clients, open_clients, send_all
from benchmarks.counting import TIMESTAMPS, Counter, DeliveryFailed, await_answer, learn_shape
from benchmarks.frames import SEQUENCES
from benchmarks.process import CpuTime, cpu_time, resident_bytes, settle

__all__ = ["Measurement", "echo", "fan_out", "handshakes", "idle_memory", "paced_latency"]

_WARM_UP = 0.3
_DRAIN = 10.0
_KIB = 1024


@dataclass
class Measurement:
    """What one run against one server gave."""

    values: dict[str, float]
    """The results, by the name of the metric."""
    seconds: float = 0.0
    operations: int = 0
    server: CpuTime | None = None
    load: CpuTime | None = None
    lost: int = 0
    """Deliveries that never came."""
    disordered: int = 0
    """Reads that ended in another delivery than the one due."""
    notes: list[str] = field(default_factory=list)


class _Meter:
    """Takes the counts and CPU times of the middle of a run: after the warm-up, for ``seconds``."""

    def __init__(self, target: Target, seconds: float) -> None:
        self._pids = target.pids
        self.begin = time.perf_counter() + _WARM_UP
        self.end = self.begin + seconds
        self._first: tuple[float, int, CpuTime, CpuTime] | None = None

    def _sample(self, count: int) -> tuple[float, int, CpuTime, CpuTime]:
        return time.perf_counter(), count, cpu_time(*self._pids), cpu_time(os.getpid())

    def running(self, now: float, count: int) -> bool:
        """Call often with the deliveries so far; False once the time is over."""
        if self._first is None and now >= self.begin:
            self._first = self._sample(count)
        return now < self.end

    def result(self, count: int, metric: str) -> Measurement:
        """The measurement up to this moment, as a rate per second."""
        last = self._sample(count)
        assert self._first is not None
        seconds, operations = last[0] - self._first[0], last[1] - self._first[1]
        return Measurement(
            values={metric: operations / seconds},
            seconds=seconds,
            operations=operations,
            server=last[2] - self._first[2],
            load=last[3] - self._first[3],
        )


@contextmanager
def _connected(target: Target, count: int) -> Iterator[list[Client]]:
    """``count`` open sessions; afterwards they are closed and the server has calmed down."""
    clients = open_clients(target, count)
    gc.collect()
    gc.disable()
    try:
        yield clients
    finally:
        gc.enable()
        close_clients(clients)
        settle(*target.pids)


def _messages(target: Target, kind: str, in_flight: int) -> list[bytes]:
    """Finished frames by running number, long enough that a slice of ``in_flight`` never wraps."""
    frames = [target.dialect.message(kind, index) for index in range(SEQUENCES)]
    return frames + frames[:in_flight]


def _poller(clients: list[Client]) -> tuple[select.epoll, dict[int, Client]]:
    epoll = select.epoll()
    for client in clients:
        epoll.register(client.fd, select.EPOLLIN)
    return epoll, {client.fd: client for client in clients}


def _drain(epoll: select.epoll, by_fd: dict[int, Client], counter: Counter, missing: int) -> int:
    """Read on until ``missing`` deliveries have come; how many have not after a while."""
    deadline = time.perf_counter() + _DRAIN
    while missing > 0 and time.perf_counter() < deadline:
        for fd, _ in epoll.poll(0.1):
            missing -= counter.read(by_fd[fd])
    return missing


def _join_all(target: Target, clients: list[Client]) -> None:
    """Enter the room; where the server is several processes, all know of it once they have calmed down."""
    frame = target.dialect.join()
    for client in clients:
        send_all(client, frame)
    for client in clients:
        await_answer(target.dialect, client, "joined")
    if len(target.pids) > 1:
        settle(*target.pids)


def echo(target: Target, seconds: float, *, clients: int, in_flight: int, metric: str) -> Measurement:
    """Each client keeps ``in_flight`` messages on the way; counted are answers per second."""
    frames = _messages(target, "echo", in_flight)
    with _connected(target, clients) as crowd:
        for client in crowd:
            shape = learn_shape(target, [client], client, "echo")
        counter = Counter(target.dialect, "echo", shape)
        read = counter.read
        epoll, by_fd = _poller(crowd)
        received = 0
        for client in crowd:
            send_all(client, b"".join(frames[client.sent : client.sent + in_flight]))
            client.sent += in_flight
        meter = _Meter(target, seconds)
        while meter.running(time.perf_counter(), received):
            for fd, _ in epoll.poll(1.0):
                client = by_fd[fd]
                count = read(client)
                if count:
                    received += count
                    first = client.sent % SEQUENCES
                    send_all(client, frames[first] if count == 1 else b"".join(frames[first : first + count]))
                    client.sent += count
        result = meter.result(received, metric)
        _drain(epoll, by_fd, counter, sum(client.sent - client.received for client in crowd))
        result.lost = sum(abs(client.sent - client.received) for client in crowd)
        result.disordered = counter.disordered
        epoll.close()
    return result


def fan_out(target: Target, seconds: float, *, members: int, in_flight: int, metric: str) -> Measurement:
    """One member publishes to a room of ``members``, itself included; counted are deliveries per second.

    A message is in flight until the last member has it.
    """
    frames = _messages(target, "chat", in_flight)
    with _connected(target, members) as crowd:
        _join_all(target, crowd)
        publisher = crowd[0]
        counter = Counter(target.dialect, "chat", learn_shape(target, crowd, publisher, "chat"))
        read = counter.read
        epoll, by_fd = _poller(crowd)
        received, sent, complete = members, 1, 1
        span = in_flight + 1
        holding = [0] * span  # how many members hold n messages, by n modulo span
        holding[complete % span] = members
        meter = _Meter(target, seconds)
        while meter.running(time.perf_counter(), received):
            free = in_flight - (sent - complete)
            if free > 0:
                first = sent % SEQUENCES
                send_all(publisher, b"".join(frames[first : first + free]))
                sent += free
            for fd, _ in epoll.poll(1.0):
                client = by_fd[fd]
                held = client.received
                count = read(client)
                received += count
                holding[held % span] -= 1
                holding[(held + count) % span] += 1
            while complete < sent and not holding[complete % span]:
                complete += 1
        result = meter.result(received, metric)
        _drain(epoll, by_fd, counter, sent * members - received)
        result.lost = sum(abs(sent - client.received) for client in crowd)
        result.disordered = counter.disordered
        epoll.close()
    return result


def paced_latency(
    target: Target, seconds: float, *, members: int, rate: float, times: float, metric: str
) -> Measurement:
    """One member publishes ``rate`` messages a second, whether or not earlier ones have arrived.

    Latency runs from just before the publisher's ``send`` to the moment the kernel had each member's delivery
    (``SO_TIMESTAMPNS``), so that the time the load generator takes to read them is not counted. It lasts
    ``times`` as long as a rate's measurement, because a p99 needs many messages. What members at other ports than
    the publisher's had is told apart, as ``far``.
    """
    frames = _messages(target, "chat", 1)
    with _connected(target, members) as crowd:
        _join_all(target, crowd)
        publisher = crowd[0]
        counter = Counter(target.dialect, "chat", learn_shape(target, crowd, publisher, "chat"))
        for client in crowd:
            client.sock.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
        epoll, by_fd = _poller(crowd)
        sent_at = [0]
        latencies, far = array("q"), array("q")
        home = publisher.sock.getpeername()
        taken_by = {client.fd: latencies if client.sock.getpeername() == home else far for client in crowd}
        warm = int(rate * _WARM_UP)
        meter = _Meter(target, seconds * times)
        due = time.perf_counter()
        received = members

        def read_ready(timeout: float) -> int:
            done = 0
            for fd, _ in epoll.poll(max(0.0, timeout)):
                client = by_fd[fd]
                before = client.received
                count, stamp = counter.read_stamped(client)
                done += count
                for index in range(before, before + count):
                    if index > warm:
                        taken_by[fd].append(stamp - sent_at[index])
            return done

        while meter.running(now := time.perf_counter(), received):
            if now >= due:
                frame = frames[len(sent_at) % SEQUENCES]
                sent_at.append(time.time_ns())
                send_all(publisher, frame)
                due += 1 / rate
            received += read_ready(due - time.perf_counter())
        result = meter.result(received, metric)
        deadline = time.perf_counter() + _DRAIN
        while received < len(sent_at) * members and time.perf_counter() < deadline:
            received += read_ready(0.1)
        result.lost = sum(abs(len(sent_at) - client.received) for client in crowd)
        result.disordered = counter.disordered
        epoll.close()
    if not latencies:
        raise DeliveryFailed("nothing was delivered in time")
    result.values = _percentiles(metric, latencies)
    if far:
        result.values |= _percentiles(f"{metric}-far", far)
    return result


def _percentiles(metric: str, latencies: array[int]) -> dict[str, float]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(latencies)
    return {
        f"{metric}-p50": ordered[len(ordered) // 2] / 1e6,
        f"{metric}-p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e6,
    }


def handshakes(target: Target, seconds: float, *, at_once: int, metric: str) -> Measurement:
    """Sessions opened per second, ``at_once`` at a time; each is closed politely as soon as it is open."""
    opened = 0

    def on_ready(client: Client) -> None:
        nonlocal opened
        opened += 1
        opener.close_politely(client)
        if meter.end > time.perf_counter():
            opener.start()

    opener = Opener(target, on_ready)
    try:
        meter = _Meter(target, seconds)
        for _ in range(at_once):
            opener.start()
        while meter.running(time.perf_counter(), opened):
            opener.poll(1.0)
        return meter.result(opened, metric)
    finally:
        opener.stop()
        settle(*target.pids)


def idle_memory(target: Target, seconds: float, *, clients: int, metric: str) -> Measurement:
    """KiB of resident memory a connection that is open and quiet, and again after each has had one echo.

    The baseline already holds 50 connections, so that what a first connection loads is not counted.
    ``seconds`` is not used: this takes as long as opening takes.
    """
    with _connected(target, 50):
        settle(*target.pids)
        before = resident_bytes(target.pid)
        with _connected(target, clients) as crowd:
            settle(*target.pids)
            idle = resident_bytes(target.pid)
            for client in crowd:
                learn_shape(target, [client], client, "echo")
            settle(*target.pids)
            used = resident_bytes(target.pid)
    return Measurement(
        values={
            f"{metric}-idle": (idle - before) / clients / _KIB,
            f"{metric}-used": (used - before) / clients / _KIB,
        }
    )
