"""Scaled dot-product attention with an explicit matrix of scores, and its gradient."""

from __future__ import annotations

import numpy as np


def matmul(a, b):
    """Summed in ascending order, one product after the other, as the kernels do it."""
    total = np.zeros(a.shape[:-1] + b.shape[-1:], np.result_type(a, b))
    for k in range(a.shape[-1]):
        total += a[..., :, k, None] * b[..., None, k, :]
    return total


def visible(
    batch,
    queries,
    keys,
    *,
    causal=False,
    kv_lengths=None,
    prefix_lengths=None,
    window=(-1, -1),
    past=0,
):
    """Who sees whom, `[B, 1, T, S]`, a mask aside."""
    column = lambda x: np.broadcast_to(np.asarray(x), (batch,))[:, None, None]  # noqa: E731
    j = np.arange(keys)[None, None, :]
    p = np.arange(queries)[None, :, None] + column(past)
    sees = np.broadcast_to(
        j < column(keys if kv_lengths is None else kv_lengths), (batch, queries, keys)
    )
    if causal:
        sees = sees & ((j <= p) | (j < column(0 if prefix_lengths is None else prefix_lengths)))
    if window[0] >= 0:
        sees = sees & (j >= p - window[0])
    if window[1] >= 0:
        sees = sees & (j <= p + window[1])
    return sees[:, None]


def scores(q, k, bias=None, mask=None, scale=None, softcap=0.0, **who):
    """Scores `[B, H, T, S]`, -inf where hidden, and the derivative of the softcap."""
    dtype = q.dtype.type
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    s = matmul(q, k.swapaxes(-1, -2)) * dtype(q.shape[-1] ** -0.5 if scale is None else scale)
    slope = dtype(1)
    if softcap:
        t = np.tanh(s / dtype(softcap))
        s, slope = dtype(softcap) * t, 1 - t * t
    if bias is not None:
        s = s + bias
    sees = visible(q.shape[0], q.shape[2], k.shape[2], **who)
    if mask is not None:
        sees = sees & mask
    return np.where(sees, s, dtype(-np.inf)), slope


def softmax(s):
    """Over the last axis; a row of -inf gives zeros."""
    highest = s.max(-1, keepdims=True, initial=-np.inf)
    e = np.exp(s - np.where(np.isfinite(highest), highest, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def attention(q, k, v, keep=None, **options):
    """`keep`: what dropout multiplies the weights by."""
    weights = softmax(scores(q, k, **options)[0])
    if keep is not None:
        weights = weights * keep
    return matmul(weights, np.repeat(v, q.shape[1] // k.shape[1], axis=1))


def attention_weights(q, k, **options):
    return softmax(scores(q, k, **options)[0])


def attention_backward(dout, q, k, v, bias=None, keep=None, scale=None, **options):
    """As Dao et al. 2022: the weights from the log of their sum, `delta` from the output."""
    group = q.shape[1] // k.shape[1]
    factor = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    keep = q.dtype.type(1) if keep is None else keep
    keys, values = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    s, slope = scores(q, k, bias=bias, scale=scale, **options)
    p = np.exp(s - log_sum_exp(s))
    delta = (dout * matmul(softmax(s) * keep, values)).sum(-1, keepdims=True)
    ds = p * (matmul(dout, values.swapaxes(-1, -2)) * keep - delta)
    draw = ds * slope * factor
    per_kv_head = lambda x: x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2)  # noqa: E731
    dq = matmul(draw, keys)
    dk = per_kv_head(matmul(draw.swapaxes(-1, -2), q))
    dv = per_kv_head(matmul((p * keep).swapaxes(-1, -2), dout))
    return dq, dk, dv, None if bias is None else unbroadcast(ds, np.shape(bias))


def log_sum_exp(s):
    """Over the last axis; infinity for a row of -inf, so that its weights are exp(-inf)."""
    highest = s.max(-1, keepdims=True, initial=-np.inf)
    finite = np.isfinite(highest)
    highest = np.where(finite, highest, 0)
    total = np.where(finite, np.exp(s - highest).sum(-1, keepdims=True), 1)
    return np.where(finite, highest + np.log(total), np.inf).astype(s.dtype)


def unbroadcast(x, shape):
    """Sum over the axes along which something of `shape` was broadcast."""
    shape = (1,) * (x.ndim - len(shape)) + tuple(shape), tuple(shape)
    axes = tuple(a for a, size in enumerate(shape[0]) if size == 1 and x.shape[a] != 1)
    return x.sum(axes, keepdims=True).reshape(shape[1])
