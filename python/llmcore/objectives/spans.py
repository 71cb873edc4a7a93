"""Span corruption (T5): spans of a text are cut out, and written by the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore.draws import Stream, grid, unit
from llmcore.errors import DataError
from llmcore.objectives.batch import Batch
from llmcore.objectives.causal import next_tokens
from llmcore.objectives.ids import (
    BoolArray,
    Int32Array,
    Int64Array,
    as_block,
    as_lengths,
    as_samples,
    check_id,
    is_real,
    pack,
    real_positions,
    require,
)
from llmcore.validation import check_seed


@dataclass(frozen=True)
class SpanCorruption:
    """Predict spans cut out of a text (Raffel et al. 2020, section 3.1.4).

    The encoder reads the text with a sentinel in the place of each span, the decoder writes each
    sentinel and the span that was there; both texts end with the end-of-text id. Of n tokens
    round(n density), at least 1 and at most n - 1, are cut out, in round(that / mean_length) spans,
    at least 1. Text and spans are each divided evenly at random, text first, so that spans never
    touch and the last one ends the text. Where they lie depends on (seed, epoch, sample) alone.

    Attributes:
        sentinel_ids: Ids of the sentinels in the order of the spans; T5's are
            range(32099, 31999, -1).
        eos_id: Ends both texts.
        decoder_start_id: What the decoder reads first.
        seed: From 0 to 2**64 - 1.
        density: Share of the tokens cut out, between 0 and 1.
        mean_length: Of a span, in tokens, at least 1.
        label_smoothing: See `Batch`.
        lookahead: 0.

    Raises:
        ConfigError: A setting is not as above.

    Example:
        >>> corruption = SpanCorruption(range(99, 89, -1), eos_id=1, decoder_start_id=0, seed=0)
        >>> batch = corruption([[11, 12, 13, 14, 15, 16, 17, 18, 19, 20]])
        >>> batch.enc_ids.tolist(), batch.targets.tolist()
        ([[11, 12, 13, 14, 15, 16, 17, 18, 99, 1]], [99, 19, 20, 1])
        >>> batch.dec_ids.tolist()
        [[0, 99, 19, 20]]
    """

    sentinel_ids: Sequence[int]
    _: KW_ONLY
    eos_id: int
    decoder_start_id: int
    seed: int = 0
    density: float = 0.15
    mean_length: float = 3.0
    label_smoothing: float = 0.0
    lookahead: ClassVar[int] = 0

    def __post_init__(self) -> None:
        require(
            isinstance(self.sentinel_ids, Sequence) and len(self.sentinel_ids) > 0,
            "SpanCorruption: sentinel_ids", "a list of at least one id", self.sentinel_ids,
        )  # fmt: skip
        for index in self.sentinel_ids:
            check_id(index, "SpanCorruption: sentinel_ids")
        check_id(self.eos_id, "SpanCorruption: eos_id")
        check_id(self.decoder_start_id, "SpanCorruption: decoder_start_id")
        check_seed(self.seed, "SpanCorruption: seed")
        require(
            is_real(self.density) and 0 < self.density < 1,
            "SpanCorruption: density", "a number between 0 and 1", self.density,
        )  # fmt: skip
        require(
            is_real(self.mean_length) and 1 <= self.mean_length < np.inf,
            "SpanCorruption: mean_length", "a number of at least 1", self.mean_length,
        )  # fmt: skip

    def __call__(
        self,
        ids: ArrayLike,
        lengths: ArrayLike | None = None,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch that predicts spans cut out of `ids`.

        Args:
            ids: [B, T] integers.
            lengths: [B] integers, real ids of each row, at least 2 (one to keep, one to predict);
                None when all are.
            samples: [B] integers, the number of each row's sample; 0 to B - 1 if not given.
            epoch: Another epoch cuts out other spans.

        Raises:
            ShapeError, DTypeError, TokenIndexError: If the ids or lengths are not as above.
            DataError: A number is out of range, or there are more spans than sentinels.
        """
        tokens = as_block(ids, "SpanCorruption: ids")
        whole = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        real = as_lengths(whole, tokens, "SpanCorruption: lengths", smallest=2)
        numbers = as_samples(samples, epoch, len(tokens), "SpanCorruption")
        noise = self._noise(tokens, real, numbers, epoch)
        begins = noise.copy()
        begins[:, 1:] &= ~noise[:, :-1]
        kept = real_positions(tokens, real) & ~noise
        # Both texts are the start, each token with a sentinel before it, and the end, with what is
        # not wanted left out.
        sentinels = np.array(self.sentinel_ids, np.int32)[np.cumsum(begins, axis=1) - 1]
        start, end = np.int32(self.decoder_start_id), np.int32(self.eos_id)
        everything = _around(start, sentinels, tokens, end)
        enc_ids, enc_lengths = pack(everything, _around(False, begins, kept, True))
        written, written_lengths = pack(everything, _around(True, begins, noise, True))
        return next_tokens(
            written, written_lengths, self.label_smoothing, enc_ids=enc_ids, enc_lengths=enc_lengths
        )

    def _noise(
        self, tokens: Int32Array, real: Int32Array, numbers: Int64Array, epoch: int
    ) -> BoolArray:
        """Return which tokens are cut out, [B, T]."""
        noisy = np.rint(real * self.density).astype(np.int32).clip(1, real - 1)
        kept = real - noisy
        spans = np.rint(noisy / self.mean_length).astype(np.int32).clip(1, np.minimum(noisy, kept))
        if spans.max() > len(self.sentinel_ids):
            row = int(np.argmax(spans))
            raise DataError(
                f"SpanCorruption: row {row} has {spans[row]} spans, but there are only "
                f"{len(self.sentinel_ids)} sentinel_ids; give more, or shorter rows"
            )
        width = tokens.shape[1]
        begins = self._cut(Stream.NOISE, noisy, spans, numbers, epoch, width)
        kept_begins = self._cut(Stream.KEPT, kept, spans, numbers, epoch, width)
        # Span j stands after the kept tokens before it: as many as lie before kept part j + 1.
        places = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
        before = np.roll(pack(places, kept_begins)[0], -1, axis=1)
        before[np.arange(len(tokens)), spans - 1] = kept
        noise = np.zeros(tokens.shape, np.bool_)
        rows, items = np.nonzero(real_positions(tokens, noisy))
        noise[rows, items + before[rows, np.cumsum(begins, axis=1)[rows, items] - 1]] = True
        return noise

    def _cut(
        self,
        stream: Stream,
        items: Int32Array,
        parts: Int32Array,
        numbers: Int64Array,
        epoch: int,
        width: int,
    ) -> BoolArray:
        """Divide items [B] in a row into so many parts, none empty: which begin one, [B, width]."""
        draws = unit(grid(stream, self.seed, epoch, numbers, width))
        draws[:, 0] = -1.0  # the first item always does
        draws[~real_positions(draws, items)] = np.inf
        ranks = draws.argsort(axis=1).argsort(axis=1)
        chosen: BoolArray = ranks < parts[:, None]
        return chosen


def _around(first: Any, before: NDArray[Any], each: NDArray[Any], last: Any) -> NDArray[Any]:
    """Return rows [B, 2 T + 2]: `first`, then `before` and `each` [B, T] in turn, then `last`."""
    rows, width = each.shape
    around = np.empty((rows, 2 * width + 2), each.dtype)
    around[:, 0], around[:, -1] = first, last
    around[:, 1:-1:2], around[:, 2:-1:2] = before, each
    return around
