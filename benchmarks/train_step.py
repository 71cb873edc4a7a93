"""GPT-2 training steps beside PyTorch: tokens per second and peak memory, in turns in one run.

    python benchmarks/train_step.py --batch 4 --length 64 --rounds 3 --json results.json

Each engine runs in a process of its own, one at a time, in turns; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def run_llmcore(args: argparse.Namespace, ids: np.ndarray) -> Any:
    """A function that takes one step with llmcore."""
    import llmcore
    from llmcore.objectives import CausalLM

    llmcore.set_num_threads(args.threads)
    model = llmcore.Transformer(llmcore.ModelConfig.preset(args.model))
    step = llmcore.TrainStep(model, lr=1e-4, weight_decay=0.1, max_grad_norm=1.0)
    batch = CausalLM()(ids)
    return lambda: step(batch).loss


def run_torch(args: argparse.Namespace, ids: np.ndarray) -> Any:
    """The same in PyTorch: transformers' GPT-2 with fused attention, fused AdamW and clipping."""
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    config = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel._from_config(config, attn_implementation="sdpa")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if args.engine == "torch-compile" else model
    x, y = torch.tensor(ids[:, :-1]), torch.tensor(ids[:, 1:]).reshape(-1)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = forward(x, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return step


def child(args: argparse.Namespace) -> None:
    """Time one engine and print the result as JSON."""
    ids = np.random.default_rng(0).integers(0, 50257, (args.batch, args.length + 1))
    step = (run_llmcore if args.engine == "llmcore" else run_torch)(args, ids)
    losses = [step() for _ in range(args.warmup)]
    seconds = []
    for _ in range(args.steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "losses": losses, "peak_bytes": peak}))


def parent(args: argparse.Namespace) -> None:
    """Run the engines in turns and report ratios."""
    runs: dict[str, list[dict[str, Any]]] = {engine: [] for engine in args.engines.split(",")}
    for _ in range(args.rounds):
        for engine, results in runs.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--engine", engine]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(output.splitlines()[-1]))
    tokens = args.batch * args.length
    report: dict[str, Any] = {
        "model": args.model, "batch": args.batch, "length": args.length, "threads": args.threads,
        "machine": platform.processor() or platform.machine(), "engines": {},
    }  # fmt: skip
    for engine, results in runs.items():
        seconds = sorted(s for result in results for s in result["seconds"])
        report["engines"][engine] = {
            "tokens_per_second": tokens / statistics.median(seconds),
            "fastest": tokens / seconds[0],
            "slowest": tokens / seconds[-1],
            "peak_bytes": max(result["peak_bytes"] for result in results),
            "losses": results[0]["losses"][:3],
        }
    titles = ("tokens/s", "fastest", "slowest", "peak GB", "ratio")
    print(f"{'engine':14}" + "".join(f"{title:>10}" for title in titles))
    ours = report["engines"]["llmcore"]["tokens_per_second"]
    for engine, row in report["engines"].items():
        row["llmcore_ratio"] = ours / row["tokens_per_second"]
        print(
            f"{engine:14}{row['tokens_per_second']:10.1f}{row['fastest']:10.1f}"
            f"{row['slowest']:10.1f}{row['peak_bytes'] / 1e9:10.2f}{row['llmcore_ratio']:10.2f}"
        )
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default="llmcore,torch")
    parser.add_argument("--json", help="where to write the report")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    args = parser.parse_args()
    (child if args.engine else parent)(args)


if __name__ == "__main__":
    main()
