"""The suite on another device: what tests give without a device goes there."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import llmcore
from llmcore import _core, ops
from llmcore.ops._arguments import has_device
from llmcore.training import assemble


def make_default(device: str) -> None:
    """For the rest of this process and those it starts: arrays, models and runs are on `device`."""
    os.environ["LLMCORE_DEVICE"] = device
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
    llmcore.GenerationResult.__eq__ = _alike


def _alike(mine: Any, other: Any) -> bool:
    """The same text, whose log-probabilities may differ in their last bits: kernels of a GPU depend
    on how many texts there are, and with them the order of sums."""

    for name in ("ids", "text", "finish_reason"):
        if getattr(mine, name) != getattr(other, name):
            return False
    logprobs = [mine.logprobs, other.logprobs]
    return np.allclose(*logprobs, atol=1e-3) and mine.alternatives == other.alternatives


def _moved(tensor: llmcore.Tensor, source: Any, device: str) -> llmcore.Tensor:
    """What tests mean by NumPy's arrays and lists: tensors there. All else stays where it is."""
    return tensor if has_device(source) else tensor.to(device=device)


def _in_place(operation: Callable[..., Any], device: str) -> Callable[..., Any]:
    """An operation that updates NumPy arrays, which it does on the device here."""

    @functools.wraps(operation)
    def call(*args: Any, **kwargs: Any) -> Any:
        changed: list[tuple[np.ndarray, llmcore.Tensor]] = []

        def there(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return type(value)(map(there, value))
            if not isinstance(value, np.ndarray):
                return value
            try:
                tensor = _core.in_place_tensor(value)
            except (TypeError, ValueError):  # which the operation is to find
                return value
            changed.append((value, tensor.to(device=device)))
            return changed[-1][1]

        result = operation(*map(there, args), **kwargs)
        for array, tensor in changed:
            array[...] = tensor.numpy()
        return result

    return call
