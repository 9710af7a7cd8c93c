"""The measurements of a whole run: collected by round, summarised by median, kept as JSON."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Measurement

__all__ = ["DISTURBED", "LOAD_BOUND", "Cell", "Run", "Summary"]

LOAD_BOUND = "load-bound"
DISTURBED = "disturbed"


@dataclass(frozen=True)
class Summary:
    """Median and extremes over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Summary:
        return cls(statistics.median(values), min(values), max(values))


@dataclass
class Cell:
    """One peer in one scenario: what every round gave. Shares are of wall-clock time, 0 to 1."""

    values: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    server_busy: list[float] = field(default_factory=list)
    server_waiting: list[float] = field(default_factory=list)
    load_busy: list[float] = field(default_factory=list)
    load_waiting: list[float] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    """Microseconds of server CPU per operation."""
    kernel_share: list[float] = field(default_factory=list)
    lost: int = 0
    disordered: int = 0

    def add(self, measurement: Measurement) -> None:
        """Take in one round."""
        for name, value in measurement.values.items():
            self.values[name].append(value)
        self.lost += measurement.lost
        self.disordered += measurement.disordered
        server, load = measurement.server, measurement.load
        if server is None or load is None:
            return
        self.server_busy.append(server.run / measurement.seconds)
        self.server_waiting.append(server.wait / measurement.seconds)
        self.load_busy.append(load.run / measurement.seconds)
        self.load_waiting.append(load.wait / measurement.seconds)
        self.cost.append(server.run / max(1, measurement.operations) * 1e6)
        self.kernel_share.append(server.kernel / server.run if server.run else 0.0)

    def flags(self) -> list[str]:
        """What must be said about the numbers; a process that waits for its core counts as busy."""
        found = []
        if self.server_busy:
            server = statistics.median(map(sum, zip(self.server_busy, self.server_waiting, strict=True)))
            load = statistics.median(map(sum, zip(self.load_busy, self.load_waiting, strict=True)))
            if load > 0.90 and server < 0.95:
                found.append(LOAD_BOUND)
            if statistics.median(self.server_waiting) > 0.05 or statistics.median(self.load_waiting) > 0.05:
                found.append(DISTURBED)
        return found


@dataclass
class Run:
    """Everything one call of ``python -m benchmarks`` measured."""

    about: dict[str, str]
    """What the report begins with: machine, command, versions."""
    peers: list[str]
    labels: dict[str, str]
    scenarios: list[str]
    cells: defaultdict[tuple[str, str], Cell] = field(default_factory=lambda: defaultdict(Cell))
    skipped: dict[str, str] = field(default_factory=dict)
    """Peers that could not run, and why."""
    failures: list[str] = field(default_factory=list)

    def summary(self, scenario: str, metric: str, peer: str) -> Summary | None:
        """The rounds' median and extremes, if it was measured."""
        values = self.cells[scenario, peer].values.get(metric)
        return Summary.of(values) if values else None

    def save(self, path: Path) -> None:
        """Keep every round's numbers."""
        cells: dict[str, Any] = {
            f"{scenario}/{peer}": vars(cell) for (scenario, peer), cell in self.cells.items()
        }
        fields = {name: value for name, value in vars(self).items() if name != "cells"}
        path.write_text(json.dumps({**fields, "cells": cells}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read back what ``save`` wrote."""
        fields = json.loads(path.read_text())
        cells = fields.pop("cells")
        run = cls(**fields)
        for key, content in cells.items():
            scenario, peer = key.split("/")
            values = content.pop("values")
            run.cells[scenario, peer] = Cell(**content)
            run.cells[scenario, peer].values.update(values)
        return run
