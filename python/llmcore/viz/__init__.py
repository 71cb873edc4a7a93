"""Pictures of what a model learns and looks at: loss curves as SVG, attention as a page or PNG."""

from __future__ import annotations

from llmcore.viz.attention import AttentionMap
from llmcore.viz.curve import loss_curve, round_ticks, save_loss_curve
from llmcore.viz.page import attention_page, save_attention_page
from llmcore.viz.png import attention_png

__all__ = [
    "AttentionMap",
    "attention_page",
    "attention_png",
    "loss_curve",
    "round_ticks",
    "save_attention_page",
    "save_loss_curve",
]
