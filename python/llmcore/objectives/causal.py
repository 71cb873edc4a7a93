"""Objectives of a decoder by itself: each token is predicted from those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from llmcore.draws import Stream, grid
from llmcore.errors import DataError, ShapeError
from llmcore.objectives.batch import Batch
from llmcore.objectives.ids import (
    Int32Array,
    as_ids,
    as_lengths,
    as_rows,
    as_samples,
    check_lengths,
    check_same_count,
    pad,
    real_positions,
)
from llmcore.validation import check_seed


@dataclass(frozen=True)
class CausalLM:
    """Predict each token from those before it (Radford et al. 2018, eq. 1).

    Attributes:
        label_smoothing: See `Batch`.
        lookahead: 1, the id that the last position predicts.

    Example:
        >>> batch = CausalLM()([[1, 2, 3]])
        >>> batch.dec_ids.tolist(), batch.targets.tolist(), batch.rows
        ([[1, 2]], [2, 3], None)
        >>> ragged = CausalLM()([[1, 2, 3], [4, 5, 0]], lengths=[3, 2])
        >>> ragged.rows.tolist(), ragged.targets.tolist(), ragged.dec_lengths.tolist()
        ([0, 1, 2], [2, 3, 5], [2, 1])
    """

    label_smoothing: float = 0.0
    lookahead: ClassVar[int] = 1

    def __call__(
        self,
        ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch whose row t predicts id t + 1.

        Args:
            ids: [B, T + 1] integers, T at least 1.
            lengths: [B] integers, how many of each row's T + 1 ids are real, at least 2 (one to
                read, one to predict); None when all are. The ids after them are padding: never
                seen, never predicted.
            samples: Not used: nothing is drawn.
            epoch: Not used.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If the ids or lengths are not as
                above.
        """
        return next_tokens(*_checked("CausalLM", ids, lengths), self.label_smoothing)


@dataclass(frozen=True)
class ReversedLM:
    """Predict each token from those after it: `CausalLM` on texts turned round.

    A model trained so reads right to left (`ModelConfig.right_to_left`), as the models that rank
    the translations of left-to-right ones do (Liu et al. 2016, "Agreement on target-bidirectional
    neural machine translation").

    Attributes:
        label_smoothing: See `Batch`.
        lookahead: 1, the id that the last position predicts: the first of the block.

    Example:
        >>> batch = ReversedLM()([[1, 2, 3], [4, 5, 0]], lengths=[3, 2])
        >>> batch.dec_ids.tolist(), batch.targets.tolist()
        ([[3, 2], [5, 0]], [2, 1, 4])
    """

    label_smoothing: float = 0.0
    lookahead: ClassVar[int] = 1

    def __call__(
        self,
        ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch whose rows predict the real ids of each row from last to first.

        Args and errors are those of `CausalLM`.
        """
        tokens, real = _checked("ReversedLM", ids, lengths)
        place = np.arange(tokens.shape[1])
        ends = np.full(len(tokens), tokens.shape[1]) if real is None else real
        backward = np.where(real_positions(tokens, real), ends[:, None] - 1 - place, place)
        turned = np.take_along_axis(tokens, backward, axis=1)
        return next_tokens(turned, real, self.label_smoothing)


@dataclass(frozen=True)
class PrefixLM:
    """Predict what follows a prefix whose tokens all see each other (Raffel et al. 2020, 3.2.1).

    Attributes:
        seed: Of the prefix lengths, from 0 to 2**64 - 1.
        label_smoothing: See `Batch`.
        lookahead: 1, the id that the last position predicts.

    Raises:
        ConfigError: The seed is no such number.

    Example:
        >>> batch = PrefixLM()([[1, 2, 3, 4]], prefix_lengths=[2])
        >>> batch.dec_ids.tolist(), batch.prefix_lengths.tolist()
        ([[1, 2, 3]], [2])
        >>> batch.rows.tolist(), batch.targets.tolist()
        ([1, 2], [3, 4])
    """

    seed: int = 0
    label_smoothing: float = 0.0
    lookahead: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_seed(self.seed, "PrefixLM: seed")

    def __call__(
        self,
        ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        prefix_lengths: ArrayLike | None = None,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch that predicts every token after the prefix.

        Args:
            ids: [B, T + 1] integers, T at least 1.
            lengths: [B] integers, real ids of each row, at least 2; None when all are.
            prefix_lengths: [B] integers, from 0 to the positions that are read, lengths - 1. None:
                drawn evenly from 1 to one less than those (1 if there is only one).
            samples: [B] integers, the number of each row's sample; 0 to B - 1 if not given.
            epoch: Another epoch draws other prefixes.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If an argument is not as above.
        """
        tokens, real = _checked("PrefixLM", ids, lengths)
        rows, width = tokens.shape
        readable = np.full(rows, width - 1, np.int32) if real is None else real - 1
        numbers = as_samples(samples, epoch, rows, "PrefixLM")
        if prefix_lengths is None:
            drawn = grid(Stream.PREFIX, self.seed, epoch, numbers, 1)[:, 0]
            choices = np.maximum(readable - 1, 1).astype(np.uint64)
            prefix = (drawn % choices).astype(np.int32) + np.int32(1)
        else:
            prefix = as_ids(prefix_lengths, "PrefixLM: prefix_lengths", ndim=1, negative=DataError)
            check_lengths(prefix, tokens[:, 1:], "PrefixLM: prefix_lengths", "ids", smallest=0)
            if (prefix > readable).any():
                row = int(np.argmax(prefix > readable))
                raise DataError(
                    "PrefixLM: prefix_lengths must leave an id to predict: at most "
                    f"{readable[row]} in row {row}, got {prefix[row]}"
                )
        first = np.maximum(prefix - 1, 0)
        return next_tokens(tokens, real, self.label_smoothing, first, prefix_lengths=prefix)


@dataclass(frozen=True)
class CompletionLM:
    """Predict completions of prompts with a decoder; the prompts themselves are not predicted.

    Attributes:
        label_smoothing: See `Batch`.

    Example:
        >>> batch = CompletionLM()([[1, 2], [3]], [[8, 9], [7]])
        >>> batch.dec_ids.tolist(), batch.dec_lengths.tolist()
        ([[1, 2, 8], [3, 0, 0]], [3, 1])
        >>> batch.rows.tolist(), batch.targets.tolist()
        ([1, 2, 3], [8, 9, 7])
    """

    label_smoothing: float = 0.0

    def __call__(
        self,
        prompts: Any,
        completions: Any,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch that reads each prompt and predicts its completion.

        Args:
            prompts: B lists of at least one id each.
            completions: B lists of at least one id each; one that ends with the end-of-text id
                teaches when to stop.
            samples: Not used: nothing is drawn.
            epoch: Not used.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If the lists are not as above.
        """
        before = as_rows(prompts, "CompletionLM: prompts", smallest=1)
        after = as_rows(completions, "CompletionLM: completions", smallest=1)
        check_same_count(len(before), len(after), "CompletionLM: prompts and completions")
        tokens, lengths = pad([np.concatenate(pair) for pair in zip(before, after, strict=True)])
        first = np.array([len(row) - 1 for row in before], np.int32)
        return next_tokens(tokens, lengths, self.label_smoothing, first)


def _checked(
    what: str, ids: ArrayLike, lengths: ArrayLike | None
) -> tuple[Int32Array, Int32Array | None]:
    """Return ids [B, T + 1] and how many of each row are real, [B] or None, both checked."""
    tokens = as_ids(ids, f"{what}: ids", ndim=2)
    if tokens.shape[1] < 2:
        raise ShapeError(
            f"{what}: ids must be [B, T + 1] with T at least 1, got {list(tokens.shape)}"
        )
    if lengths is None:
        return tokens, None
    return tokens, as_lengths(lengths, tokens, f"{what}: lengths", smallest=2)


def next_tokens(
    tokens: Int32Array,
    lengths: Int32Array | None,
    label_smoothing: float,
    first: Int32Array | None = None,
    **inputs: Any,
) -> Batch:
    """Return the batch whose decoder position t predicts token t + 1.

    Args:
        tokens: [B, T + 1] int32.
        lengths: [B] int32, real tokens of each row, at least 2; None when all are.
        label_smoothing: See `Batch`.
        first: [B] int32, the position from which on each row predicts; 0 if None.
        **inputs: Further fields of the batch.
    """
    read, targets = tokens[:, :-1], tokens[:, 1:]
    if lengths is None and first is None:
        return Batch(
            dec_ids=read, targets=targets.reshape(-1), label_smoothing=label_smoothing, **inputs
        )
    readable = None if lengths is None else lengths - 1
    real = scored = real_positions(read, readable)
    if first is not None:
        scored = real & (np.arange(read.shape[1]) >= first[:, None])
    return Batch(
        dec_ids=np.where(real, read, 0),
        dec_lengths=readable,
        rows=np.flatnonzero(scored).astype(np.int32),
        targets=targets[scored],
        label_smoothing=label_smoothing,
        **inputs,
    )
