"""The tables, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from benchmarks.results import DISTURBED, LOAD_BOUND, Run, Summary
from benchmarks.scenarios import GOALS, SCENARIOS, Metric, Scenario

__all__ = ["markdown", "number", "table"]

_OURS = "realtime"
_MARKS = {LOAD_BOUND: " †", DISTURBED: " ‡"}
_LEGEND = {
    LOAD_BOUND: "† load-bound: the load generator was over 90 % busy, the server under 95 %: a lower bound.",
    DISTURBED: "‡ disturbed: other programs held a core over 5 % of the time. Compare by CPU time instead.",
}

_RATIOS_NOTE = """\
Above 1 is better. In brackets: by the server's CPU time per operation, which other programs on the machine
disturb less."""
_COSTS_NOTE = """\
CPU time by `/proc`, as a share of the measured time. `waited`: the larger share of the two processes' time
in which they were ready but something else had their core. `out of order`: reads that did not end in the
delivery that was due."""


def number(value: float) -> str:
    """Three significant digits or whole, with thousands separated."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(header: Iterable[str], rows: Iterable[Iterable[str]], numbers_from: int = 1) -> str:
    """A Markdown table, columns padded so that it also reads well as plain text."""
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]

    def render(line: list[str]) -> str:
        cells = (
            cell.ljust(width) if column < numbers_from else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        return f"| {' | '.join(cells)} |"

    rule = "|".join(
        "-" * (width + 2) if column < numbers_from else "-" * (width + 1) + ":"
        for column, width in enumerate(widths)
    )
    return "\n".join([render(lines[0]), f"|{rule}|", *map(render, lines[1:])])


def _measured(run: Run) -> Iterable[tuple[Scenario, Metric]]:
    for scenario in SCENARIOS:
        if scenario.name in run.scenarios:
            for metric in scenario.metrics:
                yield scenario, metric


def _value(summary: Summary | None, marks: str) -> str:
    if summary is None:
        return "—"
    spread = "" if summary.low == summary.high else f" ({number(summary.low)}..{number(summary.high)})"
    return number(summary.median) + spread + marks


def _results(run: Run) -> str:
    header = ["", "unit", *(run.labels[peer] for peer in run.peers)]
    rows = []
    for scenario, metric in _measured(run):
        row = [metric.title, metric.unit]
        for peer in run.peers:
            marks = "".join(_MARKS[flag] for flag in run.cells[scenario.name, peer].flags())
            row.append(_value(run.summary(scenario.name, metric.name, peer), marks))
        rows.append(row)
    used = {flag for cell in run.cells.values() for flag in cell.flags()}
    legend = [text for flag, text in _LEGEND.items() if flag in used]
    return "\n\n".join([table(header, rows, 2), *legend])


def ratio(run: Run, scenario: str, metric: Metric, peer: str) -> float | None:
    """How many times as good ours is, by the medians: above 1 is better, whatever the metric."""
    ours, theirs = run.summary(scenario, metric.name, _OURS), run.summary(scenario, metric.name, peer)
    if ours is None or theirs is None or not ours.median or not theirs.median:
        return None
    return theirs.median / ours.median if metric.lower_is_better else ours.median / theirs.median


def cost_ratio(run: Run, scenario: str, peer: str) -> float | None:
    """How many times as much CPU the peer needs for one operation."""
    ours, theirs = run.cells[scenario, _OURS].cost, run.cells[scenario, peer].cost
    if not ours or not theirs:
        return None
    return statistics.median(theirs) / statistics.median(ours)


def _times(value: float | None) -> str:
    return "—" if value is None else f"{value:.1f}x"


def _ratios(run: Run) -> str:
    others = [peer for peer in run.peers if peer != _OURS]
    rows = []
    for scenario, metric in _measured(run):
        row = [metric.title]
        for peer in others:
            text = _times(ratio(run, scenario.name, metric, peer))
            if not metric.lower_is_better:
                text += f" ({_times(cost_ratio(run, scenario.name, peer))})"
            row.append(text)
        rows.append(row)
    return table(["realtime, times as good as", *(run.labels[peer] for peer in others)], rows)


def _goals(run: Run) -> str:
    rows = []
    metrics = {metric.name: (scenario, metric) for scenario, metric in _measured(run)}
    for goal in GOALS:
        if goal.metric not in metrics:
            continue
        scenario, metric = metrics[goal.metric]
        if goal.peer is None:
            summary = run.summary(scenario.name, metric.name, _OURS)
            if summary is not None:
                wanted = f"at most {goal.ratio:g} {metric.unit}"
                verdict = "yes" if summary.median <= goal.ratio else "no"
                rows.append([metric.title, wanted, number(summary.median), verdict])
            continue
        reached = ratio(run, scenario.name, metric, goal.peer)
        if reached is not None:
            cost = "" if metric.lower_is_better else f" ({_times(cost_ratio(run, scenario.name, goal.peer))})"
            wanted = f"{goal.ratio:g}x {run.labels[goal.peer]}"
            verdict = "yes" if reached >= goal.ratio else "no"
            rows.append([metric.title, wanted, f"{reached:.1f}x{cost}", verdict])
    return table(["goal", "wanted", "measured", "reached"], rows, 2) if rows else ""


def _costs(run: Run) -> str:
    header = ["", "server", "CPU per operation", "of it kernel", "server busy", "load busy", "waited"]
    header += ["lost", "out of order"]
    rows = []
    for scenario in SCENARIOS:
        for peer in run.peers:
            cell = run.cells.get((scenario.name, peer))
            if cell is None or not cell.cost:
                continue
            waited = max(statistics.median(cell.server_waiting), statistics.median(cell.load_waiting))
            rows.append(
                [
                    scenario.name,
                    run.labels[peer],
                    f"{statistics.median(cell.cost):.2f} µs",
                    f"{statistics.median(cell.kernel_share):.0%}",
                    f"{statistics.median(cell.server_busy):.0%}",
                    f"{statistics.median(cell.load_busy):.0%}",
                    f"{waited:.0%}",
                    str(cell.lost),
                    str(cell.disordered),
                ]
            )
    return table(header, rows, 2)


def markdown(run: Run) -> str:
    """The whole report."""
    about = "\n".join(f"- {name}: {text}" for name, text in run.about.items())
    parts = ["# Benchmark results", about]
    if run.skipped:
        left_out = (f"- not measured: {run.labels[peer]} ({why})" for peer, why in run.skipped.items())
        parts.append("\n".join(left_out))
    if run.failures:
        parts.append("\n".join(["**Failed:**", "", *(f"- {failure}" for failure in run.failures)]))
    parts += ["## Results", "Median over the rounds, with the least and the most in brackets.", _results(run)]
    if _OURS in run.peers and len(run.peers) > 1:
        parts += ["## realtime beside the others", _RATIOS_NOTE, _ratios(run)]
        goals = _goals(run)
        if goals:
            parts += ["## Goals", goals]
    parts += ["## Who was busy", _COSTS_NOTE, _costs(run)]
    return "\n\n".join(parts) + "\n"
