"""The chart: one panel a metric, one bar a server, drawn as SVG by hand so that nothing more is needed."""

from __future__ import annotations

from html import escape

from benchmarks.report import number
from benchmarks.results import Run, Summary
from benchmarks.scenarios import SCENARIOS, Metric, Scenario

__all__ = ["GAP", "MARGIN", "PANEL", "TITLE", "bar_panel", "bar_panel_height", "picture", "svg", "text"]

_WIDTH, _COLUMNS, GAP, MARGIN = 980, 2, 20, 28
PANEL = (_WIDTH - 2 * MARGIN - GAP * (_COLUMNS - 1)) / _COLUMNS
_HEAD, _ROW, _BAR, _FOOT = 58, 27, 15, 12
_LABEL, _VALUE = 158, 66
TITLE = 84
_HEADING = "realtime beside other WebSocket servers"
_OURS, _LEFT_OUT = "realtime", "ceiling"

_STYLE = """
  .ground { fill: #fafaf8 } .panel { fill: #ffffff; stroke: #e4e3de }
  text { font-family: Inter, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #3d3d3a }
  .heading { font-size: 21px; font-weight: 650; fill: #1d1d1b } .sub { font-size: 12.5px; fill: #77766f }
  .title { font-size: 14px; font-weight: 600; fill: #1d1d1b } .unit { font-size: 12px; fill: #77766f }
  .name, .value { font-size: 12.5px } .value { font-variant-numeric: tabular-nums }
  .ours { fill: #0b7a75 } .theirs { fill: #b9bcc4 } .track { fill: #f1f0ec }
  .spread { stroke: #3d3d3a; stroke-opacity: .55; stroke-width: 1.2; fill: none }
  .strong { font-weight: 650; fill: #0b5f5b }
  .curve { stroke: #0b7a75; stroke-width: 2; fill: none; stroke-linejoin: round }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #16181c } .panel { fill: #1e2126; stroke: #30343b } text { fill: #c9ccd2 }
    .heading, .title { fill: #f2f3f5 } .sub, .unit { fill: #8f949e }
    .ours { fill: #2bb3a9 } .theirs { fill: #5b616c }
    .track { fill: #272b31 } .spread { stroke: #e6e8eb } .strong { fill: #5fd3c9 }
    .curve { stroke: #2bb3a9 }
  }
"""


def text(x: float, y: float, kind: str, content: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def _bar(x: float, y: float, width: float, kind: str) -> str:
    width = max(width, 1.5)
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BAR}" rx="3" class="{kind}"/>'


def _spread(x: float, y: float, scale: float, summary: Summary) -> str:
    """A whisker from the least to the most of the rounds."""
    low, high, middle = x + summary.low * scale, x + summary.high * scale, y + _BAR / 2
    if high - low < 1.5:
        return ""
    ticks = "".join(f"M{end:.1f} {middle - 3.5:.1f}v7" for end in (low, high))
    return f'<path class="spread" d="M{low:.1f} {middle:.1f}H{high:.1f}{ticks}"/>'


def bar_panel(x: float, y: float, height: float, metric: Metric, rows: list[tuple[str, str, Summary]]) -> str:
    """One metric: its title and a bar for each ``(peer, label, summary)``."""
    direction = "lower is better" if metric.lower_is_better else "higher is better"
    parts = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{PANEL:.1f}" height="{height:.1f}" rx="10" class="panel"/>',
        text(x + 16, y + 25, "title", metric.title[0].upper() + metric.title[1:]),
        text(x + 16, y + 43, "unit", f"{metric.unit}, {direction}"),
    ]
    room = PANEL - 32 - _LABEL - _VALUE
    scale = room / (max(summary.high for _, _, summary in rows) or 1.0)
    left = x + 16 + _LABEL
    for index, (peer, label, summary) in enumerate(rows):
        top = y + _HEAD + index * _ROW
        ours = peer == _OURS
        strong = " strong" if ours else ""
        parts += [
            text(left - 10, top + 12, f"name{strong}", label, "end"),
            _bar(left, top, room, "track"),
            _bar(left, top, summary.median * scale, "ours" if ours else "theirs"),
            _spread(left, top, scale, summary),
            text(x + PANEL - 16, top + 12, f"value{strong}", number(summary.median), "end"),
        ]
    return "\n".join(parts)


def bar_panel_height(rows: int) -> float:
    """How high a panel with so many bars is."""
    return _HEAD + rows * _ROW + _FOOT


def _charted(run: Run) -> list[tuple[Metric, list[tuple[str, str, Summary]]]]:
    panels = []
    for scenario in SCENARIOS:
        for metric in scenario.metrics:
            if scenario.name in run.scenarios and metric.charted:
                rows = _rows(run, scenario, metric)
                if rows:
                    panels.append((metric, rows))
    return panels


def _rows(run: Run, scenario: Scenario, metric: Metric) -> list[tuple[str, str, Summary]]:
    found = [
        (peer, run.labels[peer], summary)
        for peer in run.peers
        if peer != _LEFT_OUT and (summary := run.summary(scenario.name, metric.name, peer)) is not None
    ]
    return sorted(found, key=lambda row: row[2].median, reverse=not metric.lower_is_better)


def _caption(run: Run) -> str:
    rounds = [len(cell.cost) for cell in run.cells.values() if cell.cost]
    often = f"median of {max(rounds)} rounds, " if rounds and max(rounds) > 1 else ""
    return f"One server core, {often}{run.about.get('machine', '')}, {run.about.get('date', '')[:10]}"


def svg(run: Run) -> str:
    """The whole picture."""
    panels = _charted(run)
    parts, y = [], float(TITLE)
    for first in range(0, len(panels), _COLUMNS):
        line = panels[first : first + _COLUMNS]
        height = bar_panel_height(max(len(rows) for _, rows in line))
        for column, (metric, rows) in enumerate(line):
            parts.append(bar_panel(MARGIN + column * (PANEL + GAP), y, height, metric, rows))
        y += height + GAP
    return picture(_HEADING, _caption(run), parts, y - GAP + MARGIN)


def picture(heading: str, caption: str, parts: list[str], height: float) -> str:
    """The frame around panels; it follows the reader's light or dark scheme."""
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" role="img"',
        f' width="{_WIDTH}" height="{height:.0f}" aria-label="{escape(heading)}">',
        f"<style>{_STYLE}</style>",
        f'<rect width="{_WIDTH}" height="{height:.0f}" class="ground"/>',
        text(MARGIN, 40, "heading", heading),
        text(MARGIN, 62, "sub", caption),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"
