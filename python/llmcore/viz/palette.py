"""The colours of every picture, on light and on dark backgrounds."""

from __future__ import annotations

#: back: the background; strong, text: headings and the rest; grid, axis: lines; blue, orange:
#: what is shown; deep: the strongest attention, where the ramp back → blue → deep ends.
LIGHT = {
    "back": "#ffffff",
    "strong": "#1f2328",
    "text": "#656d76",
    "grid": "#e4e8ec",
    "axis": "#8d96a0",
    "blue": "#3d86dd",
    "orange": "#d9570d",
    "deep": "#0b2a55",
}
DARK = {
    "back": "#0d1117",
    "strong": "#e6edf3",
    "text": "#9aa4af",
    "grid": "#262c34",
    "axis": "#656d76",
    "blue": "#58a6ff",
    "orange": "#ffa657",
    "deep": "#eaf4ff",
}
