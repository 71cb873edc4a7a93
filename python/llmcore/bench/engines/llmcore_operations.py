"""llmcore's operations, called as the layers call them: on memory that is there already."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import llmcore
from llmcore import _core
from llmcore._core import Tensor
from llmcore.bench.operations import Operations
from llmcore.bench.worker import Built, timed

Call = Callable[[], None]


def operations(workload: dict[str, Any]) -> Built:
    """Return every operation of the workload."""
    runs = {
        operation.name: timed(_CALLS[operation.kind](*operation.sizes))
        for operation in Operations(**workload).operations()
    }
    return Built(runs, llmcore.__version__)


def _random(*shape: int) -> Tensor:
    random = np.random.default_rng(sum(shape))
    return llmcore.tensor(random.standard_normal(shape, dtype=np.float32))


def _y(m: int, k: int, n: int, *, bfloat16: bool = False) -> Call:
    x, w, y = _random(m, k), _random(n, k), llmcore.zeros([m, n])
    return lambda: _core.matmul(a=x, b=w, c=y, transpose_b=True, bfloat16=bfloat16)


def _dx(m: int, k: int, n: int, *, bfloat16: bool = False) -> Call:
    dy, w, dx = _random(m, n), _random(n, k), llmcore.zeros([m, k])
    return lambda: _core.matmul(a=dy, b=w, c=dx, bfloat16=bfloat16)


def _dw(m: int, k: int, n: int, *, bfloat16: bool = False) -> Call:
    dy, x, dw = _random(m, n), _random(m, k), llmcore.zeros([n, k])
    return lambda: _core.matmul(
        a=dy, b=x, c=dw, transpose_a=True, accumulate=True, bfloat16=bfloat16
    )


def _packed(m: int, k: int, n: int, *, format: str) -> Call:
    x, w, y = _random(m, k), _core.PackedWeight(_random(n, k), format), llmcore.zeros([m, n])
    return lambda: w.matmul(x, y)


def _attention(b: int, h: int, t: int, d: int, *, gradient: bool = False) -> Call:
    q, k, v, dout = (_random(b, h, t, d) for _ in range(4))
    call = _core.AttentionCall(op="attention", q=q, k=k, v=v, scale=d**-0.5, causal=True)
    out, softmax = llmcore.zeros([b, h, t, d]), llmcore.zeros([b, h, t, 2])
    dq, dk, dv = (llmcore.zeros([b, h, t, d]) for _ in range(3))

    def run() -> None:
        _core.attention_forward(call, out=out, softmax=softmax)
        if gradient:
            _core.attention_backward(call, out=out, softmax=softmax, dout=dout, dq=dq, dk=dk, dv=dv)

    return run


def _layer_norm(rows: int, width: int, *, gradient: bool = False) -> Call:
    x, dy, weight, bias = _random(rows, width), _random(rows, width), _random(width), _random(width)
    y, dx = llmcore.zeros([rows, width]), llmcore.zeros([rows, width])
    mean, rstd = llmcore.zeros([rows]), llmcore.zeros([rows])
    dweight, dbias = llmcore.zeros([width]), llmcore.zeros([width])

    def run() -> None:
        _core.norm_forward(
            rms=False, eps=1e-5, x=x, weight=weight, bias=bias, y=y, mean=mean, rstd=rstd
        )
        if gradient:
            _core.norm_backward(
                rms=False, dy=dy, x=x, weight=weight, mean=mean, rstd=rstd, dx=dx,
                dweight=dweight, dbias=dbias,
            )  # fmt: skip

    return run


def _cross_entropy(rows: int, width: int) -> Call:
    logits, dlogits = _random(rows, width), llmcore.zeros([rows, width])
    targets = _core.as_tensor(np.arange(rows, dtype=np.int32) % width)
    losses, scale = llmcore.zeros([rows]), llmcore.tensor(np.full(rows, 1 / rows, np.float32))
    return lambda: _core.cross_entropy(
        logits=logits, targets=targets, label_smoothing=0.0, losses=losses, row_scale=scale,
        dlogits=dlogits,
    )  # fmt: skip


def _adamw(count: int) -> Call:
    param, grad = _random(count), _random(count)
    m, v = llmcore.zeros([count]), llmcore.zeros([count])
    return lambda: _core.adamw(
        param=param, grad=grad, m=m, v=v, lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8,
        weight_decay=0.1, step=1,
    )  # fmt: skip


_CALLS: dict[str, Callable[..., Call]] = {
    "y": _y,
    "dx": _dx,
    "dw": _dw,
    "y_bfloat16": partial(_y, bfloat16=True),
    "dx_bfloat16": partial(_dx, bfloat16=True),
    "dw_bfloat16": partial(_dw, bfloat16=True),
    "y_packed_bfloat16": partial(_packed, format="bfloat16"),
    "y_packed_int8": partial(_packed, format="int8"),
    "y_packed_int4": partial(_packed, format="int4"),
    "attention": _attention,
    "attention+grad": partial(_attention, gradient=True),
    "layer_norm": _layer_norm,
    "layer_norm+grad": partial(_layer_norm, gradient=True),
    "cross_entropy+grad": _cross_entropy,
    "adamw": _adamw,
}
