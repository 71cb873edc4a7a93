"""Matrix products and linear layers."""

from __future__ import annotations

import numpy as np

from reference import activation as activations


def matmul(a, b, transpose_a=False, transpose_b=False):
    if transpose_a and a.ndim > 1:
        a = a.swapaxes(-1, -2)
    if transpose_b and b.ndim > 1:
        b = b.swapaxes(-1, -2)
    return np.matmul(a, b)


def matmul_backward(dy, a, b, transpose_a=False, transpose_b=False):
    left = a[None] if a.ndim == 1 else a.swapaxes(-1, -2) if transpose_a else a
    right = b[:, None] if b.ndim == 1 else b.swapaxes(-1, -2) if transpose_b else b
    dy = dy[..., None, :] if a.ndim == 1 and b.ndim > 1 else dy
    dy = dy[..., None] if b.ndim == 1 else dy
    dy = dy[..., None, :] if a.ndim == 1 and b.ndim == 1 else dy
    da, db = dy @ right.swapaxes(-1, -2), left.swapaxes(-1, -2) @ dy
    if transpose_a and a.ndim > 1:
        da = da.swapaxes(-1, -2)
    if transpose_b and b.ndim > 1:
        db = db.swapaxes(-1, -2)
    return summed_to(da, a.shape), summed_to(db, b.shape)


def summed_to(gradient, shape):
    """Sum over the axes along which an operand of `shape` was broadcast."""
    if len(shape) == 1:
        return gradient.reshape(-1, *shape).sum(0)
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(tuple(range(extra)))
    axes = tuple(i for i, size in enumerate(shape) if size == 1 and gradient.shape[i] != 1)
    return gradient.sum(axes, keepdims=True)


def linear(x, weight, bias=None, activation=None):
    y = x @ weight.T
    y = y if bias is None else y + bias
    return y if activation is None else getattr(activations, activation)(y)


def linear_backward(dy, x, weight, has_bias, activation=None, bias=None):
    if activation is not None:
        dy = getattr(activations, f"{activation}_backward")(dy, linear(x, weight, bias))
    rows = dy.reshape(-1, dy.shape[-1])
    dweight = rows.T @ x.reshape(-1, x.shape[-1])
    return dy @ weight, dweight, rows.sum(0) if has_bias else None
