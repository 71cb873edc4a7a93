"""Stateless operations on NumPy arrays, Tensors and any DLPack array.

Every operation with a gradient has a `..._backward` beside it. Dimensions in the docstrings:
B batch, T query positions, S key positions, N rows, C width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

from llmcore.ops.activation import (
    gelu,
    gelu_backward,
    relu,
    relu_backward,
    silu,
    silu_backward,
    swiglu,
    swiglu_backward,
)
from llmcore.ops.attention import (
    attention,
    attention_backward,
)
from llmcore.ops.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
)
from llmcore.ops.dropout import (
    dropout,
    dropout_backward,
)
from llmcore.ops.embedding import (
    embedding,
    embedding_backward,
)
from llmcore.ops.matmul import (
    linear,
    linear_backward,
    matmul,
    matmul_backward,
)
from llmcore.ops.norm import (
    layer_norm,
    layer_norm_backward,
    rms_norm,
    rms_norm_backward,
)
from llmcore.ops.optimizer import (
    adamw_step,
    clip_grad_norm,
)
from llmcore.ops.rope import (
    rope,
    rope_backward,
)
from llmcore.ops.softmax import (
    log_softmax,
    log_softmax_backward,
    softmax,
    softmax_backward,
)

__all__ = [
    "adamw_step",
    "attention",
    "attention_backward",
    "clip_grad_norm",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "embedding",
    "embedding_backward",
    "gelu",
    "gelu_backward",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "log_softmax",
    "log_softmax_backward",
    "matmul",
    "matmul_backward",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rope",
    "rope_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "swiglu",
    "swiglu_backward",
]
