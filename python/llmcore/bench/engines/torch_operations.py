"""PyTorch's operations: into memory that is there already where it allows that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmcore.bench.operations import Operations
from llmcore.bench.worker import Built, timed

Call = Callable[[], object]


def operations(workload: dict[str, Any]) -> Built:
    """Return every operation of the workload."""
    import torch

    torch.manual_seed(0)
    runs = {
        operation.name: timed(_CALLS[operation.kind](*operation.sizes))
        for operation in Operations(**workload).operations()
        if operation.kind in _CALLS
    }
    return Built(runs, torch.__version__)


def _y(m: int, k: int, n: int) -> Call:
    import torch

    x, w, y = torch.randn(m, k), torch.randn(n, k), torch.empty(m, n)
    return lambda: torch.mm(x, w.t(), out=y)


def _dx(m: int, k: int, n: int) -> Call:
    import torch

    dy, w, dx = torch.randn(m, n), torch.randn(n, k), torch.empty(m, k)
    return lambda: torch.mm(dy, w, out=dx)


def _dw(m: int, k: int, n: int) -> Call:
    import torch

    dy, x, dw = torch.randn(m, n), torch.randn(m, k), torch.zeros(n, k)
    return lambda: dw.addmm_(dy.t(), x)


# As autocast takes them: operands are rounded first.
def _y_bfloat16(m: int, k: int, n: int) -> Call:
    import torch

    x, w = torch.randn(m, k), torch.randn(n, k)
    return lambda: x.bfloat16() @ w.bfloat16().t()


def _dx_bfloat16(m: int, k: int, n: int) -> Call:
    import torch

    dy, w = torch.randn(m, n), torch.randn(n, k)
    return lambda: dy.bfloat16() @ w.bfloat16()


def _dw_bfloat16(m: int, k: int, n: int) -> Call:
    import torch

    dy, x, dw = torch.randn(m, n), torch.randn(m, k), torch.zeros(n, k)
    return lambda: dw.add_(dy.bfloat16().t() @ x.bfloat16())


def _packed_bfloat16(m: int, k: int, n: int) -> Call:
    import torch

    x, w = torch.randn(m, k), torch.randn(n, k).bfloat16()
    return lambda: (x.bfloat16() @ w.t()).float()


def _attention(b: int, h: int, t: int, d: int) -> Call:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (torch.randn(b, h, t, d) for _ in range(3))

    def run() -> object:
        with torch.no_grad():
            return scaled_dot_product_attention(q, k, v, is_causal=True)

    return run


def _attention_and_gradient(b: int, h: int, t: int, d: int) -> Call:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    leaves = [torch.randn(b, h, t, d, requires_grad=True) for _ in range(3)]
    dout = torch.randn(b, h, t, d)

    def run() -> object:
        q, k, v = leaves
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, leaves, dout)

    return run


def _layer_norm(rows: int, width: int) -> Call:
    import torch
    from torch.nn.functional import layer_norm

    x, weight, bias = torch.randn(rows, width), torch.randn(width), torch.randn(width)

    def run() -> object:
        with torch.no_grad():
            return layer_norm(x, (width,), weight, bias)

    return run


def _layer_norm_and_gradient(rows: int, width: int) -> Call:
    import torch
    from torch.nn.functional import layer_norm

    leaves = [torch.randn(*s, requires_grad=True) for s in ((rows, width), (width,), (width,))]
    dy = torch.randn(rows, width)

    def run() -> object:
        x, weight, bias = leaves
        return torch.autograd.grad(layer_norm(x, (width,), weight, bias), leaves, dy)

    return run


def _cross_entropy(rows: int, width: int) -> Call:
    import torch
    from torch.nn.functional import cross_entropy

    logits, targets = torch.randn(rows, width, requires_grad=True), torch.arange(rows) % width
    return lambda: torch.autograd.grad(cross_entropy(logits, targets), logits)


def _adamw(count: int) -> Call:
    import torch

    param = torch.randn(count, requires_grad=True)
    param.grad = torch.randn(count)
    optimizer = torch.optim.AdamW([param], lr=1e-4, weight_decay=0.1, fused=True)
    return lambda: optimizer.step()


_CALLS: dict[str, Callable[..., Call]] = {
    "y": _y,
    "dx": _dx,
    "dw": _dw,
    "y_bfloat16": _y_bfloat16,
    "dx_bfloat16": _dx_bfloat16,
    "dw_bfloat16": _dw_bfloat16,
    "y_packed_bfloat16": _packed_bfloat16,
    "attention": _attention,
    "attention+grad": _attention_and_gradient,
    "layer_norm": _layer_norm,
    "layer_norm+grad": _layer_norm_and_gradient,
    "cross_entropy+grad": _cross_entropy,
    "adamw": _adamw,
}
