"""What every engine that generates is measured on, in terms of loading and generating alone."""

from __future__ import annotations

import gc
import time
from functools import partial
from typing import Protocol

from llmcore.bench.worker import Built, Run
from llmcore.bench.workloads import Generation

_WITNESSES = 16


class Generator(Protocol):
    """An engine with a model of its own."""

    version: str

    def load(self) -> None:
        """Read the model from its files."""

    def drop(self) -> None:
        """Let go of the model and its memory."""

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """Continue each prompt by exactly `new` tokens; without beams, greedily."""


def measure_generator(generator: Generator, workload: Generation) -> Built:
    """Load the model, and return what the workload asks to be measured of it."""
    first = _load(generator, workload)
    runs: dict[str, Run] = {"load": partial(_load, generator, workload)}
    if workload.config.kind == "decoder":
        long_prompt = workload.prompts(1, workload.prefill)
        prefill = partial(_generate, generator, long_prompt, 1, workload.beams)
        runs[f"prefill {workload.prefill}"] = prefill
    for batch in workload.batches:
        prompts = workload.prompts(batch, workload.prompt)
        if workload.config.kind == "decoder":
            runs[f"decode batch {batch}"] = partial(_decode, generator, prompts, workload)
        else:
            whole = partial(_generate, generator, prompts, workload.new, workload.beams)
            runs[f"translate batch {batch}"] = whole
    count = min(workload.new, _WITNESSES)
    [witness] = generator.generate(workload.prompts(1, workload.prompt), count, workload.beams)
    return Built(runs, generator.version, witness, first)


def _load(generator: Generator, workload: Generation) -> float:
    generator.drop()
    gc.collect()
    start = time.perf_counter()
    generator.load()
    generator.generate(workload.prompts(1, workload.prompt), 1, workload.beams)
    return time.perf_counter() - start


def _decode(generator: Generator, prompts: list[list[int]], workload: Generation) -> float:
    """The time of the tokens after the first, which is timed twice lest a hiccup be subtracted."""
    first = min(_generate(generator, prompts, 1, workload.beams) for _ in range(2))
    return _generate(generator, prompts, workload.new, workload.beams) - first


def _generate(generator: Generator, prompts: list[list[int]], new: int, beams: int) -> float:
    start = time.perf_counter()
    results = generator.generate(prompts, new, beams)
    seconds = time.perf_counter() - start
    lengths = {len(ids) for ids in results}
    if len(results) != len(prompts) or lengths != {new}:
        raise RuntimeError(
            f"asked for {new} tokens for each of {len(prompts)} prompts, got {sorted(lengths)}"
        )
    return seconds
