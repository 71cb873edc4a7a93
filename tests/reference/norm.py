"""Layer norm and RMS norm over the last axis."""

from __future__ import annotations

import numpy as np


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    xhat = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
    y = xhat if weight is None else xhat * weight
    return y if bias is None else y + bias


def layer_norm_backward(dy, x, weight=None, has_bias=True, eps=1e-5):
    rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
    xhat = (x - x.mean(-1, keepdims=True)) * rstd
    g = dy if weight is None else dy * weight
    dx = rstd * (g - g.mean(-1, keepdims=True) - xhat * (g * xhat).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    dweight = None if weight is None else (dy * xhat).sum(rows)
    return dx, dweight, dy.sum(rows) if has_bias else None


def rms_norm(x, weight=None, eps=1e-6):
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    return y if weight is None else y * weight


def rms_norm_backward(dy, x, weight=None, eps=1e-6):
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(eps))
    xhat = x * rstd
    g = dy if weight is None else dy * weight
    dx = rstd * (g - xhat * (g * xhat).mean(-1, keepdims=True))
    return dx, None if weight is None else (dy * xhat).sum(tuple(range(x.ndim - 1)))
