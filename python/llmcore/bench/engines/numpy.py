"""NumPy among the contestants: the products of its BLAS, and what is a few lines of array code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.bench.operations import Operations
from llmcore.bench.worker import Built, timed

Call = Callable[[], object]


def operations(workload: dict[str, Any]) -> Built:
    """Return those operations of the workload that NumPy has."""
    runs = {
        operation.name: timed(_CALLS[operation.kind](*operation.sizes))
        for operation in Operations(**workload).operations()
        if operation.kind in _CALLS
    }
    return Built(runs, np.__version__)


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(sum(shape)).standard_normal(shape, dtype=np.float32)


def _y(m: int, k: int, n: int) -> Call:
    x, w, y = _random(m, k), _random(n, k), np.empty((m, n), np.float32)
    return lambda: np.matmul(x, w.T, out=y)


def _dx(m: int, k: int, n: int) -> Call:
    dy, w, dx = _random(m, n), _random(n, k), np.empty((m, k), np.float32)
    return lambda: np.matmul(dy, w, out=dx)


def _dw(m: int, k: int, n: int) -> Call:
    dy, x, dw = _random(m, n), _random(m, k), np.zeros((n, k), np.float32)

    def run() -> None:
        np.add(dw, dy.T @ x, out=dw)

    return run


def _layer_norm(rows: int, width: int) -> Call:
    x, weight, bias = _random(rows, width), _random(width), _random(width)

    def run() -> object:
        centred = x - x.mean(1, keepdims=True)
        variance = np.square(centred).mean(1, keepdims=True)
        return centred / np.sqrt(variance + 1e-5) * weight + bias

    return run


_CALLS: dict[str, Callable[..., Call]] = {"y": _y, "dx": _dx, "dw": _dw, "layer_norm": _layer_norm}
