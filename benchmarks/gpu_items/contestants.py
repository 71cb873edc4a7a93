"""Who trains and generates in the contests of `training` and `decode`, each in its own process.

They are the engines of `llmcore bench`, with random weights made on the GPU instead of files.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import llmcore
from gpu_items import torch_on_gpu
from llmcore.bench.engines import llmcore as ours
from llmcore.bench.engines import torch as peer
from llmcore.bench.engines import transformers
from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built, timed_steps
from llmcore.bench.workloads import Generation, Training

_DEVICE = "cuda"


def train_llmcore(workload: dict[str, Any], batches: Sequence[int], steps: int) -> Built:
    """Train with the first of the batch sizes that there is memory for."""
    training = Training(**{**workload, "batch": batches[0]})

    def attempt(batch: llmcore.Batch) -> Callable[[], Any]:
        step = ours.stepper(training.config, training.dtype, _DEVICE)
        return lambda: step(batch)

    return _train(training, batches, steps, attempt, lambda result: result.loss, ours,
                  llmcore.__version__, llmcore.OutOfMemory)  # fmt: skip


def train_torch(workload: dict[str, Any], batches: Sequence[int], steps: int) -> Built:
    """The same with transformers' model, compiled, in bfloat16 by autocast, and fused AdamW."""
    torch = torch_on_gpu()
    training = Training(**{**workload, "batch": batches[0]})
    model = peer.load_model(training.config, training.config.kind, device=_DEVICE)
    step = peer.stepper(model, training.dtype, _DEVICE, compiled=True)

    def attempt(batch: llmcore.Batch) -> Callable[[], Any]:
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return partial(step, peer.batch_on(batch, _DEVICE))

    return _train(training, batches, steps, attempt, float, peer, torch.__version__,
                  torch.OutOfMemoryError)  # fmt: skip


def _train(
    training: Training,
    batches: Sequence[int],
    steps: int,
    attempt: Callable[[llmcore.Batch], Callable[[], Any]],
    wait: Callable[[Any], float],
    engine: Any,
    version: str,
    out_of_memory: type[Exception],
) -> Built:
    for size in batches:
        gc.collect()
        step = None  # which holds the last attempt's memory
        try:
            step = attempt(replace(training, batch=size).data())
            losses = [wait(step()) for _ in range(3)]
        except out_of_memory:
            if size == batches[-1]:
                raise
            continue
        peak = engine.device_peak(_DEVICE)
        witness = {"batch": size, "losses": losses, "device_bytes": peak()}
        return Built({"step": timed_steps(step, wait, steps)}, version, witness, device_peak=peak)
    raise AssertionError("no batch size was given")


def generate_llmcore(workload: dict[str, Any]) -> Built:
    """Generate with `Transformer.generate`."""
    generation = Generation(**workload)
    generator = ours.Generator(_spread(generation), generation, _DEVICE)
    return measure_generator(generator, generation)


def generate_torch(workload: dict[str, Any], *, static: bool) -> Built:
    """Generate with transformers: as it is, or with a cache that does not grow, compiled."""
    torch_on_gpu()
    generation = Generation(**workload)
    more = {"cache_implementation": "static"} if static else {}
    generator = transformers.Generator(_spread(generation), generation, _DEVICE, **more)
    return measure_generator(generator, generation)


def _spread(generation: Generation) -> llmcore.ModelConfig:
    return generation.config.replace(init_std=ours.SPREAD)
