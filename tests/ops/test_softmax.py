"""Softmax and its logarithm against float64; the exponential they share over its whole range."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ops
from reference import softmax as reference
from tolerance import assert_matches

OPS = {
    "softmax": (ops.softmax, ops.softmax_backward),
    "log_softmax": (ops.log_softmax, ops.log_softmax_backward),
}
CASES = [((1,), -1), ((3, 5), -1), ((7, 16), 0), ((4, 33, 3), 1), ((2, 3, 130), 2), ((3, 5003), 1)]


@pytest.mark.parametrize(("shape", "axis"), CASES)
@pytest.mark.parametrize("name", OPS)
def test_softmax(rng, name, shape, axis):
    forward, backward = OPS[name]
    x = rng.standard_normal(shape).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    y = getattr(reference, name)(x, axis)
    assert_matches(forward(x, axis=axis), getattr(reference, name), x, axis=axis)
    gradient = getattr(reference, f"{name}_backward")
    assert_matches(backward(dy, y, axis=axis), gradient, dy, y, axis=axis)


def test_large_logits_are_stable(rng):
    x = (rng.standard_normal((9, 37)) * 1e4).astype(np.float32)
    for name, (forward, _) in OPS.items():
        assert_matches(forward(x), getattr(reference, name), x)


def test_rows_with_minus_infinity():
    x = np.full((3, 21), -np.inf, np.float32)
    x[1, 20] = -1e30
    x[2, ::2] = 0
    y, log_y = ops.softmax(x).numpy(), ops.log_softmax(x).numpy()
    assert np.array_equal(y[0], np.zeros(21))
    assert np.array_equal(log_y[0], np.zeros(21))
    assert log_y[1, 20] == 0
    assert np.array_equal(log_y[1, :20], np.full(20, -np.inf))
    assert np.array_equal(y[1], np.eye(21)[20])
    assert np.array_equal(y[2, 1::2], np.zeros(10))
    assert y[2, ::2] == pytest.approx(np.full(11, 1 / 11))
    assert np.isnan(ops.softmax(np.array([0, np.nan, 1], np.float32)).numpy()).all()


def exp(x):
    """The kernels' exponential itself: a row of gradients that are 0 - exp(y) * 1."""
    y = np.append(x, np.float32(0))
    dy = np.append(np.zeros_like(x), np.float32(1))
    return -ops.log_softmax_backward(dy, y).numpy()[:-1]


def test_exponential_is_within_two_ulp():
    x = np.linspace(-86.9, 88.7, 400_001).astype(np.float32)
    tiny = np.logspace(-44, 0, 20_001).astype(np.float32)
    x = np.concatenate([x, tiny, -tiny])
    want = np.exp(x.astype(np.float64))
    ulps = np.abs(exp(x) - want) / np.spacing(want.astype(np.float32))
    assert ulps.max() <= 2.0, f"{ulps.max():.2f} ulp at {x[ulps.argmax()]}"


@pytest.mark.cpu("its exponential, which flushes what is below the smallest normal number")
def test_exponential_at_its_ends():
    x = np.array([0, -0.0, -np.inf, -3e38, -104, -90, 88.73, 89, 3e38, np.inf], np.float32)
    want = np.array([1, 1, 0, 0, 0, 0, np.inf, np.inf, np.inf, np.inf], np.float32)
    smallest = np.finfo(np.float32).tiny  # below it a device may give zero
    np.testing.assert_allclose(exp(x), want, rtol=0, atol=smallest)
    assert np.isnan(exp(np.array([np.nan], np.float32)))[0]
    just_inside = np.array([88.7228], np.float32)
    assert np.isfinite(exp(just_inside))[0]


def test_results_do_not_depend_on_threads_or_neighbours(rng, threads):
    x = (rng.standard_normal((300, 133)) * 3).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    for forward, backward in OPS.values():
        results = []
        for count in (1, 2, 3, 8):
            threads(count)
            y = forward(x)
            results.append((y.numpy().tobytes(), backward(dy, y).numpy().tobytes()))
        assert all(result == results[0] for result in results)
        assert np.array_equal(forward(x[7]).numpy(), forward(x).numpy()[7])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: ops.softmax(x, axis=2), ValueError, ["softmax", "axis", "2"]),
        (lambda x: ops.log_softmax(x.astype(int)), TypeError, ["log_softmax", "x", "float32"]),
        (lambda x: ops.softmax_backward(x[:1], x), ValueError, ["dy", "[2, 4]", "[1, 4]"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((2, 4), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
