"""What every operation does with its arguments: coerce, check, and name the one that is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import DeviceError, DTypeError, ShapeError, TokenIndexError
from llmcore.validation import first_beyond_32_bits

ArrayLike = Any
"""A NumPy array, an `llmcore.Tensor`, any DLPack array, or nested lists of numbers."""


class Floats:
    """The floating-point arguments of one call, as tensors on one device.

    All must share one dtype: float32, or bfloat16 where the operation takes it, but for those in
    `either`, which may be of the other. bfloat16 is widened on the way in and `result` rounds on
    the way out, so sums are always taken in float32. A GPU's kernels do both themselves for the
    arguments in `narrow`, and for what they write to `output`.
    """

    def __init__(
        self,
        op: str,
        *,
        bfloat16: bool,
        narrow: Sequence[str] = (),
        either: Sequence[str] = (),
        **arrays: ArrayLike | None,
    ) -> None:
        allowed = ("float32", "bfloat16") if bfloat16 else ("float32",)
        self.op = op
        self.dtype = "float32"
        given = {n: as_tensor(op, n, array) for n, array in arrays.items() if array is not None}
        first = next(iter(given), None)
        for name, tensor in given.items():
            if tensor.dtype not in allowed:
                raise DTypeError(f"{op}: {name} must be {' or '.join(allowed)}, got {tensor.dtype}")
            if name == first:
                self.dtype = tensor.dtype
            elif tensor.dtype != self.dtype and name not in either:
                raise DTypeError(
                    f"{op}: {name} must be {self.dtype} as {first} is, got {tensor.dtype}"
                )
        self._placed = next((name for name in given if has_device(arrays[name])), first)
        self.device = "cpu" if self._placed is None else given[self._placed].device
        self._dtypes = {name: tensor.dtype for name, tensor in given.items()}
        kept = () if self.device == "cpu" else narrow
        self._output = self.dtype if kept else "float32"
        self._tensors = {
            name: self.here(name, arrays[name], tensor).to(
                dtype=self.dtype if name in kept else "float32"
            )
            for name, tensor in given.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """The argument `name`, which was given."""
        tensor = self.get(name)
        if tensor is None:
            raise DTypeError(f"{self.op}: {name} must be an array, got None")
        return tensor

    def get(self, name: str) -> Tensor | None:
        """The argument `name`, or None where it was not given."""
        return self._tensors.get(name)

    def here(self, name: str, array: ArrayLike, tensor: Tensor) -> Tensor:
        """`tensor`, made of the argument `array`, where the others are.

        Raises:
            DeviceError: `array` is on another device. NumPy arrays and lists are on none.
        """
        if has_device(array) and tensor.device != self.device:
            raise DeviceError(
                f"{self.op}: {name} must be on {self.device} as {self._placed} is, got "
                f"{tensor.device}"
            )
        return tensor.to(device=self.device)

    def array(self, values: npt.NDArray[Any]) -> Tensor:
        """NumPy's array where the arguments are."""
        return _core.as_tensor(values).to(device=self.device)

    def ids(self, name: str, array: ArrayLike, rows: int | None = None) -> Tensor:
        """The integer argument `name` beside them: `as_ids`, on the same device."""
        return self.here(name, array, as_ids(self.op, name, array, rows))

    def empty(self, *shape: int) -> Tensor:
        """A float32 tensor of any contents beside them; the core will write every element."""
        return _core.empty(list(shape), device=self.device)

    def output(self, *shape: int) -> Tensor:
        """The same for a result of the kind of the arguments in `narrow`."""
        return _core.empty(list(shape), dtype=self._output, device=self.device)

    def output_like(self, name: str) -> Tensor:
        """The same with the shape of the argument `name`."""
        return self.output(*self[name].shape)

    def zeros(self, *shape: int) -> Tensor:
        """A float32 tensor of zeros beside them, for the core to add to."""
        return _core.zeros(list(shape), device=self.device)

    def result(self, tensor: Tensor, like: str | None = None) -> Tensor:
        """A result in the dtype of the arguments, or of the argument `like`."""
        return tensor.to(dtype=self.dtype if like is None else self._dtypes[like])


def has_device(array: ArrayLike) -> bool:
    """Whether `array` is somewhere in particular: a Tensor or DLPack array, not NumPy's."""
    return hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray | np.generic)


def as_tensor(op: str, name: str, array: ArrayLike) -> Tensor:
    """Take `array` as a Tensor; errors say which argument of which operation it is."""
    if array is None:
        raise DTypeError(f"{op}: {name} must be an array, got None")
    try:
        return _core.as_tensor(array)
    except (TypeError, ValueError, BufferError) as error:
        reason = str(error).split(": ", 1)[-1]
        raise DTypeError(f"{op}: {name} cannot be read as an array: {reason}") from error


def as_ids(op: str, name: str, array: ArrayLike, rows: int | None = None) -> Tensor:
    """Take integers (int32, int64 or int8) as an int32 Tensor.

    Raises:
        TokenIndexError: one is beyond 32 bits, and so beyond the table of `rows` rows. Those below
            are for the core to compare.
    """
    tensor = as_tensor(op, name, array)
    if tensor.dtype not in ("int32", "int64", "int8"):
        raise DTypeError(f"{op}: {name} must be int32 or int64, got {tensor.dtype}")
    try:
        return tensor.to(dtype="int32")
    except DTypeError as error:
        place, value = first_beyond_32_bits(tensor.numpy())
        table = "the range of 32 bits" if rows is None else f"the table of {rows} rows"
        raise TokenIndexError(f"{op}: {name}{place} = {value} is outside {table}") from error


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
