"""Rotary position embedding against float64, and against its defining properties."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core, ops
from reference import rope as reference
from tolerance import assert_matches

SHAPES = [
    ((1, 1, 1, 2), 0), ((2, 3, 5, 6), 0), ((2, 3, 5, 7), 4), ((1, 2, 33, 64), 0),
    ((3, 1, 17, 80), 20), ((2, 2, 9, 128), 64), ((1, 3, 2, 66), 0),
]  # fmt: skip


def arrays(rng, shape, rotary_dim):
    half = (rotary_dim or shape[-1]) // 2
    x = rng.standard_normal(shape).astype(np.float32)
    angles = rng.uniform(-10, 10, (shape[0], shape[2], half))
    return x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize(("shape", "rotary_dim"), SHAPES)
@pytest.mark.parametrize("interleaved", [False, True])
def test_rope(rng, shape, rotary_dim, interleaved):
    x, cos, sin = arrays(rng, shape, rotary_dim)
    kwargs = {"interleaved": interleaved, "rotary_dim": rotary_dim}
    assert_matches(ops.rope(x, cos, sin, **kwargs), reference.rope, x, cos, sin, interleaved)
    assert_matches(
        ops.rope_backward(x, cos, sin, **kwargs), reference.rope_backward, x, cos, sin, interleaved
    )


@pytest.mark.parametrize("interleaved", [False, True])
def test_table_with_position_ids(rng, interleaved):
    x, _, _ = arrays(rng, (2, 3, 5, 8), 0)
    angles = rng.uniform(-3, 3, (11, 4)).astype(np.float32)
    cos, sin = np.cos(angles), np.sin(angles)
    ids = rng.integers(0, 11, (2, 5))
    by_table = ops.rope(x, cos, sin, position_ids=ids, interleaved=interleaved).numpy()
    assert np.array_equal(
        by_table, ops.rope(x, cos[ids], sin[ids], interleaved=interleaved).numpy()
    )


def test_scores_depend_on_distance_alone(rng):
    """The point of it (Su et al. 2021, equation 16): q at m and k at n see only m - n."""
    q, k = rng.standard_normal((2, 16)).astype(np.float32)
    angles = np.outer(np.arange(40), 100.0 ** (-np.arange(8) / 8)).astype(np.float32)

    def rotated(x, position):
        cos, sin = np.cos(angles), np.sin(angles)
        return ops.rope(x.reshape(1, 1, 1, 16), cos, sin, position_ids=[[position]]).numpy().ravel()

    near, far = (rotated(q, m) @ rotated(k, m - 3) for m in (5, 35))
    assert abs(near - far) < 1e-4
    assert abs(near - rotated(q, 5) @ rotated(k, 1)) > 1e-3


@pytest.mark.parametrize("interleaved", [False, True])
def test_in_place_equals_out_of_place(rng, interleaved):
    x, cos, sin = arrays(rng, (2, 3, 5, 24), 16)
    expected = ops.rope(x, cos, sin, rotary_dim=16, interleaved=interleaved).numpy()
    same = _core.as_tensor(x)
    _core.rope(
        x=same, y=same,
        cos=_core.as_tensor(cos.reshape(10, 8)), sin=_core.as_tensor(sin.reshape(10, 8)),
        positions=_core.as_tensor(np.arange(10, dtype=np.int32).reshape(2, 5)),
        interleaved=interleaved, inverse=False,
    )  # fmt: skip
    assert np.array_equal(same.numpy(), expected)


def test_rows_depend_on_neither_threads_nor_neighbours(rng, threads):
    x, cos, sin = arrays(rng, (3, 2, 50, 32), 0)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(ops.rope(x, cos, sin).numpy())
    assert all(np.array_equal(result, results[0]) for result in results)
    alone = ops.rope(x[1:2, :, 7:8], cos[1:2, 7:8], sin[1:2, 7:8]).numpy()
    assert np.array_equal(alone[0, :, 0], results[0][1, :, 7])


def test_bfloat16(rng):
    x, cos, sin = (llmcore.tensor(a, "bfloat16") for a in arrays(rng, (1, 2, 3, 8), 0))
    y = ops.rope(x, cos, sin)
    assert y.dtype == "bfloat16"
    assert_matches(y, reference.rope, x.numpy(), cos.numpy(), sin.numpy(), dtype="bfloat16")
    wide = ops.rope(x, cos.numpy(), sin.numpy())
    assert wide.dtype == "bfloat16"
    assert np.array_equal(wide.numpy(), y.numpy())


def test_empty(rng):
    x, cos, sin = arrays(rng, (2, 3, 0, 8), 0)
    assert ops.rope(x, cos, sin).shape == (2, 3, 0, 8)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"rotary_dim": 3}, ValueError, ["rotary_dim", "even", "3"]),
        ({"rotary_dim": 8}, ValueError, ["rotary_dim", "D = 6", "8"]),
        ({"rotary_dim": -2}, ValueError, ["rotary_dim", "-2"]),
        ({"x": np.zeros((2, 5, 6), np.float32)}, ValueError, ["x", "[B, H, T, D]", "[2, 5, 6]"]),
        ({"cos": np.zeros((2, 5, 2), np.float32)}, ValueError, ["cos", "[2, 5, 3]", "[2, 5, 2]"]),
        ({"sin": np.zeros((2, 4, 3), np.float32)}, ValueError, ["sin", "[2, 5, 3]", "[2, 4, 3]"]),
        ({"position_ids": np.zeros((2, 5), int)}, ValueError, ["cos", "[max_positions, R/2]"]),
        ({"x": np.zeros((2, 1, 5, 6))}, TypeError, ["x", "float32", "float64"]),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    half = np.zeros((2, 5, 3), np.float32)
    args = {"x": np.zeros((2, 1, 5, 6), np.float32), "cos": half, "sin": half} | change
    with pytest.raises(error) as raised:
        ops.rope(**args)
    assert all(word in str(raised.value) for word in words), raised.value


def test_position_outside_the_table():
    table = np.zeros((64, 3), np.float32)
    ids = np.zeros((2, 5), int)
    ids[1, 4] = 64
    with pytest.raises(
        IndexError, match=r"position_ids\[1, 4\] = 64 is outside the table of 64 rows"
    ):
        ops.rope(np.zeros((2, 1, 5, 6), np.float32), table, table, position_ids=ids)
