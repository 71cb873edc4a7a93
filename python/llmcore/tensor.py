"""Making tensors."""

from __future__ import annotations

import copyreg
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import DTypeError, ShapeError


def tensor(obj: Any, dtype: str | None = None, device: str = "cpu") -> Tensor:
    """Make a Tensor that owns its memory from numbers, lists, NumPy or any DLPack array.

    Args:
        obj: the elements. Python floats and float64 arrays become float32, Python ints int64.
        dtype: "float32", "bfloat16", "float16", "int32", "int64", "int8" or "bool"; kept if None.
        device: "cpu", "cuda" or "cuda:<index>".

    Returns:
        A new Tensor; `llmcore.from_dlpack` shares memory instead.

    Raises:
        DTypeError: no tensor can hold such elements.
        DeviceError: the device cannot be used, with the reason.

    Example:
        >>> tensor([1.0, 2.5], dtype="bfloat16").numpy()
        array([1. , 2.5], dtype=float32)
    """
    source = obj if isinstance(obj, Tensor) else _core.as_tensor(_readable(obj))
    _core.empty([0], device=device)  # an unusable device is told before any work is done
    if dtype is None or dtype == source.dtype:
        result = _core.empty(source.shape, dtype=source.dtype, device=device)
        _core.copy(source=source, target=result)
        return result
    return source.to(device="cpu").to(dtype=dtype).to(device=device)


def zeros(shape: Sequence[int] | int, dtype: str = "float32", device: str = "cpu") -> Tensor:
    """Make a Tensor of zeros.

    Args:
        shape: axis sizes.
        dtype: as in `tensor`.
        device: as in `tensor`.

    Returns:
        A new Tensor.

    Raises:
        ShapeError: a negative size, or too many axes.
        DTypeError: an unknown dtype.
        DeviceError: the device cannot be used, with the reason.

    Example:
        >>> zeros([2, 3])
        llmcore.Tensor(shape=[2, 3], dtype='float32', device='cpu')
    """
    try:
        given = shape if isinstance(shape, Iterable) else [shape]
        sizes = [operator.index(size) for size in given]
    except TypeError as error:
        raise ShapeError(f"zeros: shape must be whole numbers, got {shape!r}") from error
    return _core.zeros(sizes, dtype=dtype, device=device)


def write(target: Tensor, values: Any) -> None:
    """Set every element of a tensor on any device to a number or to those of a NumPy array."""
    import numpy as np

    staged = (
        target
        if target.device == "cpu"
        else _core.zeros(target.shape, dtype=target.dtype, device="cpu")
    )
    np.copyto(staged.numpy(), values)
    if staged is not target:
        _core.copy(source=staged, target=target)


def _readable(obj: Any) -> Any:
    """`obj` as something the core takes: element types that no Tensor has go through NumPy."""
    import numpy as np

    if hasattr(obj, "__dlpack__") and not isinstance(obj, np.ndarray | np.generic):
        try:
            return _core.from_dlpack(obj)
        except DTypeError:
            obj = np.from_dlpack(obj)
    try:
        array = np.asarray(obj)
    except ValueError:
        raise ShapeError("tensor: rows must have equal length, got ragged lists") from None
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _reduce(value: Tensor) -> tuple[Any, ...]:
    """How pickle and copy make a tensor again: from an array; float32 holds bfloat16 whole."""
    return tensor, (value.to(device="cpu").numpy(), value.dtype, value.device)


copyreg.pickle(Tensor, _reduce)
