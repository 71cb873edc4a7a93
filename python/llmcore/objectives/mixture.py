"""Several objectives in turn on one model, as in joint autoregressive and masked training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from llmcore.draws import Stream, grid, unit
from llmcore.errors import ConfigError
from llmcore.objectives.batch import Batch, BlockObjective, Objective
from llmcore.objectives.ids import as_ids, as_lengths, as_samples, is_real, require
from llmcore.validation import check_seed


@dataclass(frozen=True)
class Mixture:
    """Make each batch with one of several objectives, drawn in proportion to their weights.

    Which one depends on (seed, epoch, the number of the first sample) alone. The parts must take
    the same columns. Of block objectives, one with a smaller `lookahead` is given so many ids less.
    A part that is a mixture itself stands for its parts, which share its weight; its seed is not
    used.

    Attributes:
        parts: Pairs of an objective and its weight, a number above 0.
        seed: From 0 to 2**64 - 1.

    Raises:
        ConfigError: There is no part, a weight or the seed is no such number, or only some of the
            parts are block objectives.

    Example:
        >>> from llmcore.objectives import CausalLM, MaskedLM
        >>> joint = Mixture([(CausalLM(), 2), (MaskedLM(9, stack="decoder"), 1)], seed=0)
        >>> [joint([[1, 2, 3, 4]], samples=[n]).targets.tolist() for n in range(4)]
        [[2], [2, 3, 4], [2, 3, 4], [2, 3, 4]]
    """

    parts: Sequence[tuple[Objective, float]]
    seed: int = 0

    def __post_init__(self) -> None:
        check_seed(self.seed, "Mixture: seed")
        object.__setattr__(self, "parts", tuple(_flat(self.parts)))
        if not self.parts:
            raise ConfigError("Mixture: parts must hold at least one objective")
        blocks = [part for part, _ in self.parts if hasattr(part, "lookahead")]
        examples = [part for part, _ in self.parts if not hasattr(part, "lookahead")]
        if blocks and examples:
            raise ConfigError(
                "Mixture: parts must all read blocks or all read examples, but "
                f"{type(blocks[0]).__name__} reads blocks and {type(examples[0]).__name__} examples"
            )

    @property
    def lookahead(self) -> int:
        """The largest of the parts; an attribute of mixtures of block objectives alone."""
        return max(cast(BlockObjective, part).lookahead for part, _ in self.parts)

    def __call__(
        self,
        *columns: Any,
        samples: ArrayLike | None = None,
        epoch: int = 0,
        **more: Any,
    ) -> Batch:
        """Return the batch of the part drawn.

        Args:
            *columns: What the parts take; of block objectives ids [B, T + lookahead] and lengths.
            samples: [B] integers, the number of each row's sample; 0 to B - 1 if not given.
            epoch: Another epoch draws anew.
            **more: What else the parts take by name.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If an argument is not as above.
        """
        part = self._drawn(samples, epoch)
        if columns and hasattr(self, "lookahead"):
            ids = as_ids(columns[0], "Mixture: ids", ndim=2)
            width = ids.shape[1] - self.lookahead + part.lookahead
            lengths = columns[1] if len(columns) > 1 else more.pop("lengths", None)
            if lengths is not None:
                lengths = as_lengths(lengths, ids, "Mixture: lengths", smallest=1)
                lengths = np.minimum(lengths, width)
            columns = ids[:, :width], lengths, *columns[2:]
        batch: Batch = part(*columns, samples=samples, epoch=epoch, **more)
        return batch

    def _drawn(self, samples: ArrayLike | None, epoch: int) -> Any:
        """Return the objective for samples of which the first counts."""
        given = 1 if samples is None else max(np.size(samples), 1)
        first = as_samples(samples, epoch, given, "Mixture")[:1]
        ends = np.cumsum([weight for _, weight in self.parts])
        draw = unit(grid(Stream.MIXTURE, self.seed, epoch, first, 1))[0, 0]
        return self.parts[int(np.searchsorted(ends[:-1], draw * ends[-1], side="right"))][0]


def _flat(parts: Any) -> Iterator[tuple[Objective, float]]:
    """Yield the pairs of `parts`, checked, with those of mixtures in their place."""
    require(isinstance(parts, Iterable), "Mixture: parts", "pairs (objective, weight)", parts)
    for pair in parts:
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2 and callable(pair[0])
        require(is_pair, "Mixture: each of parts", "a pair (objective, weight)", pair)
        objective, weight = pair
        positive = is_real(weight) and 0 < weight < np.inf
        require(positive, "Mixture: each weight", "a number above 0", weight)
        if isinstance(objective, Mixture):
            total = sum(share for _, share in objective.parts)
            yield from ((part, weight * share / total) for part, share in objective.parts)
        else:
            yield objective, float(weight)
