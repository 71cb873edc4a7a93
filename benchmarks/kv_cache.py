"""What does keeping keys and values in fewer bits bring a decoding step?

    python benchmarks/kv_cache.py --out kv_cache.json

GPT-2 124M of random weights, in float32 and in int8, continues a batch of prompts, short ones and
long ones, with every format of the cache in turns in one process. A step's time is the median over
those after the prompts were read; beside it, what the cache takes and how far log-probabilities
move.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from typing import get_args

import numpy as np
from common import new_report, set_threads, write_report

import llmcore
from llmcore import Engine, GenerationConfig, ModelConfig, Transformer
from llmcore.generation_config import CacheDtype


def main() -> None:
    args = parse_arguments()
    set_threads(args.threads)
    report = new_report(args, __doc__, cases={})
    model = Transformer(ModelConfig.preset("gpt2"), seed=args.seed)
    for weights in args.weights.split(","):
        if weights != "float32":
            model = model.quantize(weights)
        for length in map(int, args.lengths.split(",")):
            found = compare(args, model, length)
            report["cases"][f"{weights} weights, prompts of {length}"] = found
            for dtype, numbers in found.items():
                print(f"{weights} weights, prompts of {length}, {dtype} cache: {numbers}")
            write_report(args.out, report)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    add("--batch", type=int, default=8)
    add("--lengths", default="32,800", help="of the prompts")
    add("--weights", default="float32,int8")
    add("--tokens", type=int, default=48, help="new tokens of each text")
    add("--turns", type=int, default=3)
    add("--out", default="kv_cache.json", help="written after each case")
    return parser.parse_args()


def compare(
    args: argparse.Namespace, model: Transformer, length: int
) -> dict[str, dict[str, float]]:
    """Continue the same prompts with each format in turn, the tokens forced to be the same."""
    random = np.random.default_rng(args.seed)
    prompts = random.integers(0, model.config.vocab_size, (args.batch, length)).tolist()
    forced = random.integers(0, model.config.vocab_size, args.tokens).tolist()
    config = GenerationConfig(max_new_tokens=args.tokens, forced_prefix=forced, stop_ids=())
    steps: dict[str, list[float]] = {dtype: [] for dtype in get_args(CacheDtype)}
    ratios: dict[str, list[float]] = {dtype: [] for dtype in steps}
    logprobs = {}
    for _ in range(args.turns):
        for dtype in steps:
            seconds, logprobs[dtype] = decode(model, prompts, replace(config, cache_dtype=dtype))
            steps[dtype].append(seconds)
            ratios[dtype].append(steps["float32"][-1] / seconds)
    return {
        dtype: {
            "milliseconds_a_step": round(1e3 * statistics.median(times), 2),
            "times_as_fast": round(statistics.median(ratios[dtype]), 3),
            "cache_mib": round(cache_bytes(model, args.batch, length + args.tokens, dtype), 1),
            "largest_logprob_change": float(np.abs(logprobs[dtype] - logprobs["float32"]).max()),
        }
        for dtype, times in steps.items()
    }


def decode(
    model: Transformer, prompts: list[list[int]], config: GenerationConfig
) -> tuple[float, np.ndarray]:
    """Median seconds of a step that adds a token to each prompt, and all log-probabilities."""
    tokens = model.generate(prompts, config, stream=True)
    times, logprobs = [], []
    for _ in range(config.max_new_tokens):
        start = time.perf_counter()
        logprobs.append([next(tokens).logprob for _ in prompts])
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]), np.array(logprobs)


def cache_bytes(model: Transformer, batch: int, tokens: int, dtype: CacheDtype) -> float:
    """MiB that an engine's cache takes."""
    before = llmcore.memory_stats()["current_bytes"]
    with Engine(model, max_batch=batch, capacity=tokens, cache_dtype=dtype):
        return (llmcore.memory_stats()["current_bytes"] - before) / 2**20


if __name__ == "__main__":
    main()
