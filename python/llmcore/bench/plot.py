"""The rates of a contest as one self-contained SVG: bars with their quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from llmcore.bench.engines import OURS
from llmcore.bench.report import Contest, Row, label, shown
from llmcore.bench.workloads import Measure
from llmcore.viz.palette import DARK, LIGHT

_WIDTH, _LEFT, _RIGHT, _TOP = 760, 130, 150, 56
_BAR, _STEP, _HEADING = 14, 22, 30  # heights: of a bar, from bar to bar, of a measure's name

_SHAPES = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
.title { font-size: 16px; font-weight: 600; }
.name { font-weight: 600; }
.spread, .limit { stroke-width: 1.5; }
.limit { stroke-dasharray: 4 3; }
"""


def draw(contests: Sequence[Contest]) -> str:
    """Draw contests below each other, each measure with a scale of its own.

    A bar is the median rate, longer is faster, the line across its end the quartiles, the dashed
    line what the machine's ceilings allow where that is in sight.

    Returns:
        The text of an SVG file, readable on light and dark backgrounds, without anything from
        elsewhere.
    """
    parts: list[str] = []
    y = 0.0
    for contest in contests:
        parts.append(_text(20, y + 30, contest.title, "start", "title"))
        y += _TOP
        for measure in contest.workload.measures():
            rows = contest.rows(measure)
            if not rows:
                continue
            parts.append(_text(20, y + 12, label(measure), "start",
                               "name"))  # fmt: skip
            y += _HEADING - 8
            parts += _bars(measure, rows, _limit(measure, contest), y)
            y += len(rows) * _STEP + 14
        y += 6
    return _document(parts, y + 10)


def _limit(measure: Measure, contest: Contest) -> float:
    """The rate that the ceilings allow."""
    return measure.amount / max(measure.floors(contest.ceilings).values())


def _bars(measure: Measure, rows: Sequence[Row], limit: float, top: float) -> list[str]:
    most = max(row.fast_rate for row in rows)
    end = limit if most < limit < 2.5 * most else most
    scale = (_WIDTH - _LEFT - _RIGHT) / end
    parts = []
    for index, row in enumerate(rows):
        y = top + index * _STEP
        style = "ours" if row.engine == OURS else "peer"
        middle = y + _BAR / 2
        slow, fast = (_LEFT + rate * scale for rate in (row.slow_rate, row.fast_rate))
        ratio = "" if row.ratio is None or row.engine == OURS else f"  ({row.ratio:.2f} ×)"
        parts += [
            _text(_LEFT - 10, y + 11.5, row.engine, "end"),
            f'<rect class="{style}" x="{_LEFT}" y="{y:.1f}" width="{row.rate * scale:.1f}"'
            f' height="{_BAR}" rx="2"/>',
            _line("spread", slow, middle, fast, middle),
            _text(fast + 8, y + 11.5, shown(measure, row.rate) + ratio, "start"),
        ]
    if end == limit:
        x = _LEFT + limit * scale
        parts.append(_line("limit", x, top - 4, x, top + len(rows) * _STEP - 4))
    return parts


def _line(style: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    css = f' class="{style}"' if style else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _colours(palette: Mapping[str, str]) -> str:
    rules = [
        "text {{ fill: {text}; }} .title, .name {{ fill: {strong}; }} .back {{ fill: {back}; }}",
        ".ours {{ fill: {blue}; }} .peer {{ fill: {axis}; }}",
        ".spread {{ stroke: {strong}; }} .limit {{ stroke: {orange}; }}",
    ]
    return "\n".join(rules).format_map(palette)


def _document(parts: Sequence[str], height: float) -> str:
    dark = f"@media (prefers-color-scheme: dark) {{\n{_colours(DARK)}\n}}"
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}"'
        f' width="{_WIDTH}" height="{height:.0f}" role="img">'
    )
    return "\n".join(
        [
            head,
            f"<style>{_SHAPES}{_colours(LIGHT)}\n{dark}\n</style>",
            f'<rect class="back" width="{_WIDTH}" height="{height:.0f}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )
