"""Stateless operations on NumPy arrays, Tensors and any DLPack array.

Every operation with a gradient has a `..._backward` beside it. Dimensions in the docstrings:
B batch, T query positions, S key positions, N rows, C width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

from llmcore.ops.attention import attention, attention_backward
from llmcore.ops.norm import layer_norm, layer_norm_backward, rms_norm, rms_norm_backward

__all__ = [
    "attention",
    "attention_backward",
    "layer_norm",
    "layer_norm_backward",
    "rms_norm",
    "rms_norm_backward",
]
