"""Attention weights with the tokens they belong to, checked once for every picture of them."""

from __future__ import annotations

import numbers
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import ConfigError, DTypeError, ShapeError

Kind = Literal["encoder", "decoder", "cross"]

_SUM_TOLERANCE = 1e-3  # what a softmax in bfloat16, summed over thousands of keys, may be off

# White space with signs of its own; all other control characters have theirs at U+2400.
_SIGNS = {" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽", "\x7f": "␡"}
_JOINERS = "\u200c\u200d"  # part of how Persian, Hindi and emoji are written


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """How much every query token looks at every key token, for some layers and heads.

    Args:
        kind: whose attention it is: "encoder" and "decoder" look at themselves, "cross" is the
            decoder looking at the encoder.
        weights: [L, H, T, S] floating-point numbers; each row of S is what one query spends on the
            keys, nothing below 0, at most 1 together (less where dropout or a mask took some away).
        queries: T tokens as text, those that look; empty stands for their positions.
        keys: S tokens as text, those looked at; empty stands for their positions.
        layers: the numbers of the L layers in the model; empty stands for 0, 1, 2, ….
        heads: the numbers of the H heads; empty stands for 0, 1, 2, ….

    Raises:
        DTypeError: the weights are not numbers.
        ShapeError: the weights do not have four axes of at least 1, or their sizes are not those
            of tokens, layers and heads.
        ConfigError: anything else is not as told above; every problem is listed.

    Example:
        >>> import numpy as np
        >>> from llmcore.viz import AttentionMap
        >>> words = ["a", " rose", " is"]
        >>> AttentionMap("decoder", np.tri(3)[None, None] / [[1], [2], [3]], words, words)
        AttentionMap(decoder: 1 layer × 1 head, 3 queries × 3 keys)
    """

    kind: Kind
    weights: NDArray[np.float32]
    queries: Sequence[str] = ()
    keys: Sequence[str] = ()
    layers: Sequence[int] = ()
    heads: Sequence[int] = ()

    def __post_init__(self) -> None:
        try:
            weights = np.asarray(self.weights, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise DTypeError(
                f"AttentionMap: weights: expected an array of numbers: {error}"
            ) from None
        if weights.ndim != 4 or 0 in weights.shape:
            raise ShapeError(
                "AttentionMap: weights: expected [layers, heads, queries, keys], each at least 1,"
                f" got the shape {list(weights.shape)}"
            )
        fields: dict[str, Sequence[Any]] = {}
        for axis, name in enumerate(("layers", "heads", "queries", "keys")):
            size, values = weights.shape[axis], tuple(getattr(self, name))
            fields[name] = values or tuple(range(size) if axis < 2 else map(str, range(size)))
            if len(fields[name]) != size:
                raise ShapeError(
                    f"AttentionMap: {name}: expected {size} for weights of the shape"
                    f" {list(weights.shape)}, got {len(values)}"
                )
        problems = _problems(self.kind, weights, fields)
        if problems:
            raise ConfigError.listing("AttentionMap", problems)
        for name, value in [("weights", weights), *fields.items()]:
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        size = _count(len(self.layers), "layer"), _count(len(self.heads), "head")
        return (
            f"AttentionMap({self.kind}: {' × '.join(size)},"
            f" {len(self.queries)} queries × {len(self.keys)} keys)"
        )


def as_map(attention: Any) -> AttentionMap:
    """Take a map, or the plain weights of one sequence, as a map.

    Args:
        attention: a map, or an array [1, L, H, T, S] as `Transformer.attention_maps` gives it; axes
            may be left out from the front. Where T and S differ it is "cross", where nothing looks
            ahead "decoder", else "encoder".

    Raises:
        DTypeError: neither.
        ShapeError, ConfigError: as for `AttentionMap`.

    Example:
        >>> as_map([[1.0, 0.0], [0.5, 0.5]])
        AttentionMap(decoder: 1 layer × 1 head, 2 queries × 2 keys)
    """
    if isinstance(attention, AttentionMap):
        return attention
    try:
        weights = np.asarray(attention, np.float32)
    except (TypeError, ValueError):
        weights = np.zeros((), np.float32)
    if weights.ndim < 2:
        raise DTypeError(
            "viz: attention must be an AttentionMap or its weights [layers, heads, queries, keys], "
            f"got a {type(attention).__name__}"
        )
    if weights.ndim == 5 and len(weights) == 1:
        weights = weights[0]
    weights = weights[(None,) * (4 - weights.ndim)]
    own: Kind = "encoder" if np.triu(weights, 1).any() else "decoder"
    return AttentionMap("cross" if weights.shape[-1] != weights.shape[-2] else own, weights)


def as_maps(maps: Any) -> list[AttentionMap]:
    """Take one map or several, each as `as_map` does."""
    one = isinstance(maps, AttentionMap) or hasattr(maps, "__array__")
    if not one and not isinstance(maps, Iterable):
        return [as_map(maps)]
    return [as_map(each) for each in ([maps] if one else maps)]


def visible(token: str) -> str:
    r"""Write a token so that every character of it can be seen and none disturbs its neighbours.

    Example:
        >>> from llmcore.viz.attention import visible
        >>> print(visible(" the"), visible("\n\n"), visible(""), visible("\u200b"))
        ␣the ↵↵ ∅ [U+200B]
    """
    if token and unicodedata.category(token[0]).startswith("M"):
        token = "◌" + token  # an accent wants a letter to sit on
    return "".join(map(_sign, token)) or "∅"


def _sign(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in _SIGNS:
        return _SIGNS[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if category == "Cs":  # half of a UTF-16 pair: not writable as UTF-8
        return "\ufffd"
    if category in ("Cc", "Cf") and character not in _JOINERS:
        return f"[U+{code:04X}]"
    return "␣" if character.isspace() else character


def _problems(
    kind: Any, weights: NDArray[np.float32], values: Mapping[str, Sequence[Any]]
) -> list[str]:
    problems = []
    if kind not in get_args(Kind):
        problems.append(f"kind: expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    for name in ("queries", "keys"):
        bad = [token for token in values[name] if not isinstance(token, str)]
        if bad:
            problems.append(
                f"{name}: expected tokens as text, got {bad[0]!r}; decode the ids first"
            )
    for name in ("layers", "heads"):
        whole = all(isinstance(number, numbers.Integral) for number in values[name])
        if not whole or len(set(values[name])) < len(values[name]):
            problems.append(f"{name}: expected whole numbers, each once, got {list(values[name])}")
    finite = np.isfinite(weights)
    sums = weights.sum(axis=-1)
    if not finite.all():
        problems.append(f"weights: expected finite numbers, got {weights[~finite][0]}")
    elif weights.min() < 0:
        problems.append(f"weights: expected nothing below 0, got {weights.min():.4g}")
    elif sums.max() > 1 + _SUM_TOLERANCE:
        where = [int(i) for i in np.unravel_index(sums.argmax(), sums.shape)]
        problems.append(
            "weights: expected rows that sum to at most 1, as softmax makes them;"
            f" [layer, head, query] {where} sums to {sums.max():.4g}"
        )
    return problems


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
