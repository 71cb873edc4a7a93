"""Checks of what objectives are given, and ragged lists of ids filled up to arrays."""

from __future__ import annotations

import numbers
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore.errors import (
    ConfigError,
    DataError,
    DTypeError,
    LlmcoreError,
    ShapeError,
    TokenIndexError,
)
from llmcore.validation import first_beyond_32_bits

BoolArray = NDArray[np.bool_]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

#: Which stack reads the ids, where an objective suits both.
Stack = Literal["encoder", "decoder"]

_INT32_MAX = 2**31 - 1


def as_ids(
    value: Any,
    what: str,
    *,
    ndim: int,
    negative: type[LlmcoreError] = TokenIndexError,
    table: str = "the range of 32 bits",
) -> Int32Array:
    """Return `value` as a C-contiguous int32 array of `ndim` axes.

    Args:
        value: A list, an array of any integer type, or anything with `__array__`.
        what: What to call it in an error, for example "CausalLM: ids".
        ndim: The number of axes it must have.
        negative: The class of the error about a negative number.
        table: What an id beyond 32 bits is outside of, for its error.

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
        place, number = first_beyond_32_bits(array)
        raise TokenIndexError(f"{what}{place} = {number} is outside {table}")
    return np.ascontiguousarray(array, np.int32)


def as_block(ids: ArrayLike, what: str) -> Int32Array:
    """Return `ids` as [B, T] int32 with at least one row and one column; see `as_ids`."""
    tokens = as_ids(ids, what, ndim=2)
    if tokens.size == 0:
        raise ShapeError(
            f"{what} must have at least one row and one column, got shape {list(tokens.shape)}"
        )
    return tokens


def as_lengths(lengths: ArrayLike, ids: Int32Array, what: str, *, smallest: int) -> Int32Array:
    """Return how many ids of each row are real, [B] int32 from `smallest` to the width."""
    real = as_ids(lengths, what, ndim=1, negative=DataError)
    check_lengths(real, ids, what, "ids", smallest=smallest)
    return real


def check_lengths(
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


def as_samples(samples: ArrayLike | None, epoch: int, rows: int, what: str) -> Int64Array:
    """Return what tells the draws of rows apart, [B] int64; the rows' numbers if None.

    Raises:
        ShapeError: Not one number for each row.
        DTypeError: Not integers.
        DataError: A number, or `epoch`, is negative or beyond 64 bits.
    """
    if not is_whole(epoch) or epoch >= 2**64:
        raise DataError(f"{what}: epoch must be a whole number from 0 to 2**64 - 1, got {epoch!r}")
    if samples is None:
        return np.arange(rows, dtype=np.int64)
    given = np.asarray(samples)
    if given.shape != (rows,):
        raise ShapeError(
            f"{what}: samples must have one entry for each row, [{rows}], "
            f"got shape {list(given.shape)}"
        )
    if given.dtype.kind not in "iu":
        raise DTypeError(f"{what}: samples must hold integers, got {given.dtype}")
    if given.size and not 0 <= int(given.min()) <= int(given.max()) < 2**63:
        raise DataError(f"{what}: samples must be from 0 to 2**63 - 1")
    return given.astype(np.int64)


# -- settings -------------------------------------------------------------------------------------


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number from 0 on."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 0


def is_real(value: Any) -> bool:
    """Whether `value` is a number that can be compared."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def require(holds: bool, what: str, expected: str, got: Any) -> None:
    """Raise a `ConfigError` unless a setting is what is expected."""
    if not holds:
        raise ConfigError(f"{what} must be {expected}, got {got!r}")


def check_id(value: Any, what: str, *, optional: bool = False) -> None:
    """Raise a `ConfigError` unless `value` is an id, or None where that is allowed."""
    fits = (value is None and optional) or (is_whole(value) and value <= _INT32_MAX)
    require(fits, what, f"an id{' or None' if optional else ''}", value)


def check_stack(value: Any, what: str) -> None:
    """Raise a `ConfigError` unless `value` is a `Stack`."""
    require(value in get_args(Stack), what, "'encoder' or 'decoder'", value)


# -- ragged rows ----------------------------------------------------------------------------------


def as_rows(value: Any, what: str, *, smallest: int = 0) -> list[Int32Array]:
    """Return the rows of ragged `value`, each [n] int32 with n at least `smallest`.

    Raises:
        ShapeError: Not a list of lists, or there is no row.
        DataError: A row is shorter.
        DTypeError, TokenIndexError: See `as_ids`.

    Example:
        >>> as_rows([[1, 2], [3]], "ids")
        [array([1, 2], dtype=int32), array([3], dtype=int32)]
    """
    listed = value if isinstance(value, (list, tuple)) else np.asarray(value)
    rows = list(listed) if np.iterable(listed) else [value]
    if not rows:
        raise ShapeError(f"{what} must have at least one row")
    if isinstance(rows[0], (str, numbers.Number)):
        raise ShapeError(f"{what} must be a list of lists of ids, got one of {rows[0]!r}")
    rows = [as_ids(row, f"{what}, row {index}", ndim=1) for index, row in enumerate(rows)]
    for index, row in enumerate(rows):
        if len(row) < smallest:
            raise DataError(f"{what}, row {index} must have at least {smallest} id, got {len(row)}")
    return rows


def check_same_count(first: int, second: int, what: str) -> None:
    """Raise a `ShapeError` unless two columns have as many rows."""
    if first != second:
        raise ShapeError(f"{what} must have the same number of rows, got {first} and {second}")


def pad(rows: list[Int32Array]) -> tuple[Int32Array, Int32Array]:
    """Return ragged `rows` side by side: ids [B, T], zeros after the end, and lengths [B].

    Example:
        >>> ids, lengths = pad(as_rows([[1, 2], [3]], "ids"))
        >>> ids.tolist(), lengths.tolist()
        ([[1, 2], [3, 0]], [2, 1])
    """
    lengths = np.array([len(row) for row in rows], np.int32)
    return _fill(np.concatenate(rows), lengths), lengths


def pack(ids: Int32Array, kept: BoolArray) -> tuple[Int32Array, Int32Array]:
    """Return what is kept of each row of ids [B, n], moved together: as `pad` does.

    Example:
        >>> packed, lengths = pack(np.array([[7, 8, 9]]), np.array([[True, False, True]]))
        >>> packed.tolist(), lengths.tolist()
        ([[7, 9]], [2])
    """
    lengths = kept.sum(1, dtype=np.int32)
    return _fill(ids[kept], lengths), lengths


def real_positions(ids: NDArray[Any], lengths: Int32Array | None) -> BoolArray:
    """Return which positions of an array [B, T] are not padding, [B, T]."""
    if lengths is None:
        return np.ones(ids.shape, np.bool_)
    real: BoolArray = np.arange(ids.shape[1]) < lengths[:, None]
    return real


def _fill(flat: Int32Array, lengths: Int32Array) -> Int32Array:
    """Return [B, max(lengths)] with the values of `flat` in row order, zeros after each row."""
    filled = np.zeros((len(lengths), lengths.max()), np.int32)
    filled[real_positions(filled, lengths)] = flat
    return filled
