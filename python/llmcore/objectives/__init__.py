"""Objectives: from token ids to the `Batch` that says what the model sees and what it must predict.

C++ knows one loss, weighted cross-entropy over selected rows; an objective is the Python callable
that chooses the rows. It holds no state but its settings, and it sees ids only, never text.
"""

from __future__ import annotations

from llmcore.objectives.batch import Batch, BlockObjective, Objective
from llmcore.objectives.causal import CausalLM, CompletionLM, PrefixLM, ReversedLM
from llmcore.objectives.ids import as_ids
from llmcore.objectives.masked import MaskedLM, word_starts
from llmcore.objectives.mixture import Mixture
from llmcore.objectives.seq2seq import Classification, Seq2Seq
from llmcore.objectives.spans import SpanCorruption

__all__ = [
    "Batch",
    "BlockObjective",
    "CausalLM",
    "Classification",
    "CompletionLM",
    "MaskedLM",
    "Mixture",
    "Objective",
    "PrefixLM",
    "ReversedLM",
    "Seq2Seq",
    "SpanCorruption",
    "as_ids",
    "word_starts",
]
