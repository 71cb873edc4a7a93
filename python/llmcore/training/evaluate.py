"""The loss of a model over given batches, the same way during training and after it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from llmcore.objectives import Batch


class HasLoss(Protocol):
    """What is needed of a model."""

    def loss(self, batch: Batch) -> float:
        """Mean loss of the batch's targets, without dropout."""


@dataclass(frozen=True)
class Evaluation:
    """A mean loss.

    Attributes:
        loss: in nats per target; nan if there were no targets.
        targets: the sum of the targets' weights.
    """

    loss: float
    targets: float

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond a float."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf


def evaluate(model: HasLoss, batches: Iterable[Batch]) -> Evaluation:
    """Average the loss over all targets of all batches; each target counts by its weight.

    Example:
        >>> from llmcore.training.evaluate import evaluate
        >>> from llmcore.objectives import CausalLM
        >>> class Uniform:
        ...     def loss(self, batch):
        ...         return 2.0 if batch.num_targets == 1 else 1.0
        >>> evaluate(Uniform(), [CausalLM()([[1, 2]]), CausalLM()([[1, 2, 3, 4]])])
        Evaluation(loss=1.25, targets=4.0)
    """
    total = targets = 0.0
    for batch in batches:
        if batch.num_targets == 0:  # a short last block of special tokens, none to be masked
            continue
        total += float(model.loss(batch)) * batch.num_targets
        targets += batch.num_targets
    return Evaluation(total / targets if targets else math.nan, targets)
