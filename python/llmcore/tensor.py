"""Making tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmcore import _core
from llmcore._core import Tensor


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
    import numpy as np

    if not isinstance(obj, Tensor):
        if hasattr(obj, "__dlpack__") and not isinstance(obj, np.ndarray | np.generic):
            obj = _core.from_dlpack(obj)
        else:
            array = np.asarray(obj)
            obj = _core.as_tensor(array.astype(np.float32) if array.dtype == np.float64 else array)
    wanted = obj.dtype if dtype is None else dtype
    if wanted == obj.dtype:
        copy = _core.zeros(obj.shape, dtype=wanted)
        _core.copy(source=obj, target=copy)
        obj = copy
    result: Tensor = obj.to(dtype=wanted, device=device)
    return result


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
    sizes = [shape] if isinstance(shape, int) else list(shape)
    return _core.zeros(sizes, dtype=dtype, device=device)
