"""transformers among the contestants: generation with PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.engines.torch import device_peak, load_model
from llmcore.bench.worker import Built
from llmcore.bench.workloads import Generation
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError


def generate(workload: dict[str, Any], folder: str, *, device: str = "cpu") -> Built:
    """Generate with `model.generate`."""
    generation = Generation(**workload)
    if generation.weights not in ("float32", "bfloat16"):
        raise ConfigError(f"not available: no {generation.weights} weights by itself")
    built = measure_generator(Generator(folder, generation, device), generation)
    return replace(built, device_peak=device_peak(device))


class Generator:
    """transformers, to be measured.

    Args:
        source: As `load_model` takes it.
        generation: What is to be generated.
        device: Where.
        more: Arguments of `model.generate`, such as another cache.
    """

    def __init__(
        self, source: str | ModelConfig, generation: Generation, device: str, **more: Any
    ) -> None:
        import transformers

        self.version = f"{transformers.__version__}, torch {_torch_version()}"
        self._source, self._generation = source, generation
        self._device, self._more = device, more
        self._model: Any = None

    def load(self) -> None:
        """Read the model, or make it."""
        kind, weights = self._generation.config.kind, self._generation.weights
        self._model = load_model(self._source, kind, weights, self._device).eval()

    def drop(self) -> None:
        """Let go of it."""
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        """Continue each prompt by exactly `new` tokens."""
        import torch

        config = self._generation.config
        ids = torch.tensor(prompts, device=self._device)
        with torch.inference_mode():
            result = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=config.pad_id if config.pad_id is not None else config.eos_id,
                **self._more,
            )
        # What was there before: the prompt, or the token the decoder starts from.
        before = 1 if config.kind == "encoder-decoder" else ids.shape[1]
        found: list[list[int]] = result[:, before:].tolist()
        return found


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
