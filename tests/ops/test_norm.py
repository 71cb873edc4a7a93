"""Layer norm and RMS norm against float64."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import ops
from reference import norm as reference
from tolerance import assert_matches

SHAPES = [(1, 3), (3, 5), (7, 16), (33, 257), (2, 3, 768)]


def arrays(rng, shape, *, weight=True):
    x = (rng.standard_normal(shape) * 3 + 1).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    w = rng.standard_normal(shape[-1]).astype(np.float32) if weight else None
    return x, dy, w


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_layer_norm(rng, shape, affine):
    x, dy, weight = arrays(rng, shape, weight=affine)
    bias = rng.standard_normal(shape[-1]).astype(np.float32) if affine else None
    assert_matches(ops.layer_norm(x, weight, bias), reference.layer_norm, x, weight, bias)
    assert_matches(
        ops.layer_norm_backward(dy, x, weight, has_bias=affine),
        reference.layer_norm_backward, dy, x, weight, affine,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm(rng, shape, affine):
    x, dy, weight = arrays(rng, shape, weight=affine)
    assert_matches(ops.rms_norm(x, weight), reference.rms_norm, x, weight)
    assert_matches(ops.rms_norm_backward(dy, x, weight), reference.rms_norm_backward, dy, x, weight)


def test_normalises_all_axes_from_axis_on(rng):
    x, _, _ = arrays(rng, (4, 3, 5))
    together = ops.layer_norm(x, axis=1).numpy()
    assert np.array_equal(together, ops.layer_norm(x.reshape(4, 15)).numpy().reshape(x.shape))


def test_rows_and_gradients_do_not_depend_on_threads(rng, threads):
    x, dy, weight = arrays(rng, (200, 96))
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        dx, dweight, dbias = ops.layer_norm_backward(dy, x, weight)
        results.append(
            [t.numpy().tobytes() for t in (ops.layer_norm(x, weight), dx, dweight, dbias)]
        )
    assert all(result == results[0] for result in results)


def test_bfloat16_is_summed_in_float32(rng):
    x, _, weight = arrays(rng, (5, 64))
    x16, w16 = llmcore.tensor(x, "bfloat16"), llmcore.tensor(weight, "bfloat16")
    y = ops.layer_norm(x16, w16)
    assert y.dtype == "bfloat16"
    assert_matches(y, reference.layer_norm, x16.numpy(), w16.numpy(), dtype="bfloat16")


def test_parameters_may_stay_float32(rng):
    x, dy, weight = arrays(rng, (5, 64))
    x16, dy16 = llmcore.tensor(x, "bfloat16"), llmcore.tensor(dy, "bfloat16")
    y = ops.layer_norm(x16, weight, weight)
    assert y.dtype == "bfloat16"
    known = (x16.numpy(), weight, weight)
    assert_matches(y, reference.layer_norm, *known, dtype="bfloat16")
    gradients = ops.layer_norm_backward(dy16, x16, weight)
    assert [gradient.dtype for gradient in gradients] == ["bfloat16", "float32", "float32"]
    with pytest.raises(llmcore.DTypeError, match="x must be float32 as dy is, got bfloat16"):
        ops.layer_norm_backward(dy, x16, weight)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: ops.layer_norm(x, np.ones(3, np.float32)), ValueError, ["weight", "[4]", "[3]"]),
        (lambda x: ops.layer_norm(x, axis=2), ValueError, ["axis", "2"]),
        (lambda x: ops.rms_norm(x.astype(np.float64)), TypeError, ["x", "float32", "float64"]),
        (lambda x: ops.layer_norm_backward(x[:1], x), ValueError, ["dy", "[2, 4]", "[1, 4]"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((2, 4), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
