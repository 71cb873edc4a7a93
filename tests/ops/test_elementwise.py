"""What layers use and llmcore.ops does not show: called through the compiled module."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core
from llmcore.errors import DTypeError, ShapeError, TokenIndexError
from tolerance import round_bfloat16

SIZES = [1, 15, 16, 33, 40_001]


def floats(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def called(op, shape, dtype="float32", **arguments):
    """The output `y` of an operation of the compiled module."""
    y = _core.empty(list(shape), dtype=dtype)
    arguments = {
        k: _core.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()
    }
    getattr(_core, op)(**arguments, y=y)
    return y


@pytest.mark.parametrize("size", SIZES)
def test_add_scale_fill(rng, size, threads):
    a, b = floats(rng, size), floats(rng, size)
    for count in (1, 3):
        threads(count)
        assert np.array_equal(called("add", [size], a=a, b=b).numpy(), a + b)
        assert np.array_equal(called("scale", [size], x=a, factor=0.3).numpy(), a * np.float32(0.3))
        assert np.array_equal(called("fill", [size], value=2.5).numpy(), np.full(size, 2.5))


def test_outputs_may_be_inputs(rng):
    a, b = floats(rng, 3, 37), floats(rng, 3, 37)
    total = _core.as_tensor(a.copy())
    _core.add(a=total, b=_core.as_tensor(b), y=total)
    assert np.array_equal(total.numpy(), a + b)
    _core.dropout(p=0.5, seed=3, offset=0, x=total, residual=total, y=total)
    dropped = called("dropout", [3, 37], p=0.5, seed=3, offset=0, x=a + b).numpy()
    assert np.array_equal(total.numpy(), dropped + (a + b))


def test_dropout_adds_the_residual_after(rng):
    x, residual = floats(rng, 5, 7), floats(rng, 5, 7)
    dropped = called("dropout", [5, 7], p=0.25, seed=3, offset=6, x=x).numpy()
    y = called("dropout", [5, 7], p=0.25, seed=3, offset=6, x=x, residual=residual).numpy()
    # Fused multiply-adds round once where this rounds twice.
    assert np.abs(y - (dropped + residual)).max() <= 2.0**-22


SPECIAL = [0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan, 65504, 65519, 65520, 1e38, 3.4e38]
SPECIAL += [
    2.0**-14,
    2.0**-24,
    2.0**-25,
    1.5 * 2.0**-25,
    -3 * 2.0**-26,
    1e-8,
    1 + 2.0**-11,
    1 + 2.0**-8,
]


def awkward(rng):
    """Values of every size a half can hold, ties among them, and those it cannot."""
    sizes = floats(rng, 4000) * np.float32(2) ** rng.integers(-27, 17, 4000).astype(np.float32)
    ties = (sizes.view(np.uint32) & np.uint32(0xFFFFE000) | np.uint32(0x1000)).view(np.float32)
    return np.concatenate([np.array(SPECIAL, np.float32), sizes, ties])


def test_cast_float16_is_ieee(rng):
    x = awkward(rng)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    half = called("cast", x.shape, "float16", x=x)
    assert np.array_equal(half.numpy(), want, equal_nan=True)
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert np.array_equal(
        called("cast", every.shape, x=every).numpy(), every.astype(np.float32), equal_nan=True
    )


@pytest.mark.parametrize("size", [1, 16, 31, 8012])
def test_cast_bfloat16_rounds_to_nearest_even(rng, size):
    x = awkward(rng)[:size]
    half = called("cast", x.shape, "bfloat16", x=x)
    finite = np.isfinite(x)
    assert np.array_equal(half.numpy()[finite], round_bfloat16(x)[finite])
    assert np.array_equal(half.numpy()[~finite], x[~finite], equal_nan=True)
    assert np.array_equal(called("cast", x.shape, x=half).numpy(), half.numpy(), equal_nan=True)


@pytest.mark.parametrize(("rows", "width"), [(1, 1), (9, 5), (301, 129)])
def test_gather_and_scatter_rows(rng, threads, rows, width):
    index = np.sort(rng.integers(0, rows, rows // 2 + 1)).astype(np.int32)
    x, dy = floats(rng, rows, width), floats(rng, len(index), width)
    want = np.zeros_like(x)
    np.add.at(want, index, dy)
    for count in (1, 2, 8):
        threads(count)
        gathered = called("gather_rows", dy.shape, x=x, index=index).numpy()
        assert np.array_equal(gathered, x[index])
        assert np.array_equal(called("scatter_rows", x.shape, x=dy, index=index).numpy(), want)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda x: called("add", [2, 3], a=x, b=x[:1]),
            ShapeError,
            ["add", "b", "[2, 3]", "[1, 3]"],
        ),
        (lambda x: called("cast", [2, 3], x=x), DTypeError, ["cast", "float32"]),
        (
            lambda x: called("gather_rows", [1, 3], x=x, index=np.array([2], np.int32)),
            TokenIndexError,
            ["gather_rows", "index[0]", "[0, 2)", "got 2"],
        ),
        (
            lambda x: called("scatter_rows", [5, 3], x=x, index=np.array([3, 1], np.int32)),
            ShapeError,
            ["scatter_rows", "ascending", "3", "1"],
        ),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((2, 3), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
    assert isinstance(raised.value, llmcore.LlmcoreError)
