"""Activation functions, their gradients, and the gated unit."""

from __future__ import annotations

import math

import numpy as np

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x > 0, 1, small) / (1 + small)


def normal_cdf(x):
    """Phi(x), by erfc on the negative side, where 1 + erf would cancel."""
    wide = np.asarray(x, np.float64) / math.sqrt(2)
    return (np.where(wide < 0, _erfc(np.abs(wide)), 1 + _erf(wide)) / 2).astype(x.dtype)


def relu(x):
    return np.maximum(x, 0)


def relu_backward(dy, x):
    return dy * (x > 0)


def gelu(x):
    return x * normal_cdf(x)


def gelu_backward(dy, x):
    density = np.exp(-x * x / 2) / x.dtype.type(math.sqrt(2 * math.pi))
    return dy * (normal_cdf(x) + x * density)


_SLOPE = 2 * math.sqrt(2 / math.pi)


def gelu_tanh(x):
    return x * sigmoid(_SLOPE * (x + 0.044715 * x**3))


def gelu_tanh_backward(dy, x):
    argument, slope = _SLOPE * (x + 0.044715 * x**3), _SLOPE * (1 + 3 * 0.044715 * x**2)
    return dy * (sigmoid(argument) * (1 + x * slope * sigmoid(-argument)))


def silu(x):
    return x * sigmoid(x)


def silu_backward(dy, x):
    return dy * sigmoid(x) * (1 + x * sigmoid(-x))


def swiglu(gate, up):
    return silu(gate) * up


def swiglu_backward(dy, gate, up):
    return silu_backward(dy * up, gate), dy * silu(gate)
