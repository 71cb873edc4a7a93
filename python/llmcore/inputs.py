"""`Inputs`: what a model is run on where nothing is to be predicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import ConfigError, DataError, DTypeError
from llmcore.objectives import as_ids

if TYPE_CHECKING:
    from llmcore.config import ModelConfig

Int32Array = NDArray[np.int32]


@dataclass(frozen=True, eq=False, kw_only=True)
class Inputs:
    """The ids a model reads, without targets; the core takes it wherever it takes a `Batch`.

    Attributes:
        enc_ids, enc_lengths, dec_ids, dec_lengths, prefix_lengths, types, rows: as in `Batch`.
        targets, weights, label_smoothing, head: what a batch has and this does not use.
    """

    enc_ids: Int32Array | None = None
    enc_lengths: Int32Array | None = None
    dec_ids: Int32Array | None = None
    dec_lengths: Int32Array | None = None
    prefix_lengths: Int32Array | None = None
    types: Int32Array | None = None
    rows: Int32Array | None = None

    targets: ClassVar[None] = None
    weights: ClassVar[NDArray[np.float32]] = np.zeros(0, np.float32)
    label_smoothing: ClassVar[float] = 0.0
    head: ClassVar[str] = "tokens"

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        ids: Any,
        lengths: Any | None = None,
        decoder_ids: Any | None = None,
        decoder_lengths: Any | None = None,
        prefix_lengths: Any | None = None,
        types: Any | None = None,
        *,
        rows: Int32Array | None = None,
        encoder_only: bool = False,
    ) -> Inputs:
        """Check the arguments of a call to a model, and give each stack its own.

        Args:
            config: the model's.
            ids: [B, T], of the encoder where there is one.
            lengths: [B] real tokens of each row of `ids`, or None: all.
            decoder_ids: [B, T] of the decoder beside an encoder.
            decoder_lengths: [B] real tokens of each row of `decoder_ids`, or None: all.
            prefix_lengths: [B] leading tokens that the whole decoder sees, or None: none.
            types: segment ids, shaped as `ids`, or None: all 0.
            rows: [R] flat positions that are asked about, or None: all.
            encoder_only: whether an encoder is to run without its decoder.

        Raises:
            ConfigError: ids of a stack that the model lacks, or none for one it has.
            ShapeError, DTypeError, TokenIndexError, DataError: they are not what they should be.
        """
        if ids is None:
            raise DTypeError("model: ids must be integers [B, T], got None")
        vocabulary = vocabulary_of(config)
        first = _ids(ids, "ids", 2, vocabulary)
        counts = _ids(lengths, "lengths", 1)
        kinds = _ids(types, "types", 2, f"the {config.type_vocab_size} types of the model")
        if config.kind == "decoder":
            if decoder_ids is not None:
                raise ConfigError("model: decoder_ids are for a model with an encoder; give ids")
            prefixes = _ids(prefix_lengths, "prefix_lengths", 1)
            return cls(
                dec_ids=first, dec_lengths=counts, prefix_lengths=prefixes, types=kinds, rows=rows
            )
        if config.kind == "encoder" and decoder_ids is not None:
            raise ConfigError("model: decoder_ids given, but the model has no decoder")
        if config.kind == "encoder-decoder" and decoder_ids is None and not encoder_only:
            raise ConfigError(
                "model: an encoder-decoder model needs decoder_ids beside ids; "
                "encode(ids) runs the encoder alone, generate(…) writes what follows"
            )
        return cls(
            enc_ids=first,
            enc_lengths=counts,
            dec_ids=_ids(decoder_ids, "decoder_ids", 2, vocabulary),
            dec_lengths=_ids(decoder_lengths, "decoder_lengths", 1),
            prefix_lengths=_ids(prefix_lengths, "prefix_lengths", 1),
            types=kinds,
            rows=rows,
        )

    @property
    def batch_size(self) -> int:
        """How many sequences there are."""
        return self.stack_shape[0]

    @property
    def stack_lengths(self) -> Int32Array:
        """[B] real tokens of each row of the stack whose output is asked for."""
        lengths = self.dec_lengths if self.dec_ids is not None else self.enc_lengths
        if lengths is None:
            return np.full(self.stack_shape[0], self.stack_shape[1], np.int32)
        return lengths

    @property
    def stack_shape(self) -> tuple[int, int]:
        """[B, T] of the stack whose output is asked for."""
        ids = self.dec_ids if self.dec_ids is not None else self.enc_ids
        assert ids is not None  # `of` gives one of them
        return ids.shape  # two axes, checked by `of`


def vocabulary_of(config: ModelConfig) -> str:
    """Say, for errors, what an id that a model does not have is outside of."""
    return f"the vocabulary of {config.vocab_size}"


def _ids(
    value: Any | None, name: str, ndim: int, table: str = "the range of 32 bits"
) -> Int32Array | None:
    if value is None:
        return None
    if ndim == 1:
        return as_ids(value, f"model: {name}", ndim=1, negative=DataError)
    return as_ids(value, f"model: {name}", ndim=ndim, table=table)
