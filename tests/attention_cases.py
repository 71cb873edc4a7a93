"""Sizes and arrays that attention is tested with, and how they go through the core."""

from __future__ import annotations

import numpy as np

import llmcore
from llmcore import _core

# B, Hq, Hkv, T, S, D, Dv
SIZES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 3, 7, 7, 5, 5),
    (1, 4, 1, 1, 130, 64, 64),
    (2, 6, 2, 33, 129, 7, 80),
    (3, 2, 2, 64, 64, 64, 64),
    (1, 2, 1, 101, 70, 80, 33),
    (1, 2, 2, 9, 200, 128, 1),
    (1, 6, 3, 65, 65, 256, 16),
]


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def tensors(rng, sizes):
    batch, heads, kv_heads, queries, keys, width, value_width = sizes
    return (
        draw(rng, batch, heads, queries, width),
        draw(rng, batch, kv_heads, keys, width),
        draw(rng, batch, kv_heads, keys, value_width),
        draw(rng, batch, heads, queries, value_width),
    )


def run_core(q, k, v, dout, **options):
    """Forward and backward straight through the core; arrays as it takes them."""
    q, k, v, dout = map(llmcore.tensor, (q, k, v, dout))
    call = _core.AttentionCall(op="attention", q=q, k=k, v=v, **options)
    rows_first = options.get("rows_first", False)
    out = _core.empty(dout.shape)
    sizes = [q.shape[i] for i in ((0, 2, 1) if rows_first else (0, 1, 2))]
    softmax = _core.empty([*sizes, 2])
    gradients = [_core.empty(x.shape) for x in (q, k, v)]
    _core.attention_forward(call, out=out, softmax=softmax)
    dq, dk, dv = gradients
    _core.attention_backward(call, out=out, softmax=softmax, dout=dout, dq=dq, dk=dk, dv=dv)
    return [x.numpy() for x in (out, *gradients)]
