"""llmcore among the contestants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import llmcore
from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built, reset_peak_memory, steps_a_run, timed_steps
from llmcore.bench.workloads import Generation, Training
from llmcore.generation_config import CacheDtype
from llmcore.tensor import write

#: Of random weights to generate with: from 0.02 every token would follow itself.
SPREAD = 0.1


def train(workload: dict[str, Any], folder: str, *, device: str = "cpu") -> Built:
    """Train the model in the folder with `TrainStep`."""
    training = Training(**workload)
    step = partial(stepper(folder, training.dtype, device), training.data())
    reset_peak_memory()
    return Built(
        {"step": timed_steps(step, _loss, steps_a_run(device))},
        llmcore.__version__,
        _loss(step()),
        device_peak=device_peak(device),
    )


def stepper(
    source: str | llmcore.ModelConfig, dtype: str, device: str
) -> Callable[[llmcore.Batch], llmcore.StepResult]:
    """Return what takes a step with a model from a folder, or of random weights."""
    model = make_model(source, device)
    return llmcore.TrainStep(model, lr=1e-4, weight_decay=0.1, max_grad_norm=1.0, dtype=dtype)


def make_model(
    source: str | llmcore.ModelConfig, device: str, weights: str | None = None
) -> llmcore.Transformer:
    """Return the model of a folder, or one of a config, with random weights."""
    if isinstance(source, llmcore.ModelConfig):
        return llmcore.Transformer(source, device=device, dtype=weights or "float32")
    return llmcore.Transformer.from_pretrained(source, device=device)


def device_peak(device: str) -> Callable[[], int] | None:
    """Return what `Built.device_peak` is to be."""
    return None if device == "cpu" else lambda: llmcore.memory_stats(device)["peak_bytes"]


def _loss(result: llmcore.StepResult) -> float:
    return result.loss


def write_model(workload: Training | Generation, folder: str) -> None:
    """Write a model with random weights in the Hugging Face layout, for every engine to read.

    Weights to generate with are wider spread than those to train: from 0.02 every token would be
    followed by itself. The row of Marian's padding, from which its decoder starts, is zero, as
    CTranslate2 takes it to be.
    """
    config = workload.config
    if isinstance(workload, Generation):
        config = config.replace(init_std=SPREAD)
    model = llmcore.Transformer(config)
    if config.decoder_start_id is not None and config.decoder_start_id == config.pad_id:
        table = model.parameters()["embed.tokens.weight"]
        values = table.numpy()
        values[config.pad_id] = 0.0
        write(table, values)
    model.save_pretrained(folder)


def convert(workload: dict[str, Any], folder: str, **_: Any) -> None:
    """Write the model with its matrices in the format of the workload."""
    weights = Generation(**workload).weights
    if weights != "float32":
        model = llmcore.Transformer.from_pretrained(folder, dtype=weights)
        model.save_pretrained(_path(folder, weights))


def generate(workload: dict[str, Any], folder: str, *, device: str = "cpu") -> Built:
    """Generate with `Transformer.generate`."""
    generation = Generation(**workload)
    generator = Generator(str(_path(folder, generation.weights)), generation, device)
    return replace(measure_generator(generator, generation), device_peak=device_peak(device))


def _path(folder: str, weights: str) -> Path:
    return Path(folder) / f"llmcore-{weights}" if weights != "float32" else Path(folder)


class Generator:
    """llmcore, to be measured: a model from a folder, or of a config with random weights.

    Keys and values are rounded as the weights are; llama.cpp keeps float16 whatever these are, the
    others float32.
    """

    version = llmcore.__version__

    def __init__(
        self, source: str | llmcore.ModelConfig, workload: Generation, device: str
    ) -> None:
        self._source, self._device, self._weights = source, device, workload.weights
        self._cache_dtype: CacheDtype = "float32" if workload.weights == "float32" else "bfloat16"
        self._model: llmcore.Transformer | None = None

    def load(self) -> None:
        """Read the model, or make it."""
        self._model = make_model(self._source, self._device, self._weights)

    def drop(self) -> None:
        """Let go of it."""
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """Continue each prompt by exactly `new` tokens."""
        assert self._model is not None  # loaded before
        settings = llmcore.GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, num_beams=beams, stop_ids=[],
            cache_dtype=self._cache_dtype,
        )  # fmt: skip
        return [list(result.ids) for result in self._model.generate(prompts, settings)]
