"""The loss curve of a run as one self-contained SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmcore.atomic import write_atomically
from llmcore.viz.palette import DARK, LIGHT

Point = tuple[float, float]

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 74, 70, 52  # margins: room for labels, title and end values
_MOST_POINTS = 400  # more than the eye separates in 624 pixels; keeps the file under 20 kB

_SHAPES = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
.title { font-size: 16px; font-weight: 600; }
.value { font-weight: 600; }
.grid, .axis { stroke-width: 1; }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.dot { stroke-width: 2; }
"""


def loss_curve(records: Iterable[Mapping[str, Any]], *, title: str = "Loss") -> str:
    """Draw the training and validation loss of a run.

    Args:
        records: the lines of ``metrics.jsonl``: those with "loss" make the training curve, those
            with "val_loss" the validation curve, both over "step". Values that are not finite are
            left out. Long curves are averaged down to a few hundred points.
        title: the heading of the picture.

    Returns:
        The text of an SVG file, readable on light and dark backgrounds, without scripts, fonts
        or anything else from elsewhere.

    Example:
        >>> from llmcore.viz import loss_curve
        >>> svg = loss_curve([{"step": 1, "loss": 4.2}, {"step": 2, "loss": 3.9}])
        >>> svg.startswith("<svg"), svg.count("<polyline")
        (True, 1)
    """
    records = list(records)
    train = _thin(_series(records, "loss"))
    val = _thin(_series(records, "val_loss"))
    points = train + val
    if not points:
        return _document(title, [_text(_WIDTH / 2, _HEIGHT / 2, "no steps yet", "middle")])

    x_end = max(x for x, _ in points) or 1.0
    x_ticks = [tick for tick in round_ticks(0, x_end, 8) if tick <= x_end]
    y_ticks = round_ticks(min(y for _, y in points), max(y for _, y in points), 6)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(point: Point) -> Point:
        x = _LEFT + point[0] / x_end * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (y_high - point[1]) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick, label in zip(y_ticks, _labels(y_ticks), strict=True):
        y = place((0, tick))[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}"/>')
        parts.append(_text(_LEFT - 10, y + 4.5, label, "end"))
    for tick, label in zip(x_ticks, _labels(x_ticks), strict=True):
        x = place((tick, y_low))[0]
        parts.append(f'<line class="axis" x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 5}"/>')
        parts.append(_text(x, bottom + 21, label, "middle"))
    parts.append(f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>')
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 10, "step", "middle"))
    parts.append(_text(_LEFT - 10, _TOP - 16, "loss", "end"))

    curves = [("train", "train", train), ("validation", "val", val)]
    legend_x = float(right)
    for name, style, series in reversed(curves):
        if series:
            legend_x -= 7.2 * len(name)
            parts.append(_text(legend_x, 32, name, "start"))
            parts.append(
                f'<line class="{style} line" x1="{legend_x - 26:.1f}" y1="27.5"'
                f' x2="{legend_x - 7:.1f}" y2="27.5"/>'
            )
            legend_x -= 48
    for _, style, series in curves:
        placed = [place(point) for point in series]
        if placed:
            path = " ".join(f"{x},{y}" for x, y in placed)
            parts.append(f'<polyline class="{style} line" points="{path}"/>')
        if style == "val" and len(placed) <= 40:
            parts += [f'<circle class="val dot" cx="{x}" cy="{y}" r="3"/>' for x, y in placed]
    parts += _end_values([(style, s[-1][1], place(s[-1])) for _, style, s in curves if s])
    return _document(title, parts)


def save_loss_curve(
    records: Iterable[Mapping[str, Any]], path: str | Path, *, title: str = "Loss"
) -> None:
    """Write `loss_curve` to a file, whole or not at all, so that a viewer never sees half of it."""
    write_atomically(Path(path), loss_curve(records, title=title).encode())


def round_ticks(low: float, high: float, most: int) -> list[float]:
    """Choose ticks at multiples of 1, 2 or 5 times a power of ten.

    The first lies at or below `low`, the last at or above `high`; at most `most` steps of theirs
    fit between the two.

    Example:
        >>> from llmcore.viz import round_ticks
        >>> round_ticks(1.42, 4.18, 6)
        [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5]
        >>> round_ticks(0, 2000, 8)
        [0.0, 500.0, 1000.0, 1500.0, 2000.0]
    """
    if high <= low:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, low + margin
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step * (1 + 1e-12))
    last = math.ceil(high / step * (1 - 1e-12))
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _series(records: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    found = [(float(r["step"]), float(r[key])) for r in records if r.get(key) is not None]
    return [(step, loss) for step, loss in found if math.isfinite(loss)]


def _thin(points: list[Point]) -> list[Point]:
    """Average neighbours until at most `_MOST_POINTS` are left; the last point stays exact."""
    size = math.ceil(len(points) / _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Write ticks with as many digits as their distance needs, thousands as k, millions as M."""
    largest = max(abs(tick) for tick in ticks)
    unit, letter = next(
        ((u, s) for u, s in ((1e9, "G"), (1e6, "M"), (1e4, "k")) if largest >= u), (1.0, "")
    )
    unit = 1e3 if letter == "k" else unit
    step = (ticks[1] - ticks[0]) / unit if len(ticks) > 1 else 1.0
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick / unit:.{digits}f}{letter if tick else ''}" for tick in ticks]


def _end_values(ends: list[tuple[str, float, Point]]) -> list[str]:
    """Label the last value of each curve, pushed apart where they would overlap."""
    ends.sort(key=lambda end: end[2][1])
    if len(ends) == 2 and ends[1][2][1] - ends[0][2][1] < 16:
        middle = (ends[0][2][1] + ends[1][2][1]) / 2
        heights = [middle - 8, middle + 8]
    else:
        heights = [end[2][1] for end in ends]
    return [
        _text(point[0] + 9, y + 4.5, f"{value:.3f}", "start", f"value {style}")
        for (style, value, point), y in zip(ends, heights, strict=True)
    ]


def _style() -> str:
    """Plain rules first, for viewers that know no more.

    A dark page overrides the colours, also when the picture sits in an <img>.
    """
    light, dark = _colours(LIGHT), _colours(DARK)
    return f"{_SHAPES}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def _colours(palette: Mapping[str, str]) -> str:
    rules = [
        "text {{ fill: {text}; }} .title {{ fill: {strong}; }}",
        ".back, .dot {{ fill: {back}; }}",
        ".grid {{ stroke: {grid}; }} .axis {{ stroke: {axis}; }}",
        ".train {{ stroke: {blue}; }} .val {{ stroke: {orange}; }}",
        "text.train {{ stroke: none; fill: {blue}; }}",
        "text.val {{ stroke: none; fill: {orange}; }}",
    ]
    return "\n".join(rules).format_map(palette)


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    css = f' class="{style}"' if style else ""
    return f'<text{css} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _document(title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        f' width="{_WIDTH}" height="{_HEIGHT}" role="img">'
    )
    body = [
        head,
        f"<title>{escape(title)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="back" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>',
        _text(20, 32, title, "start", "title"),
        *parts,
        "</svg>",
    ]
    return "\n".join(body) + "\n"
