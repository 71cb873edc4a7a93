"""Products on a GPU of float32 and bfloat16 together, and what follows them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import llmcore
from llmcore import _core
from reference import activation as activations
from tolerance import round_bfloat16

pytestmark = pytest.mark.skipif(not llmcore.cuda_available(), reason="no GPU")

TYPES = ["float32", "bfloat16"]
F = np.float32


def on_gpu(x, dtype="float32"):
    return llmcore.tensor(x, dtype).to(device="cuda")


def stored(x, dtype):
    return (round_bfloat16(x) if dtype == "bfloat16" else x).astype(np.float64)


def close(got, wanted, dtype):
    error = np.linalg.norm(got.numpy() - wanted) / np.linalg.norm(wanted)
    assert error <= (1e-2 if dtype == "bfloat16" else 1e-5), error


@pytest.mark.parametrize(("type_a", "type_b", "type_c"), [*itertools.product(TYPES, repeat=3)])
@pytest.mark.parametrize("size", [(1, 5, 3), (3, 17, 4100), (16, 64, 33), (33, 24, 100)])
def test_types_may_differ(rng, size, type_a, type_b, type_c):
    """Where one operand is bfloat16, the other is rounded to it; sums are float32."""
    m, n, k = size
    a, b = rng.standard_normal((m, k), dtype=F), rng.standard_normal((n, k), dtype=F)
    old = rng.standard_normal((m, n), dtype=F)
    narrow = "bfloat16" if "bfloat16" in (type_a, type_b) else "float32"
    wanted = stored(a, narrow) @ stored(b, narrow).T
    for added in (0, 1):
        c = on_gpu(old, type_c)
        _core.matmul(
            a=on_gpu(a, type_a), b=on_gpu(b, type_b), c=c, transpose_b=True, accumulate=added == 1
        )
        close(c, wanted + added * stored(old, type_c), type_c)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["relu", "gelu_tanh"])
@pytest.mark.parametrize("size", [(7, 24, 16), (40, 24, 16), (40, 23, 17)])
def test_what_the_library_does_and_what_it_cannot(rng, size, name, bias, dtype):
    """Activations with and without what they are made of, their derivatives, residuals in place."""
    m, n, k = size
    x, w = rng.standard_normal((m, k), dtype=F), rng.standard_normal((n, k), dtype=F)
    y, b = rng.standard_normal((m, n), dtype=F), rng.standard_normal(n, dtype=F)
    z = stored(x, dtype) @ stored(w, dtype).T + bias * b.astype(np.float64)
    forward, backward = getattr(activations, name), getattr(activations, f"{name}_backward")
    operands = {"a": on_gpu(x, dtype), "b": on_gpu(w, dtype), "transpose_b": True}
    before, c = on_gpu(y, dtype), on_gpu(y, dtype)
    extra = {"bias": on_gpu(b)} if bias else {}
    _core.matmul(c=c, activation=name, pre_activation=before, **operands, **extra)
    close(before, z, dtype)
    close(c, forward(z), dtype)
    c = on_gpu(y, dtype)
    _core.matmul(c=c, residual=c, activation=name, **operands, **extra)
    close(c, forward(z) + stored(y, dtype), dtype)
    c = on_gpu(y, dtype)
    _core.matmul(c=c, residual=c, **operands, **extra)
    close(c, z + stored(y, dtype), dtype)
    gate = on_gpu(y, dtype)
    _core.matmul(c=c, gate_input=gate, gate_activation=name, gate_output=gate, **operands, **extra)
    close(c, backward(z, stored(y, dtype)), dtype)
    close(gate, forward(stored(y, dtype)), dtype)
