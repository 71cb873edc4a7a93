"""What every operation does with its arguments: coerce, check, and name the one that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import DTypeError, ShapeError, TokenIndexError

ArrayLike = Any
"""A NumPy array, an `llmcore.Tensor`, any DLPack array, or nested lists of numbers."""


class Floats:
    """The floating-point arguments of one call, as float32 tensors.

    All must share one dtype: float32, or bfloat16 where the operation takes it. bfloat16 is widened
    on the way in and `result` rounds on the way out, so sums are always taken in float32.
    """

    def __init__(self, op: str, *, bfloat16: bool, **arrays: ArrayLike | None) -> None:
        allowed = ("float32", "bfloat16") if bfloat16 else ("float32",)
        self.op = op
        self.dtype = "float32"
        self._tensors: dict[str, Tensor | None] = {}
        first: str | None = None
        for name, array in arrays.items():
            if array is None:
                self._tensors[name] = None
                continue
            tensor = as_tensor(op, name, array)
            if tensor.dtype not in allowed:
                raise DTypeError(f"{op}: {name} must be {' or '.join(allowed)}, got {tensor.dtype}")
            if first is None:
                first, self.dtype = name, tensor.dtype
            elif tensor.dtype != self.dtype:
                raise DTypeError(
                    f"{op}: {name} must be {self.dtype} as {first} is, got {tensor.dtype}"
                )
            self._tensors[name] = tensor.to(dtype="float32")

    def __getitem__(self, name: str) -> Tensor:
        """The argument `name`, which was given."""
        tensor = self._tensors[name]
        if tensor is None:
            raise DTypeError(f"{self.op}: {name} must be an array, got None")
        return tensor

    def get(self, name: str) -> Tensor | None:
        """The argument `name`, or None where it was not given."""
        return self._tensors[name]

    def result(self, tensor: Tensor) -> Tensor:
        """A float32 result in the dtype of the arguments."""
        return tensor.to(dtype=self.dtype)


def as_tensor(op: str, name: str, array: ArrayLike) -> Tensor:
    """Take `array` as a Tensor; errors say which argument of which operation it is."""
    try:
        return _core.as_tensor(array)
    except (TypeError, ValueError) as error:
        reason = str(error).split(": ", 1)[-1]
        raise DTypeError(f"{op}: {name} cannot be read as an array: {reason}") from error


def as_ids(op: str, name: str, array: ArrayLike) -> Tensor:
    """Take integer ids (int32, int64 or any NumPy integer type) as an int32 Tensor."""
    tensor = as_tensor(op, name, array)
    if tensor.dtype not in ("int32", "int64", "int8"):
        raise DTypeError(f"{op}: {name} must be int32 or int64, got {tensor.dtype}")
    try:
        return tensor.to(dtype="int32")
    except DTypeError as error:  # a value beyond 32 bits is beyond every table
        raise TokenIndexError(f"{op}: {name}: {str(error).split(': ', 1)[-1]}") from error


def check_shape(op: str, name: str, tensor: Tensor | None, expected: Sequence[int]) -> None:
    """Raise ShapeError unless `tensor` is None or has exactly the shape `expected`."""
    if tensor is not None and tensor.shape != tuple(expected):
        raise ShapeError(f"{op}: {name} must have shape {list(expected)}, got {list(tensor.shape)}")


def check_rank(op: str, name: str, tensor: Tensor, symbols: str) -> None:
    """Raise ShapeError unless `tensor` has as many axes as `symbols`, such as "[B, H, T, D]"."""
    if len(tensor.shape) != symbols.count(",") + 1:
        raise ShapeError(f"{op}: {name} must have shape {symbols}, got {list(tensor.shape)}")


def normalized_axis(op: str, tensor: Tensor, axis: int) -> int:
    """`axis` counted from the front."""
    rank = len(tensor.shape)
    if not -rank <= axis < rank:
        raise ShapeError(
            f"{op}: axis must be in [{-rank}, {rank}) for x of {rank} axes, got {axis}"
        )
    return axis % rank


def empty(*shape: int) -> Tensor:
    """A float32 tensor of any contents, every element of which the core will write."""
    return _core.empty(list(shape))


def empty_like(tensor: Tensor) -> Tensor:
    """The same with the shape of `tensor`."""
    return _core.empty(tensor.shape)
