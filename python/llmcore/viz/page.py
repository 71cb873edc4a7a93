"""One HTML page, in one file, that shows what a model looks at."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.atomic import write_atomically
from llmcore.errors import ConfigError, ShapeError
from llmcore.viz.attention import AttentionMap, as_maps, visible
from llmcore.viz.palette import DARK, LIGHT

#: The k likeliest tokens at one position, each with its probability.
Candidates = Sequence[tuple[str, float]]

# One letter for each weight in 255ths. Small weights, which are nearly all, get ASCII: one byte in
# UTF-8, and a row of attention has room for two others. Left out: what JSON or HTML would escape,
# and the space, which separates rows.
_ASCII = [chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"\\<']
_ALPHABET = "".join([*_ASCII, *map(chr, range(0x100, 0x100 + 256 - len(_ASCII)))])

# One module when joined in this order.
_SCRIPTS = ("state.js", "elements.js", "views.js", "page.js")


def attention_page(
    maps: Any,
    *,
    title: str = "Attention",
    next_tokens: Sequence[Candidates] | None = None,
) -> str:
    """Draw attention as a page that any current browser shows, offline, light or dark.

    It shows all heads at a glance, one head as a heat map, links between tokens, and for cross
    attention which source token every target token attends to most. The address keeps what is
    shown (``#map=decoder&view=links&layer=2&head=0,3&query=5``), so a view can be linked.

    Args:
        maps: an `AttentionMap` or several, at most one of each kind; or plain weights, as
            `Transformer.attention_maps` gives them of one sequence (NumPy array, `Tensor`), whose
            tokens are then numbered. The file takes about one byte for each weight that is not
            rounded to 0, and 40 kB: 12 layers × 12 heads × 40² tokens fit in 300 kB.
        title: the heading of the page.
        next_tokens: for each position the likeliest next tokens, most likely first, shown where
            the position is pointed at. Positions are the queries of the decoder or cross map; of
            the encoder's where there is neither.

    Returns:
        The text of an HTML file. Weights are rounded to 1/255.

    Raises:
        DTypeError: neither maps nor weights.
        ConfigError: no map, two of one kind, or probabilities outside 0 … 1.
        ShapeError: the maps do not fit each other, or `next_tokens` has not one entry a position.

    Example:
        >>> import numpy as np
        >>> from llmcore.viz import AttentionMap, attention_page
        >>> words = ["a", " rose", " is"]
        >>> weights = np.tri(3)[None, None] / [[1], [2], [3]]
        >>> page = attention_page([AttentionMap("decoder", weights, words, words)], title="A rose")
        >>> "<title>A rose</title>" in page, "://" in page
        (True, False)
        >>> "decoder" in attention_page(weights)
        True
    """
    maps = as_maps(maps)
    _check(maps)
    data = {
        "alphabet": _ALPHABET,
        "maps": [_encode(m) for m in maps],
        "next": _candidates(maps, next_tokens),
    }
    # Within JSON a "<" can only stand in a text; escaped, no text can end the script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        style=_colours() + _asset("page.css"),
        script="\n".join(map(_asset, _SCRIPTS)),
        data=text,
    )


def save_attention_page(
    path: str | Path,
    maps: Any,
    *,
    title: str = "Attention",
    next_tokens: Sequence[Candidates] | None = None,
) -> None:
    """Write `attention_page` to a file, whole or not at all.

    Raises:
        ConfigError, DTypeError, ShapeError: as `attention_page` does.
        OSError: naming `path`, which is then as it was.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from llmcore.viz import AttentionMap, save_attention_page
        >>> path = Path(tempfile.mkdtemp()) / "rose.html"
        >>> save_attention_page(path, [AttentionMap("encoder", [[[[1]]]], ["rose"], ["rose"])])
        >>> path.stat().st_size < 50_000
        True
    """
    page = attention_page(maps, title=title, next_tokens=next_tokens)
    write_atomically(Path(path), page.encode("utf-8", "replace"))


def _check(maps: Sequence[AttentionMap]) -> None:
    lengths = {m.kind: (len(m.queries), len(m.keys)) for m in maps}
    if not maps or len(lengths) < len(maps):
        got = ", ".join(m.kind for m in maps) or "none"
        raise ConfigError(f"attention_page: maps: expected one map of each kind, got {got}")
    queries, keys = lengths.get("cross", (None, None))
    for kind, name, cross in (("decoder", "queries", queries), ("encoder", "keys", keys)):
        own = next((m.queries for m in maps if m.kind == kind), None)
        if own is not None and cross is not None and len(own) != cross:
            raise ShapeError(
                f"attention_page: maps: expected the {name} of the cross map to be the {kind}'s"
                f" {len(own)} tokens, got {cross}"
            )


def _encode(attention: AttentionMap) -> dict[str, Any]:
    return {
        "kind": attention.kind,
        "layers": [int(number) for number in attention.layers],
        "heads": [int(number) for number in attention.heads],
        "queries": [visible(token) for token in attention.queries],
        "keys": [visible(token) for token in attention.keys],
        "weights": [[_letters(head) for head in layer] for layer in attention.weights],
    }


def _letters(weights: NDArray[np.float32]) -> str:
    """Write [T, S] weights as T words; the zeros at a row's end (a causal mask) are left out."""
    levels = np.rint(np.minimum(weights, 1) * 255).astype(int)
    rows = ("".join(_ALPHABET[level] for level in row) for row in levels)
    return " ".join(row.rstrip(_ALPHABET[0]) for row in rows)


def _candidates(
    maps: Sequence[AttentionMap], next_tokens: Sequence[Candidates] | None
) -> list[list[tuple[str, float]]] | None:
    if next_tokens is None:
        return None
    positions = len(max(maps, key=lambda m: m.kind != "encoder").queries)
    if len(next_tokens) != positions:
        raise ShapeError(
            f"attention_page: next_tokens: expected one list for each of {positions} positions,"
            f" got {len(next_tokens)}"
        )
    for position, entry in enumerate(next_tokens):
        for token, probability in entry:
            if not (math.isfinite(probability) and 0 <= probability <= 1 + 1e-3):
                raise ConfigError(
                    f"attention_page: next_tokens: expected probabilities from 0 to 1,"
                    f" got {probability!r} for {token!r} at position {position}"
                )
    return [[(visible(t), round(float(p), 4)) for t, p in entry] for entry in next_tokens]


def _colours() -> str:
    def variables(palette: Mapping[str, str]) -> str:
        return " ".join(f"--{name}: {colour};" for name, colour in palette.items())

    dark = f"@media (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ {variables(LIGHT)} }}\n{dark}\n"


def _asset(name: str) -> str:
    return (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")
