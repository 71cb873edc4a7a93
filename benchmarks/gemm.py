"""How close to the processor's peak are the matrix products of GPT-2's linear layers?

For the three forms (y = x W^T, dx = dy W, dW += dy^T x), llmcore and PyTorch (if installed) run in
turns in the same process, beside the measured peak of register-only fused multiply-adds. Rates are
medians over the turns; shares are of the median peak of the same turns.

    python benchmarks/gemm.py --threads 1,2 --rows 256,512,1024 --json gemm.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable

import numpy as np

import llmcore
from llmcore import _core

SHAPES = [(768, 2304), (768, 768), (768, 3072), (3072, 768)]  # K, N of GPT-2's layers
HEAD = (768, 50257)
HEAD_ROWS = 256
FORMS = ("y", "dx", "dw")
Call = Callable[[], object]


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # an idle PyTorch must not spin beside us
    torch = None if args.no_torch else import_torch()
    clock = time.thread_time if args.cpu_time else time.perf_counter
    results = []
    for threads in args.threads:
        if args.cpu_time and threads > 1:
            raise SystemExit("--cpu-time counts the calling thread alone: use it with --threads 1")
        llmcore.set_num_threads(threads)
        if torch is not None:
            torch.set_num_threads(threads)
        print(f"\n{threads} thread(s)   M      K      N   peak GFLOP/s   llmcore   torch")
        for form in args.forms:
            for rows in args.rows:
                shapes = [*SHAPES, HEAD] if rows == HEAD_ROWS else SHAPES
                for k, n in shapes:
                    case = measure(form, rows, k, n, torch, args.seconds, clock)
                    case["threads"] = threads
                    results.append(case)
                    print(line(case), flush=True)
    summarise(results)
    if args.json:
        versions = {"llmcore": llmcore.__version__, "torch": torch and torch.__version__}
        report = {"device": llmcore.device_info(), "versions": versions, "results": results}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


def parse_arguments() -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=numbers, default=[1], help="for example 1,2")
    parser.add_argument("--rows", type=numbers, default=[256, 512, 1024], help="M, several")
    parser.add_argument("--forms", type=lambda text: text.split(","), default=list(FORMS))
    parser.add_argument("--seconds", type=float, default=0.4, help="per case and library")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count only the time the thread ran: for a machine that does other work too",
    )
    parser.add_argument("--json", help="write the results here")
    return parser.parse_args()


def import_torch():
    try:
        import torch
    except ImportError:
        return None
    return torch


def measure(form: str, m: int, k: int, n: int, torch, seconds: float, clock) -> dict:
    """Run both libraries and the peak in turns; rates in operations per second."""
    calls = {"llmcore": llmcore_call(form, m, k, n)}
    if torch is not None:
        calls["torch"] = torch_call(torch, form, m, k, n)
    work = 2.0 * m * k * n
    times: dict[str, list[float]] = {name: [] for name in calls}
    peaks = []
    for call in calls.values():
        call()
    turns = max(5, int(seconds / (work / (_core.measure_peak(0.01) * 0.8))))
    for turn in range(turns):
        if turn % max(1, turns // 10) == 0:
            peaks.append(_core.measure_peak(0.005))
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    peak = statistics.median(peaks)
    case = {"form": form, "m": m, "k": k, "n": n, "turns": turns, "peak": peak}
    for name in calls:
        case[name] = work / statistics.median(times[name])
    return case


def random_matrix(rows: int, cols: int) -> llmcore.Tensor:
    """In memory of the core's own, as parameters and activations are."""
    values = np.random.default_rng(rows + cols).standard_normal((rows, cols), dtype=np.float32)
    return llmcore.tensor(values)


def llmcore_call(form: str, m: int, k: int, n: int) -> Call:
    x, w, dy = random_matrix(m, k), random_matrix(n, k), random_matrix(m, n)
    if form == "y":
        y = llmcore.zeros([m, n])
        return lambda: _core.matmul(a=x, b=w, c=y, transpose_b=True)
    if form == "dx":
        dx = llmcore.zeros([m, k])
        return lambda: _core.matmul(a=dy, b=w, c=dx)
    dw = llmcore.zeros([n, k])
    return lambda: _core.matmul(a=dy, b=x, c=dw, transpose_a=True, accumulate=True)


def torch_call(torch, form: str, m: int, k: int, n: int) -> Call:
    x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
    if form == "y":
        y = torch.empty(m, n)
        return lambda: torch.mm(x, w.t(), out=y)
    if form == "dx":
        dx = torch.empty(m, k)
        return lambda: torch.mm(dy, w, out=dx)
    dw = torch.zeros(n, k)
    return lambda: dw.addmm_(dy.t(), x)


def line(case: dict) -> str:
    text = (
        f"{case['form']:>12} {case['m']:5} {case['k']:6} {case['n']:6} {case['peak'] / 1e9:14.1f}"
        f" {case['llmcore'] / 1e9:13.1f} ({case['llmcore'] / case['peak']:6.1%})"
    )
    if "torch" in case:
        text += f" {case['torch'] / 1e9:13.1f} ({case['torch'] / case['peak']:6.1%})"
    return text


def summarise(results: list[dict]) -> None:
    print("\ngeometric means of the shares of peak (lowest)")
    for threads in dict.fromkeys(case["threads"] for case in results):
        for form in dict.fromkeys(case["form"] for case in results):
            text = f"{threads} thread(s) {form:>3}"
            for name in ("llmcore", "torch"):
                shares = [
                    case[name] / case["peak"]
                    for case in results
                    if case["threads"] == threads and case["form"] == form and name in case
                ]
                if shares:
                    mean = math.exp(statistics.fmean(math.log(share) for share in shares))
                    text += f"   {name} {mean:.1%} ({min(shares):.1%})"
            print(text)


if __name__ == "__main__":
    main()
