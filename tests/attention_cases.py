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


def run_core(q, k, v, dout, bias=None, dtype="float32", **options):
    """Forward and backward straight through the core; arrays as it takes them."""
    q, k, v, dout = (llmcore.tensor(x, dtype) for x in (q, k, v, dout))
    bias = None if bias is None else llmcore.tensor(bias)
    call = _core.AttentionCall(op="attention", q=q, k=k, v=v, bias=bias, **options)
    rows_first = options.get("rows_first", False)
    out = _core.empty(dout.shape, dtype)
    sizes = [q.shape[i] for i in ((0, 2, 1) if rows_first else (0, 1, 2))]
    softmax = _core.empty([*sizes, 2])
    dq, dk, dv = gradients = [_core.empty(x.shape, dtype) for x in (q, k, v)]
    dbias = None
    if bias is not None:
        dbias = llmcore.tensor(np.zeros(bias.shape, np.float32))
        gradients.append(dbias)
    _core.attention_forward(call, out=out, softmax=softmax)
    _core.attention_backward(
        call, out=out, softmax=softmax, dout=dout, dq=dq, dk=dk, dv=dv, dbias=dbias
    )
    return [x.numpy() for x in (out, *gradients)]


def philox_words(seed, stream, count):
    """Words 0 .. count - 1 of Philox 4x32-10 (core/random.h)."""
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [
        block & low,
        block >> shift,
        *(np.full_like(block, x) for x in (stream & 0xFFFFFFFF, stream >> 32)),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [
            (second >> shift) ^ c[1] ^ np.uint64(key[0]), second & low,
            (first >> shift) ^ c[3] ^ np.uint64(key[1]), first & low,
        ]  # fmt: skip
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(c, axis=1).reshape(-1)[:count].astype(np.uint32)


DROPOUT = {"dropout": 0.3, "seed": 0x123456789ABCDEF, "stream": 0xFEDCBA987654321}


def kept_weights(sizes, dropout, seed, stream):
    """What dropout multiplies weights [B, Hq, T, S] by."""
    batch, heads, _, queries, keys, *_ = sizes
    shape = batch, heads, queries, keys
    p = np.float32(dropout)
    words = philox_words(seed, stream, np.prod(shape)).reshape(shape)
    return np.where(words >= np.uint32(p * 2.0**32), 1 / (1 - p), 0).astype(np.float32)
