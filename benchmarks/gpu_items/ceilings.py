"""Rates that nothing on this GPU exceeds: copying memory, and a large product of random numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

from gpu_items import Absent, Part, Result, Setting, Tell, torch_on_gpu
from gpu_items.clock import blank, ours, percent, race, random_tensor, share, sold_with, torchs
from llmcore import _core


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts."""
    return [
        Part("copy", partial(_copy, setting), 60),
        Part("product bfloat16", partial(_product, setting, "bfloat16"), 60),
        Part("product float32", partial(_product, setting, "float32"), 60),
    ]


def _copy(setting: Setting, tell: Tell) -> Result:
    """Bytes read and written a second, by ways that must all come close to each other."""
    count = 1 << 16 if setting.tiny else 1 << 29  # elements
    x, y = random_tensor(count), blank(count)
    contenders = {
        "llmcore copy": ours(lambda: _core.copy(source=x, target=y)),
        "llmcore scale": ours(lambda: _core.scale(factor=1.5, x=x, y=y)),
    }
    if (torch := _torch()) is not None:
        tx = torch.randn(count, device="cuda")
        ty = torch.empty_like(tx)
        contenders["torch copy"] = torchs(torch, lambda: ty.copy_(tx))
    times = race(contenders, setting)
    rates = {name: 8 * count / time["median_seconds"] for name, time in times.items()}
    return {
        "bytes_moved": 8 * count,
        "times": times,
        "bytes_per_second": rates,
        "line": ", ".join(f"{name} {rate / 1e12:.2f} TB/s" for name, rate in rates.items()),
    }


def _product(setting: Setting, dtype: str, tell: Tell) -> Result:
    n = 64 if setting.tiny else 8192
    a, b, c = (
        random_tensor(n, n, dtype=dtype),
        random_tensor(n, n, dtype=dtype),
        blank(n, n, dtype=dtype),
    )
    contenders = {
        "llmcore": ours(lambda: _core.matmul(a=a, b=b, c=c, transpose_b=True)),
    }
    if (torch := _torch()) is not None:
        torch.backends.cuda.matmul.allow_tf32 = False
        kind = getattr(torch, dtype)
        ta, tb, tc = (torch.randn(n, n, device="cuda").to(kind) for _ in range(3))
        contenders["torch"] = torchs(torch, lambda: torch.mm(ta, tb.t(), out=tc))
    times = race(contenders, setting)
    rates = {name: 2 * n**3 / time["median_seconds"] for name, time in times.items()}
    sold = sold_with(setting.folder)
    peak = None if sold is None else sold[0 if dtype == "bfloat16" else 1]
    return {
        "shape": [n, n, n],
        "dtype": dtype,
        "times": times,
        "flops": rates,
        "line": ", ".join(
            f"{name} {rate / 1e12:.1f} TFLOP/s ({percent(share(rate, 1, peak))} of what is sold)"
            for name, rate in rates.items()
        ),
    }


def _torch() -> Any:
    try:
        return torch_on_gpu()
    except Absent:
        return None
