"""Attention beside torch's scaled_dot_product_attention, in one run: time and share of FMA peak.

Peak is what this machine's threads reach on register-only multiply-adds, measured here. Operations
are counted on the visible half of the causal square: 2 (D + Dv) per query and visible key forward,
2.5 times that backward.

Usage: python benchmarks/attention.py [--threads 1 2] [--lengths 64 256 1024] [--json out]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import numpy as np
from common import set_threads

import llmcore
from llmcore import _core


def best_time(call: Callable[[], object], seconds: float = 0.25) -> float:
    """Shortest of the runs that fit into `seconds`, at least three."""
    call()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def ours(arrays: dict[str, np.ndarray]) -> tuple[Callable[[], object], Callable[[], object]]:
    q, k, v, dout = (llmcore.tensor(arrays[name]) for name in ("q", "k", "v", "dout"))
    call = _core.AttentionCall(op="attention", q=q, k=k, v=v, scale=q.shape[3] ** -0.5, causal=True)
    out, softmax = _core.empty(dout.shape), _core.empty([*q.shape[:3], 2])
    dq, dk, dv = (_core.empty(x.shape) for x in (q, k, v))

    def forward() -> None:
        _core.attention_forward(call, out=out, softmax=softmax)

    def both() -> None:
        forward()
        _core.attention_backward(call, out=out, softmax=softmax, dout=dout, dq=dq, dk=dk, dv=dv)

    return forward, both


def torchs(arrays: dict[str, np.ndarray]) -> tuple[Callable[[], object], Callable[[], object]]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v, dout = (torch.from_numpy(arrays[name]) for name in ("q", "k", "v", "dout"))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]

    def forward() -> None:
        with torch.no_grad():
            scaled_dot_product_attention(q, k, v, is_causal=True)

    def both() -> None:
        out = scaled_dot_product_attention(*leaves, is_causal=True)
        torch.autograd.grad(out, leaves, dout)

    return forward, both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--shape", type=int, nargs=3, default=[4, 12, 64], metavar=("B", "H", "D"))
    parser.add_argument("--peak", type=float, help="GFLOP/s of one thread; measured if not given")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    batch, heads, width = options.shape
    rng = np.random.default_rng(0)
    rows = []
    print(f"{'threads':>7} {'T':>5} {'pass':>8} {'ours ms':>9} {'of peak':>8} {'torch':>9} faster")
    for threads in options.threads:
        set_threads(threads)
        peak = options.peak * 1e9 * threads if options.peak else _core.measure_peak(0.3)
        for length in options.lengths:
            shape = (batch, heads, length, width)
            arrays = {x: rng.standard_normal(shape, np.float32) for x in ("q", "k", "v", "dout")}
            mine, theirs = ours(arrays), torchs(arrays)
            forward = 2 * 2 * width * batch * heads * length * (length + 1) / 2
            for name, i, operations in (("forward", 0, forward), ("both", 1, 3.5 * forward)):
                row = {
                    "threads": threads,
                    "T": length,
                    "pass": name,
                    "seconds": best_time(mine[i]),
                    "torch_seconds": best_time(theirs[i]),
                    "peak_flops": peak,
                }
                row["share_of_peak"] = operations / row["seconds"] / peak
                rows.append(row)
                print(
                    f"{threads:7} {length:5} {name:>8} {row['seconds'] * 1e3:9.3f} "
                    f"{row['share_of_peak']:8.1%} {row['torch_seconds'] * 1e3:9.3f} "
                    f"{row['torch_seconds'] / row['seconds']:8.2f}"
                )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(
                {"shape": options.shape, "isa": llmcore.device_info()["isa_chosen"], "rows": rows},
                file,
            )


if __name__ == "__main__":
    main()
