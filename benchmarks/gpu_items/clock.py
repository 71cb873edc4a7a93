"""Timing on a GPU, random data there, and the rates that its kind is sold with."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import llmcore
from gpu_items import Result, Setting

Call = Callable[[], object]

#: Dense bfloat16 and float32 operations and bytes per second, from NVIDIA's data sheets (SXM).
_SOLD = {
    "H200": (989e12, 67e12, 4.8e12),
    "H100": (989e12, 67e12, 3.35e12),
    "A100": (312e12, 19.5e12, 2.04e12),
}
_RANDOM = 1 << 22


@dataclass(frozen=True)
class Contender:
    """Something timed: a call that returns before the GPU has done it, and how to wait for that."""

    call: Call
    wait: Call


def ours(call: Call) -> Contender:
    """Return a contender of llmcore's: reading a tensor waits for all that was asked before."""
    awaited = llmcore.zeros([1], device="cuda")
    return Contender(call, awaited.numpy)


def torchs(torch: Any, call: Call) -> Contender:
    """Return a contender of PyTorch's."""
    return Contender(call, torch.cuda.synchronize)


def race(contenders: Mapping[str, Contender], setting: Setting) -> dict[str, Result]:
    """Return the seconds of one call of each, which take turns: many calls between two waits.

    The first calls, of each alone, are not counted; rounds begin with another contender each.
    """
    rounds, seconds = (2, 0.0) if setting.tiny else (5, 0.06)
    counts = {}
    for name, contender in contenders.items():
        _time(contender, 1)
        once = _time(contender, 1)
        counts[name] = max(1, min(2000, int(seconds / once)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            taken[name].append(_time(contenders[name], counts[name]) / counts[name])
    return {
        name: {
            "median_seconds": statistics.median(taken[name]),
            "rounds": taken[name],
            "calls_a_round": counts[name],
        }
        for name in names
    }


def _time(contender: Contender, count: int) -> float:
    contender.wait()
    start = time.perf_counter()
    for _ in range(count):
        contender.call()
    contender.wait()
    return time.perf_counter() - start


@cache
def _normals() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(_RANDOM, dtype=np.float32)


def random_tensor(*shape: int, dtype: str = "float32", scale: float = 1.0) -> llmcore.Tensor:
    """Return normal numbers on the GPU; beyond four million of them they come again."""
    values = np.resize(_normals(), math.prod(shape)).reshape(shape)
    if scale != 1.0:
        values = values * np.float32(scale)
    return llmcore.tensor(values, dtype=dtype).to(device="cuda")


def whole_numbers(shape: tuple[int, ...], below: int) -> llmcore.Tensor:
    """Return random whole numbers in [0, below) on the GPU."""
    values = np.random.default_rng(1).integers(0, below, shape).astype(np.int32)
    return llmcore.tensor(values, device="cuda")


def blank(*shape: int, dtype: str = "float32") -> llmcore.Tensor:
    """Return memory on the GPU for results."""
    return llmcore.zeros(list(shape), dtype, device="cuda")


def read(folder: Path, item: str) -> Result:
    """Return the parts of an item that ran before; none where it did not."""
    try:
        parts: Result = json.loads((folder / f"{item}.json").read_text())["parts"]
    except (OSError, ValueError, KeyError):
        return {}
    return parts


def gpu_name(folder: Path) -> str:
    """Return the GPU's name, as the environment item found it."""
    return str(read(folder, "environment").get("gpu", {}).get("name", "unknown"))


def sold_with(folder: Path) -> tuple[float, float, float] | None:
    """Return operations per second in bfloat16 and float32 and bytes per second, if known."""
    name = gpu_name(folder)
    return next((rates for kind, rates in _SOLD.items() if kind in name), None)


def bandwidth(folder: Path) -> float | None:
    """Return the bytes per second of the best copy that was measured, or what is sold."""
    copies = read(folder, "ceilings").get("copy", {}).get("bytes_per_second", {})
    sold = sold_with(folder)
    return max(copies.values(), default=sold[2] if sold else None)


def share(amount: float, seconds: float, peak: float | None) -> float | None:
    """Return the share of a rate that `amount` in `seconds` is; None where none is known."""
    return None if not peak else amount / seconds / peak


def percent(value: float | None) -> str:
    """Return a share for people to read."""
    return "–" if value is None else f"{100 * value:.0f} %"
