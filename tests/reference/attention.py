"""Scaled dot-product attention with an explicit matrix of scores, and its gradient."""

from __future__ import annotations

import numpy as np


def visible(
    batch, queries, keys, *, causal=False, kv_lengths=None, prefix_lengths=None, window=(-1, -1), past=0
):
    """Who sees whom, `[B, 1, T, S]`, a mask aside."""
    column = lambda x: np.broadcast_to(np.asarray(x), (batch,))[:, None, None]  # noqa: E731
    j = np.arange(keys)[None, None, :]
    p = np.arange(queries)[None, :, None] + column(past)
    sees = np.broadcast_to(j < column(keys if kv_lengths is None else kv_lengths), (batch, queries, keys))
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
    s = (q @ k.swapaxes(-1, -2)) * dtype(q.shape[-1] ** -0.5 if scale is None else scale)
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
    if s.shape[-1] == 0:
        return s
    highest = s.max(-1, keepdims=True)
    e = np.exp(s - np.where(np.isfinite(highest), highest, 0))
    total = e.sum(-1, keepdims=True)
    return e / np.where(total > 0, total, 1)


def attention(q, k, v, keep=None, **options):
    """`keep`: what dropout multiplies the weights by."""
    weights = softmax(scores(q, k, **options)[0])
    if keep is not None:
        weights = weights * keep
    return weights @ np.repeat(v, q.shape[1] // k.shape[1], axis=1)


def attention_weights(q, k, **options):
    return softmax(scores(q, k, **options)[0])


def attention_backward(dout, q, k, v, bias=None, keep=None, scale=None, **options):
    group = q.shape[1] // k.shape[1]
    factor = q.dtype.type(q.shape[-1] ** -0.5 if scale is None else scale)
    s, slope = scores(q, k, bias=bias, scale=scale, **options)
    p = softmax(s)
    keep = q.dtype.type(1) if keep is None else keep
    dp = (dout @ np.repeat(v, group, axis=1).swapaxes(-1, -2)) * keep
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    draw = ds * slope * factor
    per_kv_head = lambda x: x.reshape(x.shape[0], -1, group, *x.shape[2:]).sum(2)  # noqa: E731
    dq = draw @ np.repeat(k, group, axis=1)
    dk = per_kv_head(draw.swapaxes(-1, -2) @ q)
    dv = per_kv_head((p * keep).swapaxes(-1, -2) @ dout)
    return dq, dk, dv, None if bias is None else unbroadcast(ds, np.shape(bias))


def unbroadcast(x, shape):
    """Sum over the axes along which something of `shape` was broadcast."""
    shape = (1,) * (x.ndim - len(shape)) + tuple(shape), tuple(shape)
    axes = tuple(a for a, size in enumerate(shape[0]) if size == 1 and x.shape[a] != 1)
    return x.sum(axes, keepdims=True).reshape(shape[1])
