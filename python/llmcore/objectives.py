"""Objectives: from token ids to the `Batch` that says what the model sees and what it must predict.

C++ knows one loss, weighted cross-entropy over selected rows; an objective is the Python callable
that chooses the rows. It holds no state but its settings, and it sees ids only, never text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DataError, DTypeError, LlmcoreError, ShapeError, TokenIndexError

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]

_INT32_MAX = 2**31 - 1


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
                _check_lengths(lengths, ids, f"Batch: {stack}_lengths", f"{stack}_ids", smallest=1)
        if self.prefix_lengths is not None:
            _check_lengths(
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
        positions = self._stack_ids.size
        if self.rows is None:
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
    """What training on blocks of ids needs: a callable from [B, T + 1] ids to a `Batch`."""

    def __call__(self, ids: ArrayLike, lengths: ArrayLike | None = None) -> Batch:
        """Return the batch for `ids`; `lengths` counts the real ids of each row."""
        ...


@dataclass(frozen=True)
class CausalLM:
    """Predict each token from those before it (Radford et al. 2018, eq. 1).

    Attributes:
        label_smoothing: See `Batch`.

    Example:
        >>> batch = CausalLM()([[1, 2, 3]])
        >>> batch.dec_ids.tolist(), batch.targets.tolist(), batch.rows
        ([[1, 2]], [2, 3], None)
        >>> ragged = CausalLM()([[1, 2, 3], [4, 5, 0]], lengths=[3, 2])
        >>> ragged.rows.tolist(), ragged.targets.tolist(), ragged.dec_lengths.tolist()
        ([0, 1, 2], [2, 3, 5], [2, 1])
    """

    label_smoothing: float = 0.0

    def __call__(self, ids: ArrayLike, lengths: ArrayLike | None = None) -> Batch:
        """Return the batch whose row t predicts id t + 1.

        Args:
            ids: [B, T + 1] integers, T at least 1.
            lengths: [B] integers, how many of each row's T + 1 ids are real, at least 2 (one to
                read, one to predict); None when all are. The ids after them are padding: never
                seen, never predicted.

        Raises:
            ShapeError, DTypeError, DataError, TokenIndexError: If the ids or lengths are not as
                above.
        """
        tokens = as_ids(ids, "CausalLM: ids", ndim=2)
        if tokens.shape[1] < 2:
            raise ShapeError(
                f"CausalLM: ids must be [B, T + 1] with T at least 1, got {list(tokens.shape)}"
            )
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        if lengths is None:
            return Batch(
                dec_ids=inputs, targets=targets.reshape(-1), label_smoothing=self.label_smoothing
            )
        real = as_ids(lengths, "CausalLM: lengths", ndim=1, negative=DataError)
        _check_lengths(real, tokens, "CausalLM: lengths", "ids", smallest=2)
        scored = np.arange(targets.shape[1]) < real[:, None] - 1
        return Batch(
            dec_ids=inputs,
            dec_lengths=real - 1,
            rows=np.flatnonzero(scored).astype(np.int32),
            targets=targets[scored],
            label_smoothing=self.label_smoothing,
        )


def as_ids(
    value: Any, what: str, *, ndim: int, negative: type[LlmcoreError] = TokenIndexError
) -> Int32Array:
    """Return `value` as a C-contiguous int32 array of `ndim` axes.

    Args:
        value: A list, an array of any integer type, or anything with `__array__`.
        what: What to call it in an error, for example "CausalLM: ids".
        ndim: The number of axes it must have.
        negative: The class of the error about a negative number.

    Raises:
        ShapeError: Another number of axes, or rows of unequal length.
        DTypeError: Not integers.
        TokenIndexError: An id that is negative or does not fit in 32 bits.

    Example:
        >>> as_ids([[1, 2]], "ids", ndim=2)
        array([[1, 2]], dtype=int32)
    """
    try:
        array = np.asarray(value)
    except ValueError:
        raise ShapeError(
            f"{what} must have rows of equal length; pad them and give lengths"
        ) from None
    if array.ndim != ndim:
        axes = "axis" if ndim == 1 else "axes"
        raise ShapeError(f"{what} must have {ndim} {axes}, got shape {list(array.shape)}")
    if array.size == 0:  # an empty list has no element type to judge
        return np.ascontiguousarray(array, np.int32)
    if array.dtype.kind not in "iu":
        raise DTypeError(f"{what} must hold integers, got {array.dtype}")
    if array.dtype.kind == "i" and array.min() < 0:
        raise negative(f"{what} must not be negative, got {array.min()}")
    if array.dtype.itemsize >= 4 and array.dtype != np.int32 and array.max() > _INT32_MAX:
        raise TokenIndexError(f"{what} must fit in 32 bits, got {array.max()}")
    return np.ascontiguousarray(array, np.int32)


def _check_lengths(
    lengths: Int32Array, ids: Int32Array | None, what: str, ids_name: str, *, smallest: int
) -> None:
    """Raise unless `lengths` is [B] with values from `smallest` to the width of `ids`."""
    if ids is None:
        raise ShapeError(f"{what} is given without {ids_name}")
    rows, width = ids.shape
    if lengths.shape != (rows,):
        raise ShapeError(
            f"{what} must have one entry for each row of {ids_name}, [{rows}], "
            f"got {list(lengths.shape)}"
        )
    if rows and (lengths.min() < smallest or lengths.max() > width):
        wrong = int(np.flatnonzero((lengths < smallest) | (lengths > width))[0])
        raise DataError(
            f"{what} must be from {smallest} to {width}, got {lengths[wrong]} in row {wrong}"
        )
