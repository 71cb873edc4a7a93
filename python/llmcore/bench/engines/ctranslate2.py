"""CTranslate2 among the contestants."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llmcore.bench.engines.generator import measure_generator
from llmcore.bench.worker import Built
from llmcore.bench.workloads import Generation
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError

_WEIGHTS = ("float32", "int8")  # what it computes with on a CPU


class _Tokens:
    """As much of a tokenizer as the conversion asks for: every id is a token named after it.

    Marian's padding is called what the conversion knows it by, and drops.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._names = [_name(index) for index in range(config.vocab_size)]
        if config.kind == "encoder-decoder":
            self._names[-1] = "<pad>"
        self.unk_token = _name(0)
        self.bos_token = _name(config.bos_id or 0)
        self.eos_token = _name(config.eos_id or 0)

    def get_vocab(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self._names)}

    def convert_ids_to_tokens(self, index: int) -> str:
        return self._names[index]


def convert(workload: dict[str, Any], folder: str) -> None:
    """Write the model of the folder in CTranslate2's format."""
    from ctranslate2.converters import TransformersConverter

    generation = Generation(**workload)
    _check(generation)

    class Converter(TransformersConverter):  # type: ignore[misc]
        def load_tokenizer(self, tokenizer_class: Any, path: str, **options: Any) -> _Tokens:
            return _Tokens(generation.config)

    Converter(folder).convert(
        _path(folder, generation), quantization=generation.weights, force=True
    )


def generate(workload: dict[str, Any], folder: str) -> Built:
    """Generate with `Generator`, translate with `Translator`."""
    generation = Generation(**workload)
    return measure_generator(_Generator(_path(folder, generation), generation), generation)


def _check(generation: Generation) -> None:
    if generation.weights not in _WEIGHTS:
        raise ConfigError(f"not available: no {generation.weights} weights on the CPU")


def _path(folder: str, generation: Generation) -> str:
    return str(Path(folder) / f"ctranslate2-{generation.weights}")


def _name(index: int) -> str:
    return f"t{index}"


class _Generator:
    def __init__(self, path: str, generation: Generation) -> None:
        import ctranslate2

        self.version = str(ctranslate2.__version__)
        self._path, self._generation = path, generation
        self._model: Any = None

    def load(self) -> None:
        import ctranslate2

        both = self._generation.config.kind == "encoder-decoder"
        self._model = (ctranslate2.Translator if both else ctranslate2.Generator)(
            self._path,
            device="cpu",
            compute_type=self._generation.weights,
            inter_threads=1,
            intra_threads=int(os.environ["OMP_NUM_THREADS"]),
        )

    def drop(self) -> None:
        self._model = None

    def generate(self, prompts: list[list[int]], new: int, beams: int) -> list[list[int]]:
        tokens = [[_name(index) for index in prompt] for prompt in prompts]
        options: dict[str, Any] = {"beam_size": beams}
        if self._generation.config.kind == "encoder-decoder":
            results = self._model.translate_batch(
                tokens, max_decoding_length=new, min_decoding_length=new, **options
            )
            return [[int(name[1:]) for name in result.hypotheses[0]] for result in results]
        results = self._model.generate_batch(
            tokens, max_length=new, min_length=new, include_prompt_in_result=False, **options
        )
        return [list(result.sequences_ids[0]) for result in results]
