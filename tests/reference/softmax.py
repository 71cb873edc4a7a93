"""Softmax and its logarithm along one axis, with their gradients."""

from __future__ import annotations

import numpy as np


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis=-1):
    below = x - x.max(axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis, keepdims=True))


def softmax_backward(dy, y, axis=-1):
    return y * (dy - (dy * y).sum(axis, keepdims=True))


def log_softmax_backward(dy, y, axis=-1):
    return dy - np.exp(y) * dy.sum(axis, keepdims=True)
