"""Rotary position embedding of [B, H, T, D] with cosines and sines [B, T, R/2]."""

from __future__ import annotations

import numpy as np


def rope(x, cos, sin, interleaved=False):
    """Pairs as complex numbers, multiplied by cos + i sin."""
    rotary = 2 * cos.shape[-1]
    part = x[..., :rotary]
    u, w = (part[..., 0::2], part[..., 1::2]) if interleaved else np.split(part, 2, -1)
    turned = (u + 1j * w) * (cos + 1j * sin)[:, None]
    y = x.copy()
    if interleaved:
        y[..., 0:rotary:2], y[..., 1:rotary:2] = turned.real, turned.imag
    else:
        y[..., :rotary] = np.concatenate([turned.real, turned.imag], -1)
    return y


def rope_backward(dy, cos, sin, interleaved=False):
    """The Jacobian is orthogonal: its transpose is the rotation back."""
    return rope(dy, cos, -sin, interleaved)
