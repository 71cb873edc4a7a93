"""Products of operands rounded to bfloat16, as training with dtype="bfloat16" takes them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import llmcore
from llmcore import _core

pytestmark = pytest.mark.cpu("a GPU rounds activations, not operands")

# M, N, K: one, odd, none, rows just below and above a strip, more than a block of K.
SIZES = [(1, 1, 1), (3, 7, 0), (1, 40, 33), (14, 16, 64), (15, 17, 31), (64, 130, 768),
         (100, 33, 3100), (29, 50, 6200)]  # fmt: skip
FORMS = list(itertools.product([False, True], repeat=2))
UNIT = 2.0**-24  # of the rounding of a float32 sum


def rounded(x):
    """To the nearest bfloat16, ties to even, in float64."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    even = (bits >> np.uint32(16)) & np.uint32(1)
    kept = (bits + np.uint32(0x7FFF) + even) & np.uint32(0xFFFF0000)
    return kept.view(np.float32).astype(np.float64)


def operands(rng, m, n, k, transpose_a, transpose_b):
    a = rng.standard_normal((k, m) if transpose_a else (m, k), dtype=np.float32)
    b = rng.standard_normal((n, k) if transpose_b else (k, n), dtype=np.float32)
    return a, b


def product(a, b, c, **kwargs):
    c = _core.as_tensor(c.copy())
    tensors = {k: _core.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in kwargs.items()}
    _core.matmul(a=_core.as_tensor(a), b=_core.as_tensor(b), c=c, bfloat16=True, **tensors)
    return c.numpy()


def exact(a, b, transpose_a, transpose_b):
    a, b = rounded(a), rounded(b)
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    return a @ b, np.abs(a) @ np.abs(b)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_every_form(rng, size, transpose_a, transpose_b):
    m, n, k = size
    a, b = operands(rng, m, n, k, transpose_a, transpose_b)
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    wanted, magnitude = exact(a, b, **flags)
    old = rng.standard_normal((m, n), dtype=np.float32)
    bound = UNIT * (k + 4) * (magnitude + np.abs(old) + 1)
    fresh = product(a, b, np.full((m, n), np.nan, np.float32), **flags)
    assert np.all(np.abs(fresh - wanted) <= bound)
    added = product(a, b, old, accumulate=True, **flags)
    assert np.all(np.abs(added - (wanted + old)) <= bound)


def test_what_follows_the_product(rng):
    a, b = operands(rng, 33, 50, 3500, False, True)
    bias = rng.standard_normal(50, dtype=np.float32)
    residual = rng.standard_normal((33, 50), dtype=np.float32)
    before = np.empty((33, 50), np.float32)
    y = product(
        a, b, residual, transpose_b=True, bias=bias, pre_activation=before, activation="relu",
        residual=residual,
    )  # fmt: skip
    wanted, magnitude = exact(a, b, False, True)
    bound = UNIT * 3504 * (magnitude + 3)
    assert np.all(np.abs(before - (wanted + bias)) <= bound)
    assert np.all(np.abs(y - (np.maximum(wanted + bias, 0) + residual)) <= bound)


def test_residual_in_place_over_several_blocks_of_k(rng):
    a, b = operands(rng, 20, 18, 7000, False, True)
    x = rng.standard_normal((20, 18), dtype=np.float32)
    c = _core.as_tensor(x.copy())
    _core.matmul(
        a=_core.as_tensor(a), b=_core.as_tensor(b), c=c, transpose_b=True, residual=c, bfloat16=True
    )
    wanted, magnitude = exact(a, b, False, True)
    assert np.all(np.abs(np.asarray(c) - (wanted + x)) <= UNIT * 7004 * (magnitude + np.abs(x)))


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
def test_bits_do_not_depend_on_threads_or_rows(rng, transpose_a, transpose_b):
    a, b = operands(rng, 61, 300, 900, transpose_a, transpose_b)
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    threads = llmcore.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            llmcore.set_num_threads(count)
            results.append(product(a, b, np.empty((61, 300), np.float32), **flags))
    finally:
        llmcore.set_num_threads(threads)
    assert all(np.array_equal(results[0], other) for other in results[1:])
    for row in (0, 13, 14, 60):
        one = np.ascontiguousarray(a[:, row : row + 1] if transpose_a else a[row : row + 1])
        alone = product(one, b, np.empty((1, 300), np.float32), **flags)
        assert np.array_equal(alone[0], results[0][row])


def test_what_is_not_finite_stays_in_its_row(rng):
    a, b = operands(rng, 16, 20, 40, False, True)
    a[3, 5], a[9, 0] = np.nan, np.inf
    y = product(a, b, np.empty((16, 20), np.float32), transpose_b=True)
    assert np.isnan(y[3]).all()
    assert not np.isfinite(y[9]).any()
    assert np.isfinite(np.delete(y, (3, 9), axis=0)).all()
