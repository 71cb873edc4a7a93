"""Matrix products of GPT-2's layers, in the three forms and with the epilogues training uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpu_items import Absent, Part, Result, Setting, Tell, torch_on_gpu
from gpu_items.clock import (
    Call,
    blank,
    ours,
    percent,
    race,
    random_tensor,
    share,
    sold_with,
    torchs,
)
from llmcore import _core
from llmcore.training.tune import tuning

HALF = "bfloat16"
#: Width of each size of GPT-2, and the tokens of a batch that it is trained with on one GPU.
MODELS = {
    "124M": (768, 65536),
    "350M": (1024, 32768),
    "774M": (1280, 16384),
    "1558M": (1600, 16384),
}
_HEAD_ROWS = 8192  # the head takes a batch in chunks
_VOCAB = 50304  # rows of logits are padded to it

Calls = tuple[Call, Callable[[Any], Call]]


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts: a layer of a size each."""
    models = {"tiny": (32, 64)} if setting.tiny else MODELS
    vocab, head_rows = (65, 16) if setting.tiny else (_VOCAB, _HEAD_ROWS)
    found = []
    for name, (c, tokens) in models.items():
        layers = {
            "qkv": (tokens, c, 3 * c),
            "out": (tokens, c, c),
            "up": (tokens, c, 4 * c),
            "down": (tokens, 4 * c, c),
            "head": (head_rows, c, vocab),
        }
        for layer, (m, k, n) in layers.items():
            run = partial(_layer, setting, layer, m, k, n)
            found.append(Part(f"{name} {layer}", run, 30))
    return found


def _layer(setting: Setting, layer: str, m: int, k: int, n: int, tell: Tell) -> Result:
    """Time y = x Wᵀ, dx = dy W and dW += dyᵀ x."""
    try:
        torch = torch_on_gpu()
    except Absent:
        torch = None
    sold = sold_with(setting.folder)
    forms: Result = {}
    for form, make in FORMS.items():
        epilogue, call, peer = make(layer, m, k, n)
        contenders = {"llmcore": ours(call)}
        if torch is not None:
            contenders["torch"] = torchs(torch, peer(torch))
        times = race(contenders, setting)
        with tuning():
            call()
        times["llmcore tuned"] = race({"llmcore": ours(call)}, setting)["llmcore"]
        for time in times.values():
            time["flops"] = 2.0 * m * k * n / time["median_seconds"]
            time["share"] = share(2.0 * m * k * n, time["median_seconds"], sold and sold[0])
        forms[form] = {"epilogue": epilogue, "times": times}
        tell({"shape": {"M": m, "K": k, "N": n}, "dtype": HALF, "forms": forms})
    line = ", ".join(
        f"{form} "
        + " / ".join(
            f"{time['flops'] / 1e12:.0f} ({percent(time['share'])})"
            for time in found["times"].values()
        )
        for form, found in forms.items()
    )
    names = " / ".join([*contenders, "llmcore tuned"])
    return {
        "shape": {"M": m, "K": k, "N": n},
        "dtype": HALF,
        "forms": forms,
        "line": f"{m} x {k} x {n}, {names}, TFLOP/s: {line}",
    }


def _forward(layer: str, m: int, k: int, n: int) -> tuple[list[str], Call, Callable[[Any], Call]]:
    """With what the layer has after the product; PyTorch's is the product with its bias alone."""
    x, w = random_tensor(m, k, dtype=HALF), random_tensor(n, k, dtype=HALF, scale=0.02)
    y, bias = blank(m, n, dtype=HALF), random_tensor(n)
    more: dict[str, Any] = {} if layer == "head" else {"bias": bias}
    if layer == "up":
        more |= {"activation": "gelu_tanh", "pre_activation": blank(m, n, dtype=HALF)}
    if layer in ("out", "down"):
        more["residual"] = random_tensor(m, n, dtype=HALF)

    def peer(torch: Any) -> Call:
        tx, tw, tb = (_torch_random(torch, *size) for size in ((m, k), (n, k), (n,)))
        out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        if layer == "head":
            return lambda: torch.mm(tx, tw.t(), out=out)
        return lambda: torch.addmm(tb, tx, tw.t(), out=out)

    call = partial(_core.matmul, a=x, b=w, c=y, transpose_b=True, **more)
    return list(more), call, peer


def _input_gradient(
    layer: str, m: int, k: int, n: int
) -> tuple[list[str], Call, Callable[[Any], Call]]:
    """Before the down projection stands the activation, whose derivative is in the epilogue."""
    dy, w = random_tensor(m, n, dtype=HALF), random_tensor(n, k, dtype=HALF, scale=0.02)
    dx = blank(m, k, dtype=HALF)
    more: dict[str, Any] = {}
    if layer == "down":
        more = {
            "gate_input": random_tensor(m, k, dtype=HALF),
            "gate_activation": "gelu_tanh",
        }

    def peer(torch: Any) -> Call:
        ty, tw = _torch_random(torch, m, n), _torch_random(torch, n, k)
        out = torch.empty(m, k, device="cuda", dtype=torch.bfloat16)
        return lambda: torch.mm(ty, tw, out=out)

    return list(more), partial(_core.matmul, a=dy, b=w, c=dx, **more), peer


def _weight_gradient(
    layer: str, m: int, k: int, n: int
) -> tuple[list[str], Call, Callable[[Any], Call]]:
    """Added to float32; PyTorch's result is bfloat16, as autocast has it."""
    dy, x, dw = random_tensor(m, n, dtype=HALF), random_tensor(m, k, dtype=HALF), blank(n, k)

    def peer(torch: Any) -> Call:
        ty, tx = _torch_random(torch, m, n), _torch_random(torch, m, k)
        out = torch.empty(n, k, device="cuda", dtype=torch.bfloat16)
        return lambda: torch.mm(ty.t(), tx, out=out)

    call = partial(_core.matmul, a=dy, b=x, c=dw, transpose_a=True, accumulate=True)
    return ["accumulate in float32"], call, peer


def _torch_random(torch: Any, *shape: int) -> Any:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


#: The forms of a layer's product; each makes, of a layer's name and M, K and N, the names of its
#: epilogues, llmcore's call, and what makes PyTorch's.
FORMS = {"y": _forward, "dx": _input_gradient, "dw": _weight_gradient}
