"""AdamW (Loshchilov and Hutter 2019) and clipping by the joint norm."""

from __future__ import annotations

import numpy as np


def adamw(param, grad, m, v, lr, beta1, beta2, eps, weight_decay, step):
    """Algorithm 2 of the paper, with its learning rate and schedule factor as one `lr`."""
    like = param.dtype.type
    m = like(beta1) * m + like(1 - beta1) * grad
    v = like(beta2) * v + like(1 - beta2) * grad * grad
    m_hat = m / like(1 - beta1**step)
    v_hat = v / like(1 - beta2**step)
    param = param - like(lr) * (m_hat / (np.sqrt(v_hat) + like(eps)) + like(weight_decay) * param)
    return param, m, v


def clip_grad_norm(grads, max_norm):
    norm = np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads))
    factor = min(1.0, max_norm / (norm + 1e-6))
    return [(grad * factor).astype(grad.dtype) for grad in grads], norm
