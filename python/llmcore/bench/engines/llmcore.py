"""llmcore among the contestants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llmcore
from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built, reset_peak_memory, timed
from llmcore.bench.workloads import Generation, Training
from llmcore.generation_config import CacheDtype

_SPREAD = 0.1


def train(workload: dict[str, Any], folder: str) -> Built:
    """Train the model in the folder with `TrainStep`."""
    training = Training(**workload)
    model = llmcore.Transformer.from_pretrained(folder)
    step = llmcore.TrainStep(
        model, lr=1e-4, weight_decay=0.1, max_grad_norm=1.0, dtype=training.dtype
    )
    batch = training.data()
    reset_peak_memory()
    return Built({"step": timed(lambda: step(batch))}, llmcore.__version__, step(batch).loss)


def write_model(workload: Training | Generation, folder: str) -> None:
    """Write a model with random weights in the Hugging Face layout, for every engine to read.

    Weights to generate with are wider spread than those to train: from 0.02 every token would be
    followed by itself. The row of Marian's padding, from which its decoder starts, is zero, as
    CTranslate2 takes it to be.
    """
    config = workload.config
    if isinstance(workload, Generation):
        config = config.replace(init_std=_SPREAD)
    model = llmcore.Transformer(config)
    if config.decoder_start_id is not None and config.decoder_start_id == config.pad_id:
        model.parameters()["embed.tokens.weight"].numpy()[config.pad_id] = 0.0
    model.save_pretrained(folder)


def convert(workload: dict[str, Any], folder: str) -> None:
    """Write the model with its matrices in the format of the workload."""
    weights = Generation(**workload).weights
    if weights != "float32":
        model = llmcore.Transformer.from_pretrained(folder, dtype=weights)
        model.save_pretrained(_path(folder, weights))


def generate(workload: dict[str, Any], folder: str) -> Built:
    """Generate with `Transformer.generate`."""
    generation = Generation(**workload)
    # Rounded as the weights are; llama.cpp keeps float16 whatever these are, the others float32.
    cache: CacheDtype = "float32" if generation.weights == "float32" else "bfloat16"
    generator = _Generator(_path(folder, generation.weights), cache)
    return measure_generator(generator, generation)


def _path(folder: str, weights: str) -> Path:
    return Path(folder) / f"llmcore-{weights}" if weights != "float32" else Path(folder)


class _Generator:
    version = llmcore.__version__

    def __init__(self, folder: Path, cache_dtype: CacheDtype) -> None:
        self._folder = folder
        self._cache_dtype = cache_dtype
        self._model: llmcore.Transformer | None = None

    def load(self) -> None:
        self._model = llmcore.Transformer.from_pretrained(self._folder)

    def drop(self) -> None:
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        assert self._model is not None  # loaded before
        settings = llmcore.GenerationConfig(
            max_new_tokens=new, min_new_tokens=new, num_beams=beams, stop_ids=[],
            cache_dtype=self._cache_dtype,
        )  # fmt: skip
        return [list(result.ids) for result in self._model.generate(prompts, settings)]
