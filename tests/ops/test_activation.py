"""Activation functions against float64, on random shapes and over everything float32 can hold."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core, ops
from reference import activation as reference
from tolerance import assert_matches

SHAPES = [(1,), (3, 5), (2, 16), (7, 33), (5, 11, 67)]

# name -> (op, its gradient); names are those of the reference
OPS = {
    "relu": (ops.relu, ops.relu_backward),
    "gelu": (ops.gelu, ops.gelu_backward),
    "gelu_tanh": (
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda dy, x: ops.gelu_backward(dy, x, approximate="tanh"),
    ),
    "silu": (ops.silu, ops.silu_backward),
}


def normal(rng, shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPS)
def test_activations(rng, name, shape):
    forward, backward = OPS[name]
    x, dy = normal(rng, shape, 3), normal(rng, shape)
    assert_matches(forward(x), getattr(reference, name), x)
    assert_matches(backward(dy, x), getattr(reference, f"{name}_backward"), dy, x)


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(rng, shape):
    dy, gate, up = (normal(rng, shape, 2) for _ in range(3))
    assert_matches(ops.swiglu(gate, up), reference.swiglu, gate, up)
    assert_matches(ops.swiglu_backward(dy, gate, up), reference.swiglu_backward, dy, gate, up)


@pytest.mark.cpu("views that share memory")
def test_gate_and_up_may_be_halves_of_one_matrix(rng):
    rows, width = 9, 21
    packed, dy = normal(rng, (rows, 2 * width)), normal(rng, (rows, width))
    gate, up = packed[:, :width].copy(), packed[:, width:].copy()
    want = [t.numpy() for t in (ops.swiglu(gate, up), *ops.swiglu_backward(dy, gate, up))]
    flat = packed.reshape(-1)
    halves = [
        _core.as_tensor(flat[start:][: rows * width].reshape(rows, width)) for start in (0, width)
    ]
    strided = {"activation": "silu", "gate": halves[0], "up": halves[1], "row_stride": 2 * width}
    y = _core.empty([rows, width])
    _core.gated_forward(**strided, y=y)
    assert np.array_equal(y.numpy(), want[0])
    _core.gated_backward(  # in place
        **strided, drow_stride=2 * width, dy=llmcore.tensor(dy), dgate=halves[0], dup=halves[1]
    )
    assert np.array_equal(packed, np.concatenate(want[1:], axis=1))


# Relative accuracy in units of the last place: the documented bounds of simd/math.h, plus what the
# formulas around them add. An argument rounded before an exponential costs |argument| / 2 ulp more.
RELATIVE = [
    ("silu", -80, 80, lambda x: 6.0),
    ("gelu", -12.5, 12.5, lambda x: 10.0),
    ("gelu_tanh", -9, 9, lambda x: 8.0 + 1.5 * np.abs(1.6 * x + 0.0714 * x**3)),
]


@pytest.mark.parametrize(("name", "low", "high", "bound"), RELATIVE, ids=lambda v: str(v)[:9])
def test_relative_accuracy_far_from_zero(name, low, high, bound):
    x = np.linspace(low, high, 200_001).astype(np.float32)
    small = np.logspace(-30, 0, 10_001).astype(np.float32)
    x = np.concatenate([x, small, -small])
    want = getattr(reference, name)(x.astype(np.float64))
    got = OPS[name][0](x).numpy().astype(np.float64)
    ulps = np.abs(got - want) / np.maximum(np.abs(want), 2.0**-126) * 2.0**23
    worst = np.argmax(ulps - bound(x))
    assert (ulps <= bound(x)).all(), f"{ulps[worst]:.2f} ulp at {x[worst]}"


@pytest.mark.parametrize("name", OPS)
def test_extremes_neither_overflow_nor_lose_nan(name):
    forward, backward = OPS[name]
    x = np.array([-3e38, -1e20, -200, 200, 1e20, 3e38, np.nan], np.float32)
    y = forward(x).numpy()
    assert np.array_equal(y[:3], [0, 0, 0])
    assert np.array_equal(y[3:6], x[3:6])
    assert np.isnan(y[6])
    slope = backward(np.ones_like(x), x).numpy()
    assert np.array_equal(slope[:6], [0, 0, 0, 1, 1, 1])
    assert np.array_equal(forward(np.zeros(3, np.float32)).numpy(), np.zeros(3))


def test_results_do_not_depend_on_threads(rng, threads):
    x, dy, up = (normal(rng, (77, 1031), 2) for _ in range(3))
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        tensors = [f(x) for f, _ in OPS.values()] + [b(dy, x) for _, b in OPS.values()]
        tensors += [ops.swiglu(x, up), *ops.swiglu_backward(dy, x, up)]
        results.append([t.numpy().tobytes() for t in tensors])
    assert all(result == results[0] for result in results)


def test_an_element_does_not_depend_on_its_place(rng):
    x = normal(rng, 101, 3)
    for forward, _ in OPS.values():
        whole = forward(x).numpy()
        parts = [forward(x[i : i + 7]).numpy() for i in range(0, 101, 7)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_bfloat16_is_computed_in_float32(rng):
    x = llmcore.tensor(normal(rng, (5, 33)), "bfloat16")
    y = ops.silu(x)
    assert y.dtype == "bfloat16"
    assert_matches(y, reference.silu, x.numpy(), dtype="bfloat16")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: ops.gelu(x, approximate="erf"), ValueError, ["approximate", "'tanh'", "'erf'"]),
        (lambda x: ops.relu(x.astype(np.float64)), TypeError, ["relu", "x", "float32", "float64"]),
        (lambda x: ops.silu_backward(x[:1], x), ValueError, ["dy", "[2, 4]", "[1, 4]"]),
        (lambda x: ops.swiglu(x, x[:, :3]), ValueError, ["swiglu", "up", "[2, 4]", "[2, 3]"]),
        (lambda x: ops.swiglu_backward(x[0], x, x), ValueError, ["dy", "[2, 4]", "[4]"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((2, 4), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
