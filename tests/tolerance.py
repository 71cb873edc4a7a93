"""How close is close enough: never by eye.

An operation's error against float64 may be at most twice that of the same formula written in NumPy
at the operation's own precision, plus a few units in the last place for results whose reference
happens to be exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPS = {"float32": 2.0**-24, "bfloat16": 2.0**-9}
FLOOR_ULPS = 4.0


def round_bfloat16(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return rounded.astype(np.uint32).view(np.float32)


def assert_matches(
    actual: Any, reference: Callable[..., Any], *args: Any, dtype: str = "float32", **kwargs: Any
) -> None:
    """Check `actual` against `reference(*args)` computed in float64, by the rule above.

    `reference` is NumPy code that keeps the precision of its arguments; it may return a tuple.
    Float arrays among `args` are widened for the exact result and given as they are (rounded to
    bfloat16 on the way out, for that dtype) for the error that is allowed.
    """
    exact = _as_tuple(reference(*map(_widen, args), **{k: _widen(v) for k, v in kwargs.items()}))
    plain = _as_tuple(reference(*args, **kwargs))
    actual = _as_tuple(actual)
    assert len(actual) == len(exact), f"{len(actual)} results, expected {len(exact)}"
    for i, (got, want, same) in enumerate(zip(actual, exact, plain, strict=True)):
        if want is None:
            assert got is None, f"result {i} should be None"
            continue
        got = np.asarray(got, np.float64)
        same = round_bfloat16(np.asarray(same)) if dtype == "bfloat16" else same
        assert got.shape == np.shape(want), (
            f"result {i}: shape {got.shape}, expected {np.shape(want)}"
        )
        assert np.array_equal(np.isfinite(got), np.isfinite(want)), f"result {i}: NaN or infinity"
        finite = np.isfinite(want)
        if not finite.any():
            continue
        scale = np.abs(want[finite]).max()
        allowed = 2 * np.abs(same[finite] - want[finite]).max() + FLOOR_ULPS * EPS[dtype] * scale
        error = np.abs(got[finite] - want[finite]).max()
        assert error <= allowed, f"result {i}: error {error:.3g}, allowed {allowed:.3g}"


def assert_within(actual: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    """Check `actual` against `expected`, with a bound for every element."""
    excess = np.abs(actual - expected) - 1.01 * bound
    assert excess.max(initial=0.0) <= 1e-30, f"{excess.max():.3g} beyond the bound"


def _widen(x: Any) -> Any:
    return x.astype(np.float64) if isinstance(x, np.ndarray) and x.dtype == np.float32 else x


def _as_tuple(x: Any) -> Sequence[Any]:
    return x if isinstance(x, tuple) else (x,)
