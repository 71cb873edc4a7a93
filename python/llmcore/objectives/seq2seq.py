"""Objectives on examples: a text that is turned into another, and a text that has a label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from llmcore.errors import DataError
from llmcore.objectives.batch import Batch
from llmcore.objectives.causal import next_tokens
from llmcore.objectives.ids import (
    Int32Array,
    Stack,
    as_ids,
    as_rows,
    check_id,
    check_same_count,
    check_stack,
    pad,
)


@dataclass(frozen=True)
class Seq2Seq:
    """Predict each token of a target from the source and the target before it (Sutskever 2014).

    Attributes:
        label_smoothing: See `Batch`; 0.1 in Vaswani et al. 2017.
        decoder_start_id: What the decoder reads first, before the target. None: the target begins
            with it, and its first id is only read.
        eos_id: Added to each target that does not end with it. None: targets are taken as they are.

    Raises:
        ConfigError: A setting is not an id.

    Example:
        >>> batch = Seq2Seq(decoder_start_id=0, eos_id=1)([[5, 6, 7]], [[8, 9]])
        >>> batch.enc_ids.tolist(), batch.dec_ids.tolist(), batch.targets.tolist()
        ([[5, 6, 7]], [[0, 8, 9]], [8, 9, 1])
        >>> batch = Seq2Seq()([[5, 6, 7]], [[0, 8, 9, 1]])
        >>> batch.dec_ids.tolist(), batch.targets.tolist()
        ([[0, 8, 9]], [8, 9, 1])
    """

    label_smoothing: float = 0.0
    decoder_start_id: int | None = None
    eos_id: int | None = None

    def __post_init__(self) -> None:
        check_id(self.decoder_start_id, "Seq2Seq: decoder_start_id", optional=True)
        check_id(self.eos_id, "Seq2Seq: eos_id", optional=True)

    def __call__(
        self,
        source: Any,
        target: Any,
        *,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch whose encoder reads the sources and whose decoder predicts the targets.

        Args:
            source: B lists of at least one id each.
            target: B lists of ids, at least two each with the start and the end that are added.
            samples: Not used: nothing is drawn.
            epoch: Not used.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If the lists are not as above.
        """
        read = as_rows(source, "Seq2Seq: source", smallest=1)
        written = [self._whole(row) for row in as_rows(target, "Seq2Seq: target")]
        check_same_count(len(read), len(written), "Seq2Seq: source and target")
        for index, row in enumerate(written):
            if len(row) < 2:
                raise DataError(
                    f"Seq2Seq: target, row {index} must have a start and an id to predict, got "
                    f"{row.tolist()}; give more ids, or decoder_start_id and eos_id"
                )
        enc_ids, enc_lengths = pad(read)
        return next_tokens(
            *pad(written), self.label_smoothing, enc_ids=enc_ids, enc_lengths=enc_lengths
        )

    def _whole(self, target: Int32Array) -> Int32Array:
        """Return a target with its start and its end."""
        start, end = self.decoder_start_id, self.eos_id
        before = [] if start is None else [start]
        after = [] if end is None or (len(target) and target[-1] == end) else [end]
        return np.concatenate([before, target, after]).astype(np.int32)


@dataclass(frozen=True)
class Classification:
    """Predict the label of each text (Devlin et al. 2019, section 4.1; Radford et al. 2018, 3.2).

    Attributes:
        stack: "encoder", whose output at the first token is classified, or "decoder", at the last.

    Raises:
        ConfigError: The stack is neither.

    Example:
        >>> batch = Classification()([[1, 5], [1, 6, 7]], [0, 2])
        >>> batch.enc_ids.tolist(), batch.rows.tolist(), batch.targets.tolist(), batch.head
        ([[1, 5, 0], [1, 6, 7]], [0, 3], [0, 2], 'labels')
        >>> Classification("decoder")([[1, 5], [1, 6, 7]], [0, 2]).rows.tolist()
        [1, 5]
    """

    stack: Stack = "encoder"

    def __post_init__(self) -> None:
        check_stack(self.stack, "Classification: stack")

    def __call__(
        self,
        ids: Any,
        labels: ArrayLike,
        *,
        types: Any = None,
        samples: ArrayLike | None = None,
        epoch: int = 0,
    ) -> Batch:
        """Return the batch that predicts one label for each row.

        Args:
            ids: B lists of at least one id each.
            labels: [B] integers, from 0.
            types: B lists of segment ids, as long as those of `ids`; None for no segments.
            samples: Not used: nothing is drawn.
            epoch: Not used.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If an argument is not as above.
        """
        rows = as_rows(ids, "Classification: ids", smallest=1)
        targets = as_ids(labels, "Classification: labels", ndim=1)
        check_same_count(len(rows), len(targets), "Classification: ids and labels")
        tokens, lengths = pad(rows)
        fields: dict[str, Any] = {"targets": targets, "head": "labels"}
        if types is not None:
            segments = as_rows(types, "Classification: types")
            check_same_count(len(rows), len(segments), "Classification: ids and types")
            for index, (row, segment) in enumerate(zip(rows, segments, strict=True)):
                if len(row) != len(segment):
                    raise DataError(
                        f"Classification: types, row {index} must have as many entries as its "
                        f"ids, {len(row)}, got {len(segment)}"
                    )
            fields["types"] = pad(segments)[0]
        first = np.arange(len(rows)) * tokens.shape[1]
        if self.stack == "encoder":
            return Batch(enc_ids=tokens, enc_lengths=lengths, rows=first, **fields)
        return Batch(dec_ids=tokens, dec_lengths=lengths, rows=first + lengths - 1, **fields)
