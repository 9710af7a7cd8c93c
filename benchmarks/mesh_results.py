"""What ``python -m benchmarks.mesh`` measured, and the goals it is held to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.clusters import FLASK, ONE_NODE, ONE_WORKER, TWO_NODES, TWO_WORKERS
from benchmarks.mesh_growth import Growth
from benchmarks.results import Cell, Summary

__all__ = ["ECHOES", "FAN_OUTS", "GOALS", "IDLE", "LATENCIES", "Goal", "MeshRun"]

FAN_OUTS = {"fan-out-16": 16, "fan-out-1": 1}
"""By name: messages in flight."""
ECHOES = {"echo-16": 16, "echo-1": 1}
LATENCIES = {"latency-100": 100, "latency-2": 2}
"""By name: members of the room."""
IDLE = "idle"


@dataclass
class MeshRun:
    """Everything of one run."""

    about: dict[str, str]
    cells: defaultdict[tuple[str, str], Cell] = field(default_factory=lambda: defaultdict(Cell))
    """By scenario and cluster: what every turn gave."""
    growth: list[Growth] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def cost(self, scenario: str, cluster: str) -> Summary | None:
        """Microseconds of CPU per operation."""
        costs = self.cells[scenario, cluster].cost
        return Summary.of(costs) if costs else None

    def ratio(self, scenario: str, cluster: str, other: str) -> Summary | None:
        """How many times the other's cost, turn by turn."""
        mine, theirs = self.cells[scenario, cluster].cost, self.cells[scenario, other].cost
        ratios = [a / b for a, b in zip(mine, theirs, strict=False)]
        return Summary.of(ratios) if ratios else None

    def latency(self, scenario: str, value: str) -> Summary | None:
        """Milliseconds: ``p50``, ``p99``, and ``far-p50``, ``far-p99`` on the other node."""
        values = self.cells[scenario, TWO_NODES].values.get(f"{scenario}-{value}")
        return Summary.of(values) if values else None

    def added(self, scenario: str) -> Summary | None:
        """Milliseconds that the way to the other node adds to the median."""
        values = self.cells[scenario, TWO_NODES].values
        near, far = values.get(f"{scenario}-p50", []), values.get(f"{scenario}-far-p50", [])
        added = [b - a for a, b in zip(near, far, strict=False)]
        return Summary.of(added) if added else None

    def save(self, path: Path) -> None:
        """Keep every turn's numbers."""
        content: dict[str, Any] = {
            **vars(self),
            "cells": {f"{scenario}/{cluster}": vars(cell) for (scenario, cluster), cell in self.cells.items()},
            "growth": [asdict(growth) for growth in self.growth],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> MeshRun:
        """Read back what ``save`` wrote."""
        content = json.loads(path.read_text())
        cells, growth = content.pop("cells"), content.pop("growth")
        run = cls(growth=[Growth(**numbers) for numbers in growth], **content)
        for key, numbers in cells.items():
            scenario, cluster = key.split("/")
            values = numbers.pop("values")
            run.cells[scenario, cluster] = Cell(**numbers)
            run.cells[scenario, cluster].values.update(values)
        return run


@dataclass(frozen=True)
class Goal:
    """What a run is held to."""

    text: str
    most: float
    unit: str
    measured: Callable[[MeshRun], Summary | None]


def _ratio(scenario: str, cluster: str, other: str) -> Callable[[MeshRun], Summary | None]:
    return lambda run: run.ratio(scenario, cluster, other)


def _added(scenario: str) -> Callable[[MeshRun], Summary | None]:
    return lambda run: run.added(scenario)


GOALS: tuple[Goal, ...] = (
    *(
        Goal(f"fan-out, {count} in flight: two nodes to one", 1.5, "times", _ratio(name, TWO_NODES, ONE_NODE))
        for name, count in FAN_OUTS.items()
    ),
    *(
        Goal(f"fan-out, {count} in flight: two nodes to Flask-SocketIO", 0.2, "times", _ratio(name, TWO_NODES, FLASK))
        for name, count in FAN_OUTS.items()
    ),
    *(
        Goal(f"echo, {count} in flight: two workers to one", 1.15, "times", _ratio(name, TWO_WORKERS, ONE_WORKER))
        for name, count in ECHOES.items()
    ),
    *(
        Goal(f"p50 on the other node, room of {count}: more than on the publisher's", 1.0, "ms", _added(name))
        for name, count in LATENCIES.items()
    ),
)
