"""Every operation's backward against finite differences of its forward.

The references in tests/reference were derived by hand; this was not. A layer's and a model's
gradients are checked in the same way in test_model.py.
"""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ops

F = np.float32
TARGETS = np.array([3, 0, -100, 4])
IDS = np.array([[1, 4, 1], [0, 2, 4]])
COS, SIN = (f(np.arange(12).reshape(2, 3, 2)).astype(F) for f in (np.cos, np.sin))
MASK = np.tril(np.ones((5, 5), bool))


def smooth(rng, *shape):
    return rng.standard_normal(shape).astype(F)


# Name: forward, backward (given dy and the arguments), shapes of the differentiable arguments.
# A backward may return more gradients than are wanted; None among them means "not differentiable".
CASES = {
    "matmul": (ops.matmul, ops.matmul_backward, [(2, 3, 4), (4, 5)]),
    "matmul-transposed": (
        lambda a, b: ops.matmul(a, b, transpose_a=True, transpose_b=True),
        lambda dy, a, b: ops.matmul_backward(dy, a, b, transpose_a=True, transpose_b=True),
        [(4, 3), (5, 4)],
    ),
    "linear": (
        ops.linear,
        lambda dy, x, w, b: ops.linear_backward(dy, x, w, has_bias=True),
        [(3, 4), (5, 4), (5,)],
    ),
    "layer_norm": (
        ops.layer_norm,
        lambda dy, x, w, b: ops.layer_norm_backward(dy, x, w),
        [(3, 7), (7,), (7,)],
    ),
    "rms_norm": (ops.rms_norm, ops.rms_norm_backward, [(3, 7), (7,)]),
    "gelu": (ops.gelu, ops.gelu_backward, [(3, 5)]),
    "gelu_tanh": (
        lambda x: ops.gelu(x, approximate="tanh"),
        lambda dy, x: ops.gelu_backward(dy, x, approximate="tanh"),
        [(3, 5)],
    ),
    "silu": (ops.silu, ops.silu_backward, [(3, 5)]),
    "swiglu": (ops.swiglu, ops.swiglu_backward, [(3, 5), (3, 5)]),
    "softmax": (ops.softmax, lambda dy, x: ops.softmax_backward(dy, ops.softmax(x)), [(3, 5)]),
    "log_softmax": (
        ops.log_softmax,
        lambda dy, x: ops.log_softmax_backward(dy, ops.log_softmax(x)),
        [(3, 5)],
    ),
    "embedding": (
        lambda w: ops.embedding(IDS, w),
        lambda dy, w: ops.embedding_backward(dy, IDS, w),
        [(5, 6)],
    ),
    "rope": (
        lambda x: ops.rope(x, COS, SIN),
        lambda dy, x: ops.rope_backward(dy, COS, SIN),
        [(2, 2, 3, 4)],
    ),
    "attention": (
        lambda q, k, v, b: ops.attention(q, k, v, bias=b, causal=True, softcap=3.0),
        lambda dy, q, k, v, b: ops.attention_backward(
            dy, q, k, v, bias=b, causal=True, softcap=3.0
        ),
        [(2, 4, 5, 3), (2, 2, 5, 3), (2, 2, 5, 6), (1, 4, 5, 5)],
    ),
    "attention-masked": (
        lambda q, k, v: ops.attention(q, k, v, mask=MASK, kv_lengths=[4, 5], window=(2, 0)),
        lambda dy, q, k, v: ops.attention_backward(
            dy, q, k, v, mask=MASK, kv_lengths=[4, 5], window=(2, 0)
        ),
        [(2, 2, 5, 3), (2, 2, 5, 3), (2, 2, 5, 3)],
    ),
    "cross_entropy": (
        lambda x: ops.cross_entropy(x, TARGETS, label_smoothing=0.1),
        lambda dy, x: ops.cross_entropy_backward(dy, x, TARGETS, label_smoothing=0.1),
        [(4, 6)],
    ),
    "linear_cross_entropy": (
        lambda h, w, b: ops.linear_cross_entropy(h, w, TARGETS, bias=b, label_smoothing=0.1),
        lambda dy, h, w, b: ops.linear_cross_entropy_backward(
            dy, h, w, TARGETS, bias=b, label_smoothing=0.1
        ),
        [(4, 3), (6, 3), (6,)],
    ),
    "dropout": (
        lambda x: ops.dropout(x, 0.4, seed=3),
        lambda dy, x: ops.dropout_backward(dy, 0.4, seed=3),
        [(3, 9)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_backward_is_the_derivative_of_forward(name, rng):
    forward, backward, shapes = CASES[name]
    arguments = [smooth(rng, *shape) for shape in shapes]
    dy = smooth(rng, *np.shape(forward(*arguments)))
    gradients = backward(dy, *arguments)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    def total(place, step, direction):
        changed = list(arguments)
        changed[place] = (arguments[place] + F(step) * direction).astype(F)
        return float((np.asarray(forward(*changed), np.float64) * dy).sum())

    for place, argument in enumerate(arguments):
        direction = smooth(rng, *argument.shape)
        central = [
            (total(place, h, direction) - total(place, -h, direction)) / (2 * h)
            for h in (0.04, 0.02)
        ]
        extrapolated = (4 * central[1] - central[0]) / 3  # Richardson: the error is of order h^4
        gradient = np.asarray(gradients[place], np.float64)
        size = np.abs(gradient).sum() + np.abs(dy).sum()  # rounding of the sum, over the step
        derivative = (gradient * direction).sum()
        assert extrapolated == pytest.approx(derivative, rel=1e-3, abs=2e-5 * size)


def test_every_backward_is_checked():
    backwards = {name.removesuffix("_backward") for name in ops.__all__ if "_backward" in name}
    checked = {name.split("-")[0] for name in CASES}
    assert backwards - checked == {"relu"}  # its derivative jumps; see test_activation
