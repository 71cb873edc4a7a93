"""transformers among the contestants: generation with PyTorch."""

from __future__ import annotations

from typing import Any

from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.engines.torch import load_model
from llmcore.bench.worker import Built
from llmcore.bench.workloads import Generation
from llmcore.errors import ConfigError


def generate(workload: dict[str, Any], folder: str) -> Built:
    """Generate with `model.generate`."""
    generation = Generation(**workload)
    if generation.weights not in ("float32", "bfloat16"):
        raise ConfigError(f"not available: no {generation.weights} weights on the CPU by itself")
    return measure_generator(_Generator(folder, generation), generation)


class _Generator:
    def __init__(self, folder: str, generation: Generation) -> None:
        import transformers

        self.version = f"{transformers.__version__}, torch {_torch_version()}"
        self._folder, self._generation = folder, generation
        self._model: Any = None

    def load(self) -> None:
        kind = self._generation.config.kind
        self._model = load_model(self._folder, kind, self._generation.weights).eval()

    def drop(self) -> None:
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        import torch

        config = self._generation.config
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            result = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=new,
                min_new_tokens=new,
                pad_token_id=config.pad_id if config.pad_id is not None else config.eos_id,
            )
        # What was there before: the prompt, or the token the decoder starts from.
        before = 1 if config.kind == "encoder-decoder" else ids.shape[1]
        found: list[list[int]] = result[:, before:].tolist()
        return found


def _torch_version() -> str:
    import torch

    return str(torch.__version__)
