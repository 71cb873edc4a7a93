"""Sends an engine thousands of requests, good, bad and cancelled, and looks for what is lost.

python benchmarks/soak.py [--requests 10000] [--json FILE]

Every result is compared with what the model gives that prompt alone, every request must come to its
end, and resident memory must not grow between the first fifth and the end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import numpy as np

from llmcore import (
    Engine,
    GenerationConfig,
    LlmcoreError,
    ModelConfig,
    RequestCancelled,
    Transformer,
)
from llmcore.engine import Request

KINDS = 64  # different good requests
OPEN = 200  # requests that are open at a time
GROWTH = 4 << 20  # bytes; an interpreter's heap is not flat to the byte


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def make_kinds(rng: np.random.Generator) -> list[tuple[list[int], GenerationConfig]]:
    """Good requests: a third begin alike, half are sampled, one in four slides."""
    common = rng.integers(0, 65, 30).tolist()
    kinds = []
    for kind in range(KINDS):
        prompt = rng.integers(0, 65, rng.integers(1, 30)).tolist()
        config = GenerationConfig(
            max_new_tokens=int(rng.integers(1, 50)),
            temperature=0.9 if kind % 2 else None,
            seed=kind,
            stop_ids=[int(rng.integers(0, 65))],
            overflow="slide" if kind % 4 == 0 else "stop",
        )
        kinds.append((common + prompt if kind % 3 == 0 else prompt, config))
    return kinds


def bad_request(engine: Engine, rng: np.random.Generator) -> None:
    """Submit what must be refused at once."""
    bad: list[tuple[Any, Any]] = [
        ([], None),
        ([1, 65], None),
        ([1] * 65, None),
        ("text without a tokenizer", None),
        ([1], GenerationConfig(num_beams=2)),
        ([1], "greedy"),
    ]
    engine.submit(*bad[rng.integers(len(bad))])


def soak(requests: int) -> dict[str, Any]:
    """Run it; return the report."""
    rng = np.random.default_rng(0)
    model = Transformer(
        ModelConfig.preset("gpt-nano", num_decoder_layers=2, hidden_size=32, num_heads=2)
    )
    kinds = make_kinds(rng)
    want = [model.generate([prompt], config)[0] for prompt, config in kinds]
    seen: Counter[str] = Counter()
    waiting: deque[tuple[int, Request]] = deque()

    def take() -> None:
        kind, request = waiting.popleft()
        try:
            seen["good" if request.result(60) == want[kind] else "wrong"] += 1
        except RequestCancelled:
            seen["cancelled"] += 1
        except LlmcoreError:
            seen["failed"] += 1

    start = time.perf_counter()
    settled = peak = 0
    with Engine(model, max_batch=8, max_queue=100, prompt_tokens=32) as engine:
        for number in range(requests):
            if number % 10 == 7:
                try:
                    bad_request(engine, rng)
                except LlmcoreError:
                    seen["refused"] += 1
                continue
            kind = int(rng.integers(KINDS))
            waiting.append((kind, engine.submit(*kinds[kind], timeout=None)))
            if number % 4 == 1:
                waiting[rng.integers(len(waiting))][1].cancel()
            if len(waiting) > OPEN:
                take()
            if number == requests // 5:
                settled = resident_bytes()
            peak = max(peak, resident_bytes()) if settled else 0
        while waiting:
            take()
        stats = engine.stats()
    seconds = time.perf_counter() - start
    return {
        "requests": requests,
        "answers": dict(seen),
        "lost": requests - sum(seen.values()),
        "tokens": stats.tokens,
        "prompt_tokens": stats.prompt_tokens,
        "reused_tokens": stats.reused_tokens,
        "steps": stats.steps,
        "seconds": round(seconds, 2),
        "resident_mib_after_a_fifth": round(settled / 2**20, 2),
        "resident_mib_at_most_since": round(peak / 2**20, 2),
        "sound": not (requests - sum(seen.values()) or seen["wrong"] or seen["failed"])
        and peak - settled <= GROWTH,
    }


def main() -> int:
    """Print the report as JSON; 1 where something was lost, wrong, or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="where to write the report, besides printing it")
    arguments = parser.parse_args()
    report = soak(arguments.requests)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    return 0 if report["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
