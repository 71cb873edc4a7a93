"""The suite on another device: what tests give without a device goes there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import llmcore
from llmcore import _core, ops
from llmcore.training import assemble


def write(tensor: llmcore.Tensor, values: np.ndarray) -> None:
    """Set all elements of a tensor, on whatever device, to an array or number."""
    filled = np.empty(tensor.shape, tensor.dtype)
    filled[...] = values
    _core.copy(source=_core.in_place_tensor(filled), target=tensor)


def make_default(device: str) -> None:
    """For the rest of this process and those it starts: arrays, models and runs are on `device`."""
    as_tensor = _core.as_tensor
    _core.as_tensor = lambda source: _moved(as_tensor(source), source, device)
    for name in ("zeros", "empty"):
        setattr(_core, name, functools.partial(getattr(_core, name), device=device))
    llmcore.tensor.__defaults__ = (None, device)
    llmcore.zeros.__defaults__ = ("float32", device)
    model = llmcore.Transformer
    for function in (model.__init__, model.from_pretrained.__func__, assemble.build_trainer):
        function.__kwdefaults__ = {**function.__kwdefaults__, "device": device}
    for name in ("adamw_step", "clip_grad_norm"):
        setattr(ops, name, _in_place(getattr(ops, name), device))
    os.environ["LLMCORE_DEVICE"] = device


def _moved(tensor: llmcore.Tensor, source: Any, device: str) -> llmcore.Tensor:
    """What tests mean by an array: a tensor there. Tensors stay where they are."""
    return tensor if source is tensor else tensor.to(device=device)


def _in_place(operation: Callable[..., Any], device: str) -> Callable[..., Any]:
    """An operation that updates NumPy arrays, which it does on the device here."""

    @functools.wraps(operation)
    def call(*args: Any, **kwargs: Any) -> Any:
        changed: list[tuple[np.ndarray, llmcore.Tensor]] = []

        def there(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(there, value))
            if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.flags.c_contiguous and value.flags.writeable:
                changed.append((value, _core.in_place_tensor(value).to(device=device)))
                return changed[-1][1]
            return value

        result = operation(*map(there, args), **kwargs)
        for array, tensor in changed:
            array[...] = tensor.numpy()
        return result

    return call
