"""Attention as a PNG, drawn by matplotlib."""

from __future__ import annotations

import io
from importlib import import_module
from pathlib import Path
from typing import Any

from llmcore.atomic import write_atomically
from llmcore.errors import ConfigError
from llmcore.viz.attention import AttentionMap, as_map, visible
from llmcore.viz.palette import LIGHT

# After matplotlib's own font, those that are there of what systems bring for the other scripts.
_FONTS = [
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Hiragino Sans", "PingFang SC", "Yu Gothic"),
    *("Microsoft YaHei", "Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari"),
    *("Noto Sans Thai", "Arial Unicode MS", "Unifont"),
]
_MOST_LABELS, _MOST_LETTERS = 64, 20  # tokens along one side, and letters of each, that fit


def attention_png(
    path: str | Path,
    attention: Any,
    *,
    layer: int | None = None,
    head: int | None = None,
    title: str | None = None,
) -> None:
    """Draw heat maps, layers downwards and heads to the right; a single one with its tokens.

    Args:
        path: the file, written whole or not at all.
        attention: an `AttentionMap`, or plain weights as `attention_page` takes them.
        layer: one of ``attention.layers``; None draws all.
        head: one of ``attention.heads``; None draws all.
        title: the heading; None says whose attention it is.

    Raises:
        ConfigError: the map has no such layer or head, or matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from llmcore.viz import AttentionMap, attention_png
        >>> words = ["a", " rose", " is"]
        >>> rose = AttentionMap("decoder", np.tri(3)[None, None] / [[1], [2], [3]], words, words)
        >>> file = Path(tempfile.mkdtemp()) / "rose.png"
        >>> attention_png(file, rose, layer=0, head=0)  # doctest: +SKIP
    """
    attention = as_map(attention)
    layers = _chosen("layer", attention.layers, layer)
    heads = _chosen("head", attention.heads, head)
    try:
        matplotlib, figures = import_module("matplotlib"), import_module("matplotlib.figure")
        colors, fonts = import_module("matplotlib.colors"), import_module("matplotlib.font_manager")
    except ImportError:
        raise ConfigError(
            "attention_png draws with matplotlib, which is not installed; install it"
            " (pip install matplotlib) or use attention_page, which needs nothing"
        ) from None

    # As on the page: square roots spread out the small weights, which are many.
    stops = [LIGHT["back"], LIGHT["blue"], LIGHT["deep"]]
    ramp = colors.LinearSegmentedColormap.from_list("attention", stops)
    norm = colors.PowerNorm(0.5, 0, 1)
    there = set(fonts.get_font_names())
    families = ["DejaVu Sans", *(name for name in _FONTS if name in there)]
    single = len(layers) == len(heads) == 1
    # Inches; a square for each token in a single map, pictures of one size otherwise.
    longest = max(len(attention.queries), len(attention.keys))
    inch = min(max(longest * 0.25, 4.0), 12.0) / longest if single else 1.3 / longest
    width, height = inch * len(attention.keys), inch * len(attention.queries)
    margin = 2.4 if single else 1.2
    with matplotlib.rc_context({"font.family": families, "text.color": LIGHT["strong"]}):
        figure = figures.Figure(
            figsize=(width * len(heads) + margin, height * len(layers) + margin),
            layout="compressed",
        )
        axes = figure.subplots(len(layers), len(heads), squeeze=False)
        for row, i in zip(axes, layers, strict=True):
            for ax, j in zip(row, heads, strict=True):
                shown = ax.imshow(attention.weights[i, j], ramp, norm, interpolation="nearest")
                _quiet(ax)
        if single:
            _label(axes[0][0], attention)
        else:
            for ax, j in zip(axes[0], heads, strict=True):
                ax.set_title(f"head {attention.heads[j]}", fontsize=8, color=LIGHT["text"])
            for ax, i in zip(axes[:, 0], layers, strict=True):
                ax.set_ylabel(f"layer {attention.layers[i]}", fontsize=8, color=LIGHT["text"])
        bar = figure.colorbar(shown, ax=axes, ticks=[0, 0.1, 0.3, 0.6, 1], shrink=0.6, aspect=30)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0, labelcolor=LIGHT["text"])
        place = f", layer {attention.layers[layers[0]]}, head {attention.heads[heads[0]]}"
        name = f"{attention.kind.capitalize()} attention{place if single else ''}"
        figure.suptitle(
            name if title is None else title, fontsize=12, weight="bold", parse_math=False
        )
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=144, facecolor=LIGHT["back"])
    write_atomically(Path(path), content.getvalue())


def _chosen(name: str, numbers: Any, number: int | None) -> list[int]:
    if number is None:
        return list(range(len(numbers)))
    if number not in numbers:
        raise ConfigError(
            f"attention_png: {name}: expected one of {', '.join(map(str, numbers))}, got {number!r}"
        )
    return [numbers.index(number)]


def _quiet(ax: Any) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(LIGHT["grid"])


def _label(ax: Any, attention: AttentionMap) -> None:
    ax.tick_params(length=0, labelsize=8, labelcolor=LIGHT["text"])
    ax.xaxis.tick_top()
    sides = ((ax.xaxis, attention.keys, 60), (ax.yaxis, attention.queries, 0))
    for axis, tokens, rotation in sides:
        if len(tokens) <= _MOST_LABELS:
            axis.set_ticks(range(len(tokens)))
            # A "$" in a token is a dollar, not the start of a formula.
            axis.set_ticklabels(
                [_shortened(visible(token)) for token in tokens],
                rotation=rotation,
                parse_math=False,
            )
    for label in ax.get_xticklabels():
        label.set(ha="left", rotation_mode="anchor")


def _shortened(token: str) -> str:
    return token if len(token) <= _MOST_LETTERS else token[: _MOST_LETTERS - 1] + "…"
