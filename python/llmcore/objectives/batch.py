"""The `Batch`: what the model sees and what it must predict; and the objectives that make one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from llmcore.errors import DataError, LlmcoreError, ShapeError, TokenIndexError
from llmcore.objectives.ids import Int32Array, as_ids, check_lengths

Float32Array = NDArray[np.float32]
Head = Literal["tokens", "labels"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Batch:
    """One batch of model input, and the rows of its output that are scored.

    The head reads the decoder's output if there are decoder ids, the encoder's otherwise; "the
    stack" below is that one, with [B, T] positions. Any integer array, list or Tensor is taken and
    kept as a C-contiguous int32 array. Lengths of None mean that every position is real.

    Attributes:
        dec_ids: [B, T] int32, decoder input.
        dec_lengths: [B] int32, real positions of each row of `dec_ids`, 1 to T.
        enc_ids: [B, S] int32, encoder input.
        enc_lengths: [B] int32, real positions of each row of `enc_ids`, 1 to S.
        prefix_lengths: [B] int32, leading positions visible to all others of the row, 0 to T.
        types: int32 segment ids, shaped as `enc_ids` if given, as `dec_ids` otherwise.
        rows: [R] int32, ascending flat positions b*T + t of the stack that are scored; None when
            all of them are, in order (then R = B*T).
        targets: [R] int32, the token (or label) each row must predict.
        weights: [R] float32, the weight of each row in the loss; ones if not given.
        label_smoothing: Share of the target's probability spread evenly over the vocabulary
            (Szegedy et al. 2016), in [0, 1).
        head: What predicts the targets: "tokens", the output layer over the vocabulary, or
            "labels", the classifier. Its targets are labels, and rows must be given.

    Raises:
        ShapeError: Two fields disagree about B, T, S or R.
        DTypeError: A field of ids or lengths does not hold integers.
        TokenIndexError: An id or target is negative.
        DataError: Another value is out of its range.

    Example:
        >>> batch = Batch(enc_ids=[[5, 6, 7]], rows=[1], targets=[9])
        >>> batch.num_targets, batch.tokens
        (1.0, 3)
    """

    dec_ids: Int32Array | None = None
    dec_lengths: Int32Array | None = None
    enc_ids: Int32Array | None = None
    enc_lengths: Int32Array | None = None
    prefix_lengths: Int32Array | None = None
    types: Int32Array | None = None
    rows: Int32Array | None = None
    targets: Int32Array
    weights: Float32Array = None  # type: ignore[assignment]  # ones, once R is known
    label_smoothing: float = 0.0
    head: Head = "tokens"

    def __post_init__(self) -> None:
        for name in ("dec_ids", "enc_ids", "types"):
            self._set_ids(name, ndim=2)
        self._set_ids("targets", ndim=1)
        for name in ("dec_lengths", "enc_lengths", "prefix_lengths", "rows"):
            self._set_ids(name, ndim=1, negative=DataError)
        self._set_weights()
        self._check_inputs()
        self._check_rows()
        if not 0.0 <= self.label_smoothing < 1.0:
            raise DataError(
                f"Batch: label_smoothing must be at least 0 and below 1, got {self.label_smoothing}"
            )

    def _set_ids(
        self, name: str, ndim: int, negative: type[LlmcoreError] = TokenIndexError
    ) -> None:
        value = getattr(self, name)
        if value is not None:
            ids = as_ids(value, f"Batch: {name}", ndim=ndim, negative=negative)
            object.__setattr__(self, name, ids)

    def _set_weights(self) -> None:
        count = self.targets.size
        if self.weights is None:
            weights = np.ones(count, np.float32)
        else:
            weights = np.ascontiguousarray(self.weights, np.float32)
            if weights.shape != (count,):
                raise ShapeError(
                    "Batch: weights must have one entry for each target, "
                    f"[{count}], got {list(weights.shape)}"
                )
            if not (np.isfinite(weights).all() and (weights >= 0).all()):
                raise DataError("Batch: weights must be finite and not negative")
        object.__setattr__(self, "weights", weights)

    def _check_inputs(self) -> None:
        if self.dec_ids is None and self.enc_ids is None:
            raise ShapeError("Batch: give dec_ids, enc_ids, or both; got neither")
        for ids, lengths, stack in (
            (self.dec_ids, self.dec_lengths, "dec"),
            (self.enc_ids, self.enc_lengths, "enc"),
        ):
            if ids is not None and ids.size == 0:
                raise ShapeError(
                    f"Batch: {stack}_ids must have at least one row and one column, "
                    f"got shape {list(ids.shape)}"
                )
            if lengths is not None:
                check_lengths(lengths, ids, f"Batch: {stack}_lengths", f"{stack}_ids", smallest=1)
        if self.prefix_lengths is not None:
            check_lengths(
                self.prefix_lengths, self.dec_ids, "Batch: prefix_lengths", "dec_ids", smallest=0
            )
        if self.dec_ids is not None and self.enc_ids is not None:
            decoder, encoder = len(self.dec_ids), len(self.enc_ids)
            if decoder != encoder:
                raise ShapeError(
                    "Batch: dec_ids and enc_ids must have the same number of rows, "
                    f"got {decoder} and {encoder}"
                )
        if self.types is not None:
            ids = self.enc_ids if self.enc_ids is not None else self.dec_ids
            assert ids is not None  # one of them is there
            if self.types.shape != ids.shape:
                raise ShapeError(
                    f"Batch: types must have the shape of the ids, {list(ids.shape)}, "
                    f"got {list(self.types.shape)}"
                )

    def _check_rows(self) -> None:
        if self.head not in get_args(Head):
            raise DataError(f"Batch: head must be 'tokens' or 'labels', got {self.head!r}")
        positions = self._stack_ids.size
        if self.rows is None:
            if self.head == "labels":
                raise ShapeError("Batch: head 'labels' needs rows, one for each label")
            if self.targets.size != positions:
                raise ShapeError(
                    f"Batch: without rows there must be a target for each of the {positions} "
                    f"positions, got {self.targets.size}"
                )
            return
        rows = self.rows
        if rows.shape != self.targets.shape:
            raise ShapeError(
                f"Batch: rows must have one entry for each target, [{self.targets.size}], "
                f"got {list(rows.shape)}"
            )
        if rows.size == 0:
            return
        if rows[-1] >= positions:
            raise DataError(f"Batch: rows must be below B*T = {positions}, got {rows[-1]}")
        # Ascending and unique: a row's gradient is then written once, whatever the thread.
        if rows.size > 1 and not (rows[1:] > rows[:-1]).all():
            raise DataError("Batch: rows must be in ascending order without repeats")

    @property
    def _stack_ids(self) -> Int32Array:
        """The ids of the stack the head reads, [B, T]."""
        ids = self.dec_ids if self.dec_ids is not None else self.enc_ids
        assert ids is not None  # checked at construction
        return ids

    @property
    def num_targets(self) -> float:
        """The sum of the weights: what the summed loss is divided by."""
        return float(self.weights.sum(dtype=np.float64))

    @property
    def tokens(self) -> int:
        """The number of real (not padding) positions that the model processes, both stacks."""
        total = 0
        for ids, lengths in (
            (self.dec_ids, self.dec_lengths),
            (self.enc_ids, self.enc_lengths),
        ):
            if ids is not None:
                total += ids.size if lengths is None else int(lengths.sum())
        return total


class Objective(Protocol):
    """What training needs: a callable from the columns of some samples to a `Batch`.

    It is called as `objective(*columns, samples=…, epoch=…)`. Whatever it draws is a function of
    its settings, the epoch, the number of a sample and the position in it: `samples` [B] integers
    (default 0 to B - 1) and `epoch`, a whole number. The same samples with the same epoch give the
    same batch, so evaluation always asks for epoch 0.

    The columns of a block objective are ids cut from a long text and how many of each row are real;
    see `BlockObjective`. Those of an example objective are lists with one entry for each sample, as
    a text and its translation; it has no `lookahead`.
    """

    # Typed Any as a whole: the columns differ from one objective to the next.
    def __call__(self, *columns: Any, **which: Any) -> Batch:
        """Return the batch for the columns."""
        ...


class BlockObjective(Objective, Protocol):
    """An objective called as `objective(ids, lengths=None)`, with ids [B, T + lookahead].

    `lengths` [B] counts the real ids of each row; None when all are.
    """

    @property
    def lookahead(self) -> int:
        """How many ids beyond the T positions of a block are read."""
        ...
