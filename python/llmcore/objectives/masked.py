"""Masked language modelling (BERT): tokens, or whole words, are hidden and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from llmcore.draws import Stream, grid, unit
from llmcore.errors import ConfigError, DataError, TokenIndexError
from llmcore.objectives.batch import Batch
from llmcore.objectives.ids import (
    BoolArray,
    Int32Array,
    Int64Array,
    Stack,
    as_block,
    as_lengths,
    as_samples,
    check_id,
    check_stack,
    is_real,
    is_whole,
    real_positions,
    require,
)
from llmcore.validation import check_seed

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

# Devlin et al. 2019, section 3.1: of the chosen tokens so many become the mask token, so many a
# random one; the others stay as they are.
_MASKED, _RANDOM = 0.8, 0.1


@dataclass(frozen=True, eq=False)
class MaskedLM:
    """Predict tokens hidden at random from all others (Devlin et al. 2019, section 3.1).

    Each real token that is not special is chosen with the given probability, independently of the
    others; where that chooses none of a row, the one with the lowest draw is. 80 % of the chosen
    become the mask token, 10 % a random one, 10 % stay; all are predicted. What is chosen, and what
    it becomes, depends on (seed, epoch, sample, position) alone: another epoch hides other tokens,
    and epoch 0 with the same samples, as evaluation asks for, always the same.

    Attributes:
        mask_id: Id of the mask token.
        vocab_size: Random tokens are drawn evenly from the ids below it that are neither special
            nor the mask. None: the size of `word_starts`; without that, each row draws from the
            ids up to its own largest, so that no token is made up that the model may lack.
        seed: From 0 to 2**64 - 1.
        probability: Of each token to be chosen, above 0 and at most 1.
        special_ids: Ids never hidden and never put in the place of others; the mask's is one
            whether it is listed or not.
        word_starts: [V] booleans, whether a token begins a word: words are chosen whole, each
            of their tokens then becoming what it does by itself; see the function `word_starts`.
            None: tokens are chosen one by one.
        stack: "encoder", or "decoder" for a decoder-only model all of whose positions see each
            other, as wanted for training one on this and `CausalLM` in turn (`Mixture`).
        lookahead: 0.

    Raises:
        ConfigError: A setting is not as above.

    Example:
        >>> batch = MaskedLM(mask_id=9, seed=1)([[1, 2, 3, 4, 5, 6, 7, 8]])
        >>> batch.enc_ids.tolist(), batch.rows.tolist(), batch.targets.tolist()
        ([[1, 9, 3, 4, 5, 6, 7, 8]], [1], [2])
    """

    mask_id: int
    _: KW_ONLY
    vocab_size: int | None = None
    seed: int = 0
    probability: float = 0.15
    special_ids: Sequence[int] = ()
    word_starts: BoolArray | None = field(default=None, repr=False)
    stack: Stack = "encoder"
    lookahead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if self.mask_id is None:
            raise ConfigError(
                "MaskedLM needs the id of a mask token; add one to the tokenizer "
                '(special_tokens=[..., "[MASK]"]) and give mask_id=tokenizer.mask_id'
            )
        check_id(self.mask_id, "MaskedLM: mask_id")
        check_seed(self.seed, "MaskedLM: seed")
        require(
            np.iterable(self.special_ids), "MaskedLM: special_ids", "a list of ids",
            self.special_ids,
        )  # fmt: skip
        for index in self.special_ids:
            check_id(index, "MaskedLM: each of special_ids")
        require(
            is_real(self.probability) and 0 < self.probability <= 1,
            "MaskedLM: probability", "above 0 and at most 1", self.probability,
        )  # fmt: skip
        check_stack(self.stack, "MaskedLM: stack")
        self._check_vocabulary()

    def _check_vocabulary(self) -> None:
        size = self.vocab_size
        if self.word_starts is not None:
            table = np.asarray(self.word_starts)
            if table.ndim != 1 or table.dtype != np.bool_:
                raise ConfigError(
                    "MaskedLM: word_starts must be [V] booleans, got "
                    f"shape {list(table.shape)} of {table.dtype}"
                )
            object.__setattr__(self, "word_starts", table)
            size = len(table) if size is None else size
            require(size == len(table), "MaskedLM: vocab_size", "the size of word_starts", size)
        if size is None:
            return
        require(is_whole(size), "MaskedLM: vocab_size", "a whole number", size)
        object.__setattr__(self, "vocab_size", int(size))
        if self.mask_id >= size:
            raise ConfigError(
                f"MaskedLM needs the id of a mask token; got mask_id {self.mask_id}, outside the "
                f"vocabulary of {size}"
            )
        if np.searchsorted(self._excluded, size) == size:
            raise ConfigError(f"MaskedLM: all {size} ids of the vocabulary are special")

    @property
    def _excluded(self) -> Int64Array:
        """The ids that are neither hidden nor put in the place of others, ascending."""
        return np.unique(np.array([self.mask_id, *self.special_ids], np.int64))

    def __call__(
        self,
        ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch that predicts the hidden tokens of `ids`.

        Args:
            ids: [B, T] integers.
            lengths: [B] integers, real ids of each row, at least 1; None when all are.
            samples: [B] integers, the number of each row's sample; 0 to B - 1 if not given.
            epoch: Another epoch hides other tokens.

        Raises:
            ShapeError, DTypeError, DataError: If an argument is not as above.
            TokenIndexError: An id is negative or not in the vocabulary.
        """
        tokens = as_block(ids, "MaskedLM: ids")
        real = None
        if lengths is not None:
            real = as_lengths(lengths, tokens, "MaskedLM: lengths", smallest=1)
        numbers = as_samples(samples, epoch, len(tokens), "MaskedLM")
        maskable = real_positions(tokens, real) & ~np.isin(tokens, self._excluded)
        limits = np.where(maskable, tokens, -1).max(1) + 1
        if self.vocab_size is not None:
            if limits.max() > self.vocab_size:
                raise TokenIndexError(
                    f"MaskedLM: ids must be below vocab_size = {self.vocab_size}, "
                    f"got {limits.max() - 1}"
                )
            limits[:] = self.vocab_size
        chosen = self._choose(tokens, maskable, numbers, epoch)
        hidden = self._hide(tokens, chosen, limits, numbers, epoch)
        rows, targets = np.flatnonzero(chosen).astype(np.int32), tokens[chosen]
        if self.stack == "encoder":
            return Batch(enc_ids=hidden, enc_lengths=real, rows=rows, targets=targets)
        visible = np.full(len(tokens), tokens.shape[1], np.int32) if real is None else real
        return Batch(
            dec_ids=hidden, dec_lengths=real, prefix_lengths=visible, rows=rows, targets=targets
        )

    def _choose(
        self, tokens: Int32Array, maskable: BoolArray, numbers: Int64Array, epoch: int
    ) -> BoolArray:
        """Return which positions are predicted, [B, T]."""
        draws = unit(grid(Stream.MASK, self.seed, epoch, numbers, tokens.shape[1]))
        if self.word_starts is not None:
            # All tokens of a word have the draw of the one that begins it.
            begins = ~maskable
            begins[maskable] = self.word_starts[tokens[maskable]]
            begins[:, 1:] |= ~maskable[:, :-1]
            begins[:, 0] = True
            place = np.where(begins, np.arange(tokens.shape[1]), 0)
            draws = np.take_along_axis(draws, np.maximum.accumulate(place, axis=1), axis=1)
        draws = np.where(maskable, draws, np.inf)
        lowest = draws == draws.min(1, keepdims=True)
        chosen: BoolArray = maskable & ((draws < self.probability) | lowest)
        return chosen

    def _hide(
        self,
        tokens: Int32Array,
        chosen: BoolArray,
        limits: Int32Array,
        numbers: Int64Array,
        epoch: int,
    ) -> Int32Array:
        """Return `tokens` with those chosen masked, replaced by one below `limits` [B], or kept."""
        kinds = unit(grid(Stream.MASK_KIND, self.seed, epoch, numbers, tokens.shape[1]))
        hidden = np.where(chosen & (kinds < _MASKED), np.int32(self.mask_id), tokens)
        replaced = chosen & (kinds >= 1 - _RANDOM)
        words = grid(Stream.MASK_TOKEN, self.seed, epoch, numbers, tokens.shape[1])[replaced]
        excluded = self._excluded
        allowed = limits - np.searchsorted(excluded, limits)
        nth = (words % allowed[np.nonzero(replaced)[0]].astype(np.uint64)).astype(np.int64)
        # The n-th id that is not excluded: n, and one more for each excluded id up to there.
        hidden[replaced] = nth + np.searchsorted(excluded - np.arange(len(excluded)), nth, "right")
        return hidden


# What marks a token that continues a word, or one that begins it, in each kind of vocabulary.
_CONTINUES = "##"
_BEGINS = ("Ġ", "▁")


def word_starts(tokenizer: Tokenizer) -> BoolArray:
    """Return which tokens of a vocabulary begin a word, [V] booleans, for `MaskedLM`.

    By the mark that most tokens carry: "##" continues a word (WordPiece); "Ġ" (byte-level BPE) or
    "▁" (SentencePiece) begins one. Special tokens count as words of their own.

    Raises:
        DataError: No token carries a mark, as in a vocabulary of characters.

    Example:
        >>> from llmcore.tokenizer import Tokenizer
        >>> tokenizer = Tokenizer.train(["low lower lowest"], kind="wordpiece", vocab_size=30)
        >>> starts = word_starts(tokenizer)
        >>> [bool(starts[tokenizer.token_to_id(token)]) for token in ("low", "##e", "[MASK]")]
        [True, False, True]
    """
    tokens = [tokenizer.id_to_token(index) or "" for index in range(tokenizer.vocab_size)]
    marks = (_CONTINUES, *_BEGINS)
    counts = [sum(token.startswith(mark) for token in tokens) for mark in marks]
    if not any(counts):
        raise DataError(
            "word_starts: no token begins with '##', 'Ġ' or '▁', so the vocabulary does not tell "
            "where words begin; leave word_starts out to hide tokens one by one"
        )
    mark = marks[int(np.argmax(counts))]
    starts = np.array([token.startswith(mark) for token in tokens])
    if mark == _CONTINUES:
        starts = ~starts
    starts[list(tokenizer.backend.get_added_tokens_decoder())] = True
    return starts
