"""Attention of operands rounded to bfloat16, and how far rounding what is computed may move it.

Each function gives results in float64 of the rounded operands, and a bound for each of their
elements: weights and their gradients are rounded as well before they are multiplied.
"""

from __future__ import annotations

import numpy as np

from reference import attention as reference
from tolerance import round_bfloat16

UNIT = 2.0**-8  # of rounding to bfloat16
SUMS = 2.0**-19  # of float32 sums and exponentials, relative to what they are sums of


def rounded(x, factor=1.0):
    return round_bfloat16(x * np.float32(factor)).astype(np.float64)


def repeated(x, q):
    """Keys or values for every query head."""
    return np.repeat(x, q.shape[1] // x.shape[1], axis=1)


def summed(x, k):
    """Over the query heads of each kv head."""
    return x.reshape(x.shape[0], k.shape[1], -1, *x.shape[2:]).sum(2)


def forward(q, k, v, scale, keep=1.0, **options):
    """What operands rounded come to in float64, and how far rounding the weights may move it."""
    values = repeated(rounded(v), q)
    weights = reference.attention_weights(rounded(q, scale), rounded(k), scale=1, **options)
    weights = weights * keep  # of dropout
    return weights @ values, (UNIT + SUMS) * (weights @ np.abs(values))


def backward(dout, q, k, v, out, scale, keep=1.0, **options):
    """Likewise; (gradient, bound) of q, k and v. What is summed for q and k is rounded too."""
    q_scaled, k_scaled, rounded_dout = rounded(q, scale), rounded(k, scale), rounded(dout)
    scores, slope = reference.scores(q_scaled, rounded(k), scale=1, **options)
    weights = np.exp(scores - reference.log_sum_exp(scores))
    dweights = rounded_dout @ repeated(rounded(v), q).swapaxes(-1, -2)
    delta = (dout.astype(np.float64) * out).sum(-1, keepdims=True)
    dscores = weights * (dweights * keep - delta) * slope
    noise = UNIT * np.abs(dscores) + SUMS * weights * (
        keep * (np.abs(rounded_dout) @ np.abs(repeated(rounded(v), q)).swapaxes(-1, -2))
        + np.abs(dout * out).sum(-1, keepdims=True)
    )
    turned = lambda x: x.swapaxes(-1, -2)  # noqa: E731
    keys, kept = repeated(k_scaled, q), weights * keep
    return [
        (dscores @ keys, noise @ np.abs(keys)),
        (summed(turned(dscores) @ q_scaled, k), summed(turned(noise) @ np.abs(q_scaled), k)),
        (
            summed(turned(kept) @ rounded_dout, k),
            (UNIT + SUMS) * summed(turned(kept) @ np.abs(rounded_dout), k),
        ),
    ]
