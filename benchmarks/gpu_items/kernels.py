"""Every kernel at GPT-2's shapes: its share of the memory's rate or of the arithmetic's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpu_items import Absent, Part, Result, Setting, Tell, torch_on_gpu
from gpu_items.clock import (
    Call,
    bandwidth,
    blank,
    ours,
    percent,
    race,
    random_tensor,
    share,
    sold_with,
    torchs,
    whole_numbers,
)
from llmcore import _core


@dataclass(frozen=True)
class Case:
    """A kernel with its data.

    Attributes:
        shape: What it works on, for the report.
        bytes: That it cannot avoid to read and write.
        call: llmcore's.
        peers: PyTorch's calls that do the same, by name; they may raise where they are run.
        operations: Of arithmetic, where that is the limit and not the memory; else 0.
    """

    shape: dict[str, Any]
    bytes: float
    call: Call
    peers: dict[str, Call]
    operations: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """Of GPT-2 124M with a batch of 64 sequences of 1024 tokens."""

    batch: int = 64
    length: int = 1024
    heads: int = 12
    width: int = 64
    vocab: int = 50257
    padded: int = 50304
    loss_rows: int = 4096
    parameters: int = 124_439_808
    dtype: str = "bfloat16"  # of activations

    @property
    def item(self) -> int:
        """Bytes of an activation."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def rows(self) -> int:
        return self.batch * self.length

    @property
    def hidden(self) -> int:
        return self.heads * self.width


TINY = Sizes(2, 16, 2, 16, 65, 72, 8, 1000)

Make = Callable[[Sizes, Any], Case]


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts."""
    return [Part(name, partial(_measure, setting, make), 60) for name, make in CASES.items()]


def _measure(setting: Setting, make: Make, tell: Tell) -> Result:
    try:
        torch = torch_on_gpu()
    except Absent:
        torch = None
    case = make(TINY if setting.tiny else Sizes(), torch)
    contenders = {"llmcore": ours(case.call)}
    absent = {}
    for name, call in case.peers.items():
        try:
            call()
            contenders[name] = torchs(torch, call)
        except Exception as error:
            absent[name] = f"{type(error).__name__}: {error}"[:200]
    times = race(contenders, setting)
    sold = sold_with(setting.folder)
    peak = bandwidth(setting.folder) if not case.operations else sold and sold[0]
    amount = case.operations or case.bytes
    unit = "TFLOP/s" if case.operations else "TB/s"
    line = []
    for name, time in times.items():
        time["rate"] = amount / time["median_seconds"]
        time["share"] = share(amount, time["median_seconds"], peak)
        line.append(f"{name} {time['rate'] / 1e12:.2f} {unit} ({percent(time['share'])})")
    return {
        "shape": case.shape,
        "bytes": case.bytes,
        "operations": case.operations,
        "times": times,
        "not_run": absent,
        "line": ", ".join(line),
    }


def _peers(framework: Any, /, **calls: Callable[[], Call]) -> dict[str, Call]:
    """Make PyTorch's calls, where there is PyTorch; what they work on is made then, not before."""
    return {} if framework is None else {name: make() for name, make in calls.items()}


def _norm(rms: bool, backward: bool, s: Sizes, torch: Any) -> Case:
    n, c = s.rows, s.hidden
    x, y, weight, bias = (
        random_tensor(n, c, dtype=s.dtype),
        blank(n, c, dtype=s.dtype),
        random_tensor(c),
        random_tensor(c),
    )
    mean, rstd = (None if rms else blank(n)), blank(n)
    shift = None if rms else bias

    def forward() -> None:
        _core.norm_forward(
            rms=rms, eps=1e-5, x=x, weight=weight, bias=shift, y=y, mean=mean, rstd=rstd
        )

    shape = {"x": [n, c], "dtype": s.dtype}
    if not backward:

        def peer() -> Call:
            tx = torch.randn(n, c, device="cuda", dtype=torch.bfloat16)
            w, b = (torch.randn(c, device="cuda", dtype=torch.bfloat16) for _ in range(2))
            if rms:
                return lambda: torch.nn.functional.rms_norm(tx, (c,), w, 1e-5)
            return lambda: torch.nn.functional.layer_norm(tx, (c,), w, b)

        return Case(shape, 2 * s.item * n * c + 8 * n, forward, _peers(torch, torch=peer))
    forward()
    dy, dx, dweight = random_tensor(n, c, dtype=s.dtype), blank(n, c, dtype=s.dtype), blank(c)
    dbias = None if rms else blank(c)

    def gradient() -> None:
        _core.norm_backward(
            rms=rms, dy=dy, x=x, weight=weight, mean=mean, rstd=rstd, dx=dx, dweight=dweight,
            dbias=dbias,
        )  # fmt: skip

    def peer_gradient() -> Call:
        tx, w, b = (
            torch.randn(*size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
            for size in ((n, c), (c,), (c,))
        )
        if rms:
            out, leaves = torch.nn.functional.rms_norm(tx, (c,), w, 1e-5), (tx, w)
        else:
            out, leaves = torch.nn.functional.layer_norm(tx, (c,), w, b), (tx, w, b)
        grad = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)

    return Case(shape, 3 * s.item * n * c + 8 * n, gradient, _peers(torch, torch=peer_gradient))


def _activation(backward: bool, s: Sizes, torch: Any) -> Case:
    n, f = s.rows // 2, 4 * s.hidden
    x, dy, y = (random_tensor(n, f, dtype=s.dtype) for _ in range(3))
    shape = {"x": [n, f], "dtype": s.dtype, "activation": "gelu_tanh"}

    def peer() -> Call:
        tx = torch.randn(n, f, device="cuda", dtype=torch.bfloat16, requires_grad=backward)
        out = torch.nn.functional.gelu(tx, approximate="tanh")
        if not backward:
            return lambda: torch.nn.functional.gelu(tx, approximate="tanh")
        grad = torch.randn_like(out)
        return lambda: torch.autograd.grad(out, tx, grad, retain_graph=True)

    if not backward:
        return Case(
            shape, 2 * s.item * n * f,
            lambda: _core.activation_forward(activation="gelu_tanh", x=x, y=y),
            _peers(torch, torch=peer),
        )  # fmt: skip
    return Case(
        shape, 3 * s.item * n * f,
        lambda: _core.activation_backward(activation="gelu_tanh", dy=dy, x=x, dx=y),
        _peers(torch, torch=peer),
    )  # fmt: skip


def _gated(s: Sizes, torch: Any) -> Case:
    n, f = s.rows // 2, 4 * s.hidden
    gate, up, y = (random_tensor(n, f, dtype=s.dtype) for _ in range(3))
    return Case(
        {"gate": [n, f], "dtype": s.dtype, "activation": "silu"},
        3 * s.item * n * f,
        lambda: _core.gated_forward(activation="silu", gate=gate, up=up, y=y),
        {},
    )


def _residual_dropout(s: Sizes, torch: Any) -> Case:
    n, c = s.rows, s.hidden
    x, residual, y = (random_tensor(n, c, dtype=s.dtype) for _ in range(3))

    def peer() -> Call:
        tx, tr = (torch.randn(n, c, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        return lambda: tr + torch.nn.functional.dropout(tx, 0.1)

    return Case(
        {"x": [n, c], "dtype": s.dtype, "p": 0.1},
        3 * s.item * n * c,
        lambda: _core.dropout(p=0.1, seed=1, offset=0, x=x, residual=residual, y=y),
        _peers(torch, torch=peer),
    )


def _cross_entropy(padded: bool, s: Sizes, torch: Any) -> Case:
    n, v = s.loss_rows, s.padded if padded else s.vocab
    logits, dlogits = random_tensor(n, v, dtype=s.dtype), blank(n, v, dtype=s.dtype)
    targets, losses, scale = whole_numbers((n,), s.vocab), blank(n), random_tensor(n)

    def peer() -> Call:
        from torch.nn.functional import cross_entropy

        tl = torch.randn(n, v, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        tt = torch.randint(s.vocab, (n,), device="cuda")
        fused = torch.compile(lambda z, t: cross_entropy(z.float(), t))
        return lambda: torch.autograd.grad(fused(tl, tt), tl)

    return Case(
        {"logits": [n, v], "dtype": s.dtype, "does": "losses and their gradient"},
        2 * s.item * n * v,
        lambda: _core.cross_entropy(
            logits=logits, targets=targets, label_smoothing=0.0, losses=losses, row_scale=scale,
            dlogits=dlogits,
        ),
        _peers(torch, **{"torch-compile": peer}),
    )  # fmt: skip


def _head(s: Sizes, torch: Any) -> Case:
    n, c, v = s.loss_rows * 2, s.hidden, s.vocab
    hidden, weight = random_tensor(n, c, dtype=s.dtype), random_tensor(v, c, scale=0.02)
    targets, losses, scale = whole_numbers((n,), v), blank(n), random_tensor(n)
    dhidden, dweight = blank(n, c, dtype=s.dtype), blank(v, c)
    return Case(
        {"hidden": [n, c], "weight": [v, c], "dtype": s.dtype, "does": "losses and all gradients"},
        2 * s.item * n * c + 12 * v * c,
        lambda: _core.linear_cross_entropy(
            hidden=hidden, weight=weight, targets=targets, label_smoothing=0.0, losses=losses,
            row_scale=scale, dhidden=dhidden, dweight=dweight,
        ),
        {},
        operations=6.0 * n * c * v,
    )  # fmt: skip


def _adamw(s: Sizes, torch: Any) -> Case:
    count = s.parameters
    param, grad = random_tensor(count, scale=0.02), random_tensor(count, scale=1e-3)
    m, v = blank(count), blank(count)

    def peer() -> Call:
        weight = torch.randn(count, device="cuda", requires_grad=True)
        weight.grad = torch.randn_like(weight)
        return torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.1, fused=True).step

    return Case(
        {"parameters": count},
        28 * count,
        lambda: _core.adamw(
            param=param, grad=grad, m=m, v=v, lr=1e-4, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=0.1, step=1,
        ),
        _peers(torch, torch=peer),
    )  # fmt: skip


def _square_sum(s: Sizes, torch: Any) -> Case:
    x = random_tensor(s.parameters)

    def peer() -> Call:
        tx = torch.randn(s.parameters, device="cuda")
        return lambda: torch.linalg.vector_norm(tx)

    return Case(
        {"parameters": s.parameters, "note": "each call of llmcore's waits for its result"},
        4 * s.parameters,
        lambda: _core.square_sum(x),
        _peers(torch, torch=peer),
    )


def _embedding(backward: bool, s: Sizes, torch: Any) -> Case:
    n, c, v = s.rows, s.hidden, s.vocab
    ids, places = whole_numbers((n,), v), whole_numbers((n,), s.length)
    table, positions = random_tensor(v, c), random_tensor(s.length, c)
    out = random_tensor(n, c, dtype=s.dtype)
    shape = {"ids": [n], "table": [v, c], "positions": [s.length, c], "dtype": s.dtype}

    def peer() -> Call:
        from torch.nn.functional import embedding

        tids = torch.randint(v, (n,), device="cuda")
        weight = torch.randn(v, c, device="cuda", requires_grad=backward)
        if not backward:
            return lambda: embedding(tids, weight)
        y = embedding(tids, weight)
        grad = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, weight, grad, retain_graph=True)

    if not backward:
        return Case(
            shape, n * c * (4 + 4 + s.item),
            lambda: _core.embedding_forward(
                ids=ids, table=table, positions=positions, position_ids=places, out=out
            ),
            _peers(torch, torch_tokens_alone=peer),
        )  # fmt: skip
    dtable, dpositions = blank(v, c), blank(s.length, c)
    return Case(
        shape, n * c * s.item + 8 * (v + s.length) * c,
        lambda: _core.embedding_backward(
            dout=out, ids=ids, dtable=dtable, position_ids=places, dpositions=dpositions
        ),
        _peers(torch, torch_tokens_alone=peer),
    )  # fmt: skip


def _rope(s: Sizes, torch: Any) -> Case:
    shape = (s.batch, s.heads, s.length, s.width)
    x, y = random_tensor(*shape, dtype=s.dtype), blank(*shape, dtype=s.dtype)
    cos, sin = random_tensor(s.length, s.width // 2), random_tensor(s.length, s.width // 2)
    positions = whole_numbers((s.batch, s.length), s.length)
    return Case(
        {"x": list(shape), "dtype": s.dtype},
        2 * s.item * s.rows * s.hidden,
        lambda: _core.rope(
            x=x, cos=cos, sin=sin, positions=positions, interleaved=False, inverse=False, y=y
        ),
        {},
    )


def _cast(s: Sizes, torch: Any) -> Case:
    count = s.parameters
    x, y = random_tensor(count), blank(count, dtype="bfloat16")

    def peer() -> Call:
        tx = torch.randn(count, device="cuda")
        ty = torch.empty(count, device="cuda", dtype=torch.bfloat16)
        return lambda: ty.copy_(tx)

    return Case({"elements": count, "to": "bfloat16"}, 6 * count, lambda: _core.cast(x=x, y=y),
                _peers(torch, torch=peer))  # fmt: skip


def _column_sum(s: Sizes, torch: Any) -> Case:
    n, c = s.rows, 3 * s.hidden
    x, out = random_tensor(n, c, dtype=s.dtype), blank(c)

    def peer() -> Call:
        tx = torch.randn(n, c, device="cuda", dtype=torch.bfloat16)
        return lambda: tx.sum(0, dtype=torch.float32)

    return Case({"x": [n, c], "dtype": s.dtype}, s.item * n * c,
                lambda: _core.column_sum(x=x, out=out),
                _peers(torch, torch=peer))  # fmt: skip


def _softmax(s: Sizes, torch: Any) -> Case:
    n, c = s.rows, s.length
    x, y = random_tensor(n, c), blank(n, c)

    def peer() -> Call:
        tx = torch.randn(n, c, device="cuda")
        return lambda: torch.softmax(tx, -1)

    return Case({"x": [n, c], "dtype": "float32"}, 8 * n * c,
                lambda: _core.softmax_forward(log=False, x=x, y=y),
                _peers(torch, torch=peer))  # fmt: skip


def _attention(backward: bool, s: Sizes, torch: Any) -> Case:
    b, t, h, d = shape = (s.batch, s.length, s.heads, s.width)
    q, k, v, dout = (random_tensor(*shape, dtype=s.dtype) for _ in range(4))
    out, softmax = blank(*shape, dtype=s.dtype), blank(b, h, t, 2)
    call = _core.AttentionCall(
        op="attention", q=q, k=k, v=v, scale=d**-0.5, causal=True, rows_first=True
    )
    dq, dk, dv = (blank(*shape, dtype=s.dtype) for _ in range(3))

    def forward() -> None:
        _core.attention_forward(call, out=out, softmax=softmax)

    def gradient() -> None:
        _core.attention_backward(call, out=out, softmax=softmax, dout=dout, dq=dq, dk=dk, dv=dv)

    def peer(backend: str) -> Call:
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.functional import scaled_dot_product_attention

        leaves = [
            torch.randn(b, h, t, d, device="cuda", dtype=torch.bfloat16, requires_grad=backward)
            for _ in range(3)
        ]

        def run() -> Any:
            with sdpa_kernel(getattr(SDPBackend, backend)):
                return scaled_dot_product_attention(*leaves, is_causal=True)

        if not backward:
            return run
        y: list[Any] = []  # made at the first call, where failing is expected
        grad = torch.randn(b, h, t, d, device="cuda", dtype=torch.bfloat16)

        def gradient() -> object:
            if not y:
                y.append(run())
            return torch.autograd.grad(y[0], leaves, grad, retain_graph=True)

        return gradient

    forward()
    visible = 4.0 * d * b * h * t * (t + 1) / 2  # of the forward pass, the visible half alone
    elements = b * h * t * d
    return Case(
        {"B, T, H, D": list(shape), "dtype": s.dtype, "causal": True},
        s.item * elements * (8 if backward else 4),
        gradient if backward else forward,
        _peers(
            torch,
            torch_flash=partial(peer, "FLASH_ATTENTION"),
            torch_cudnn=partial(peer, "CUDNN_ATTENTION"),
        ),
        operations=visible * (2.5 if backward else 1.0),
    )


CASES: dict[str, Make] = {
    "attention forward": partial(_attention, False),
    "attention backward": partial(_attention, True),
    "layer norm forward": partial(_norm, False, False),
    "layer norm backward": partial(_norm, False, True),
    "cross-entropy": partial(_cross_entropy, False),
    "cross-entropy, padded vocabulary": partial(_cross_entropy, True),
    "head with its loss": _head,
    "adamw": _adamw,
    "activation forward": partial(_activation, False),
    "activation backward": partial(_activation, True),
    "residual dropout": _residual_dropout,
    "embedding forward": partial(_embedding, False),
    "embedding backward": partial(_embedding, True),
    "column sum": _column_sum,
    "cast": _cast,
    "square sum": _square_sum,
    "rms norm forward": partial(_norm, True, False),
    "rms norm backward": partial(_norm, True, True),
    "rope": _rope,
    "gated activation": _gated,
    "softmax": _softmax,
}
