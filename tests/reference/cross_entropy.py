"""Cross-entropy of logits, and of hidden states under an output matrix."""

from __future__ import annotations

import numpy as np

from reference.softmax import log_softmax


def target_distribution(logits, targets, weight, ignore_index, label_smoothing):
    """What -log_softmax is weighted by, [N, V], and the weight of each row in a mean, [N]."""
    classes = logits.shape[-1]
    one_hot = (targets[:, None] == np.arange(classes)).astype(logits.dtype)
    weight = np.ones(classes, logits.dtype) if weight is None else weight
    smoothing = logits.dtype.type(label_smoothing)
    counted = (targets != ignore_index).astype(logits.dtype)
    mixed = (1 - smoothing) * one_hot + smoothing / classes
    rows = (one_hot * weight).sum(-1)
    # torch weighs the smoothed part by each class's own weight, the rest by the target's
    return mixed * weight * counted[:, None], rows * counted


def cross_entropy(
    logits, targets, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):
    shape = targets.shape
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    q, rows = target_distribution(logits, targets, weight, ignore_index, label_smoothing)
    losses = -(q * log_softmax(logits)).sum(-1)
    if reduction == "none":
        return losses.reshape(shape)
    return losses.sum() / (rows.sum() if reduction == "mean" else 1)


def cross_entropy_backward(
    dloss, logits, targets, weight=None, ignore_index=-100, label_smoothing=0.0, reduction="mean"
):
    shape = logits.shape
    logits, targets = logits.reshape(-1, shape[-1]), targets.reshape(-1)
    q, rows = target_distribution(logits, targets, weight, ignore_index, label_smoothing)
    scale = dloss.reshape(-1, 1) / (rows.sum() if reduction == "mean" else 1)
    dlogits = scale * (np.exp(log_softmax(logits)) * q.sum(-1, keepdims=True) - q)
    return dlogits.reshape(shape)


def linear_cross_entropy(hidden, weight, targets, bias=None, **options):
    return cross_entropy(_logits(hidden, weight, bias), targets, **options)


def linear_cross_entropy_backward(dloss, hidden, weight, targets, bias=None, **options):
    dlogits = cross_entropy_backward(dloss, _logits(hidden, weight, bias), targets, **options)
    rows = dlogits.reshape(-1, dlogits.shape[-1])
    dweight = rows.T @ hidden.reshape(-1, hidden.shape[-1])
    return dlogits @ weight, dweight, None if bias is None else rows.sum(0)


def _logits(hidden, weight, bias):
    return hidden @ weight.T if bias is None else hidden @ weight.T + bias
