"""What is measured: the list of scenarios, their metrics, and the ratios the project wants to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from benchmarks import load
from benchmarks.clients import Target
from benchmarks.load import Measurement

__all__ = ["GOALS", "METRICS", "SCENARIOS", "Goal", "Metric", "Scenario"]


@dataclass(frozen=True)
class Metric:
    """One number a scenario gives: a row of the table."""

    name: str
    title: str
    unit: str
    lower_is_better: bool = False
    charted: bool = False


@dataclass(frozen=True)
class Scenario:
    """One way to load a server."""

    name: str
    run: Callable[[Target, float], Measurement]
    metrics: tuple[Metric, ...]
    quick: bool
    """Part of ``--quick``."""
    fresh: bool = False
    """Needs a server that has done nothing yet."""


@dataclass(frozen=True)
class Goal:
    """At least ``ratio`` times as good as ``peer`` in ``metric``; or, without a peer, at most ``ratio``."""

    metric: str
    peer: str | None
    ratio: float


def _echo(in_flight: int) -> Scenario:
    name = f"echo-{in_flight}"
    metric = Metric(name, f"echo, 50 clients, {in_flight} in flight each", "echoes/s", charted=True)
    return Scenario(name, partial(load.echo, clients=50, in_flight=in_flight, metric=name), (metric,), True)


def _room(members: int, in_flight: int) -> Scenario:
    name = f"room-{members}-{in_flight}"
    charted = (members, in_flight) in {(10, 1), (100, 16), (1000, 4)}
    metric = Metric(name, f"room of {members}, {in_flight} in flight", "deliveries/s", charted=charted)
    run = partial(load.fan_out, members=members, in_flight=in_flight, metric=name)
    return Scenario(name, run, (metric,), charted)


def _latency() -> Scenario:
    metrics = tuple(
        Metric(
            f"latency-p{percent}",
            f"delivery latency p{percent}, 200 messages/s, room of 100",
            "ms",
            lower_is_better=True,
            charted=percent == 99,
        )
        for percent in (50, 99)
    )
    run = partial(load.paced_latency, members=100, rate=200.0, times=2.0, metric="latency")
    return Scenario("latency", run, metrics, True)


def _handshakes() -> Scenario:
    metric = Metric("handshakes", "handshakes, 50 at a time", "sessions/s", charted=True)
    return Scenario("handshakes", partial(load.handshakes, at_once=50, metric="handshakes"), (metric,), True)


def _memory() -> Scenario:
    metrics = (
        Metric("memory-idle", "memory an idle connection, 4,000 open", "KiB", True, charted=True),
        Metric("memory-used", "the same after one echo each", "KiB", True),
    )
    return Scenario("memory", partial(load.idle_memory, clients=4000, metric="memory"), metrics, True, True)


SCENARIOS: tuple[Scenario, ...] = (
    *(_echo(in_flight) for in_flight in (1, 16)),
    *(_room(members, in_flight) for members in (10, 100, 1000) for in_flight in (1, 4, 16)),
    _latency(),
    _handshakes(),
    _memory(),
)

METRICS: tuple[Metric, ...] = tuple(metric for scenario in SCENARIOS for metric in scenario.metrics)

GOALS: tuple[Goal, ...] = (
    Goal("room-100-16", "flask-socketio", 8),
    Goal("room-100-16", "gevent-websocket", 5),
    Goal("room-1000-4", "flask-socketio", 5),
    Goal("room-1000-4", "gevent-websocket", 4),
    Goal("echo-1", "flask-socketio", 8),
    Goal("echo-1", "gevent-websocket", 2),
    Goal("latency-p99", "gevent-websocket", 1),
    Goal("memory-idle", None, 14),
)
