"""The tables and the chart of ``python -m benchmarks.mesh``."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.chart import GAP, MARGIN, PANEL, TITLE, bar_panel, bar_panel_height, picture, text
from benchmarks.clusters import CLUSTERS, FLASK, ONE_NODE, ONE_WORKER, TWO_NODES, TWO_WORKERS
from benchmarks.mesh_growth import CLIENTS, Growth
from benchmarks.mesh_results import ECHOES, FAN_OUTS, GOALS, IDLE, LATENCIES, Goal, MeshRun
from benchmarks.report import number, table
from benchmarks.results import Summary
from benchmarks.scenarios import Metric

__all__ = ["markdown", "reached", "svg"]

_LABELS = {cluster.name: cluster.label for cluster in CLUSTERS}
_SHORT = {
    ONE_NODE: "one node",
    TWO_NODES: "two nodes",
    FLASK: "Flask-SocketIO, Redis",
    ONE_WORKER: "one worker",
    TWO_WORKERS: "two workers",
}
_PLOT = 190.0  # height of a panel with a curve

_GROWTH_NOTE = f"""\
The cores in a network in memory, links of 1 to 10 ms, {CLIENTS} clients on each node, all in one room. Times are the
virtual clock's; bytes are the mesh's own on all links together, without TCP's and the handshakes'. `a client comes`:
until every node knows it and its room. `a node joins`: until all nodes know it, and it knows them and all clients.
`all start`: the same for all nodes at once, each knowing the first. `idle`: what each node sends while nothing
happens."""

_CONCLUSION = """\
So full mesh is the right shape up to some tens of nodes. From about 50 on, clients that come and go and rooms that
have members everywhere take from each node what a further one adds. With hundreds (`MeshOptions.known_nodes` allows
1,024) the mesh holds together but gains little: divide the clients into several clusters, or put a broker between."""


def reached(goal: Goal, run: MeshRun) -> bool | None:
    """Whether a goal is reached; None if it was not measured."""
    measured = goal.measured(run)
    return None if measured is None else measured.median <= goal.most


def markdown(run: MeshRun) -> str:
    """The whole report."""
    about = "\n".join(f"- {name}: {value}" for name, value in run.about.items())
    parts = ["# What acting as one costs", about, "## Goals", _goals(run), "## Server CPU", _costs(run)]
    parts += ["## Latency at 200 messages/s, two nodes (ms)", _latencies(run)]
    if run.growth:
        parts += ["## Growth", _growth(run.growth), _GROWTH_NOTE, "## Where full mesh stops making sense", _limits(run)]
    if run.skipped or run.failures:
        parts += ["## Not measured", *(f"- {_LABELS[name]}: {reason}" for name, reason in run.skipped.items())]
        parts += [f"- {failure}" for failure in run.failures]
    return "\n\n".join(parts) + "\n"


def _summary(summary: Summary | None) -> str:
    if summary is None:
        return "—"
    return f"{number(summary.median)} ({number(summary.low)}..{number(summary.high)})"


def _goals(run: MeshRun) -> str:
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [
        [goal.text, f"at most {goal.most:g} {goal.unit}", _summary(goal.measured(run)), words[reached(goal, run)]]
        for goal in GOALS
    ]
    return table(["goal", "wanted", "measured", "reached"], rows, 2)


def _costs(run: MeshRun) -> str:
    """Costs by scenario, one row for each cluster that did it."""
    rows = []
    jobs = [
        *((name, f"fan-out to 100, {count} in flight", "us/delivery") for name, count in FAN_OUTS.items()),
        *((name, f"echo, 50 clients, {count} in flight each", "us/echo") for name, count in ECHOES.items()),
        (IDLE, "idle, nobody connected", "us/s"),
    ]
    for scenario, title, unit in jobs:
        for cluster, label in _LABELS.items():
            cost = run.cost(scenario, cluster)
            if cost is not None:
                rows.append([title, label, unit, _summary(cost)])
    note = "Median of the turns, and the extremes, of the CPU time of all processes together."
    return f"{table(['job', 'servers', 'unit', 'CPU'], rows, 3)}\n\n{note}"


def _latencies(run: MeshRun) -> str:
    rows = [
        [f"room of {count}", *(_summary(run.latency(name, value)) for value in ("p50", "far-p50", "p99", "far-p99"))]
        for name, count in LATENCIES.items()
    ]
    header = ["", "p50, publisher's node", "p50, other node", "p99, publisher's node", "p99, other node"]
    return table(header, rows)


def _growth(growth: list[Growth]) -> str:
    header = ["nodes", "a client comes, ms", "bytes", "frames", "a node joins, ms", "bytes", "all start, ms"]
    rows = [
        [
            str(one.nodes),
            number(one.came * 1e3),
            number(one.came_bytes),
            number(one.came_frames),
            number(one.joined * 1e3),
            f"{one.joined_bytes:,}",
            number(one.started * 1e3),
            number(one.idle_bytes),
            number(one.idle_frames),
        ]
        for one in growth
    ]
    return table([*header, "idle bytes/s a node", "idle frames/s a node"], rows, 0)


def _limits(run: MeshRun) -> str:
    """What a further node costs, from what was measured."""
    last = run.growth[-1]
    others = last.nodes - 1
    parts = [_growth_said(last)]
    link, crossing, delivery = _link_cost(run), _crossing_cost(run), run.cost("fan-out-1", ONE_NODE)
    if link is not None:
        parts.append(
            f"An idle link costs each of its nodes at most {number(link)} us of CPU a second (the node's own clock is "
            f"in that), so {last.nodes} nodes spend no more than {link * others / 1e4:.2g} % of a core each on "
            f"staying together, and 1,000 nodes no more than {link * 999 / 1e4:.2g} %."
        )
    if crossing is not None and delivery is not None and crossing > 0:
        parts.append(
            f"A message that crosses a link by itself costs both nodes together {number(crossing)} us, as much as "
            f"{number(crossing / delivery.median)} deliveries to clients. The publisher's node sends one frame to each "
            f"node with members: a room spread thinner than that many members to a node costs more on links than at "
            f"clients."
        )
        hearing = crossing / 2
        parts.append(
            f"Every node is told of every client that comes, goes, or changes rooms. Taking half of the above for "
            f"hearing of one change that comes by itself, a node that does nothing else hears of some "
            f"{1e6 / hearing:,.0f} a second: all nodes together cannot make more, and a further node adds none. At "
            f"{last.nodes} nodes with 10 changes a second on each, {others * 10 * hearing / 1e4:.0f} % of a core of "
            f"every node goes into it."
        )
    parts.append(_CONCLUSION)
    return "\n\n".join(parts)


def _growth_said(last: Growth) -> str:
    return (
        f"Convergence does not get slower with more nodes: what happens on one node is one hop from all others. What "
        f"grows is the number of frames. At {last.nodes} nodes each holds {last.nodes - 1} links and sends "
        f"{number(last.idle_frames)} frames ({number(last.idle_bytes)} bytes) a second for nothing but staying "
        f"together; a client that comes costs {number(last.came_frames)} frames ({number(last.came_bytes)} bytes) in "
        f"all; a node that joins moves {last.joined_bytes / 1e3:,.0f} KB."
    )


def _link_cost(run: MeshRun) -> float | None:
    """Microseconds a second that an idle link costs each of its two nodes."""
    one, two = run.cost(IDLE, ONE_NODE), run.cost(IDLE, TWO_NODES)
    return None if one is None or two is None else max(0.0, two.median / 2 - one.median)


def _crossing_cost(run: MeshRun) -> float | None:
    """Microseconds that one message costs more because half of 100 members are on another node."""
    one, two = run.cost("fan-out-1", ONE_NODE), run.cost("fan-out-1", TWO_NODES)
    return None if one is None or two is None else (two.median - one.median) * 100


# The chart ---------------------------------------------------------------------------------------------------


def svg(run: MeshRun) -> str:
    """Bars for what was compared, curves for the growth."""
    columns = MARGIN, MARGIN + PANEL + GAP
    parts, y = [], float(TITLE)
    bars = [
        (Metric("fan-out", "fan-out to 100, 16 in flight", "us of CPU a delivery", True), "fan-out-16"),
        (Metric("echo", "echo, 16 in flight", "us of CPU an echo", True), "echo-16"),
    ]
    rows = {scenario: _bars(run, scenario) for _, scenario in bars}
    height = bar_panel_height(max(map(len, rows.values()), default=0))
    for x, (metric, scenario) in zip(columns, bars, strict=True):
        if rows[scenario]:
            parts.append(bar_panel(x, y, height, metric, rows[scenario]))
    y += height + GAP
    curves: list[tuple[str, str, Callable[[Growth], float]]] = [
        ("A client comes: until all nodes know", "ms of the virtual clock", lambda one: one.came * 1e3),
        ("A client comes: bytes on all links", "bytes", lambda one: one.came_bytes),
        ("A node joins: until all views are equal", "ms of the virtual clock", lambda one: one.joined * 1e3),
        ("A node joins: bytes on all links", "KB", lambda one: one.joined_bytes / 1e3),
        ("Idle: what each node sends", "bytes a second", lambda one: one.idle_bytes),
        ("Idle: what each node sends", "frames a second", lambda one: one.idle_frames),
    ]
    for index, (title, unit, value) in enumerate(curves):
        points = [(one.nodes, value(one)) for one in run.growth]
        if points:
            parts.append(_curve(columns[index % 2], y, title, f"{unit}, by number of nodes", points))
        if index % 2:
            y += _PLOT + GAP
    caption = f"CPU of all server processes; growth in a network in memory. {run.about.get('date', '')[:10]}"
    return picture("What acting as one costs", caption, parts, y - GAP + MARGIN)


def _bars(run: MeshRun, scenario: str) -> list[tuple[str, str, Summary]]:
    found = [
        ("realtime" if name != FLASK else name, label, cost)
        for name, label in _SHORT.items()
        if (cost := run.cost(scenario, name)) is not None
    ]
    return sorted(found, key=lambda row: row[2].median)


def _curve(x: float, y: float, title: str, unit: str, points: list[tuple[int, float]]) -> str:
    """One panel: a line through the points from zero on, the last one's value beside it."""
    left, top, width, height = x + 16, y + 62, PANEL - 32 - 56, _PLOT - 62 - 30
    across = width / points[-1][0]
    up = height / (max(value for _, value in points) * 1.1 or 1.0)
    places = [(left + nodes * across, top + height - value * up) for nodes, value in points]
    line = "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    base = f"{left:.1f} {top + height:.1f}"
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{PANEL:.1f}" height="{_PLOT:.1f}" rx="10" class="panel"/>',
        text(x + 16, y + 25, "title", title),
        text(x + 16, y + 43, "unit", unit),
        f'<path class="spread" d="M{base}h{width:.1f}"/>',
        f'<path class="curve" d="{line}"/>',
        *(f'<circle class="ours" cx="{px:.1f}" cy="{py:.1f}" r="3"/>' for px, py in places),
        text(places[-1][0] + 10, places[-1][1] + 4, "value strong", number(points[-1][1])),
    ]
    parts += [
        text(px, top + height + 17, "unit", str(nodes), "middle")
        for (px, _), (nodes, _) in zip(places, points, strict=True)
        if nodes % 10 == 0
    ]
    return "\n".join(parts)
