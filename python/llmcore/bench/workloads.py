"""What is measured: workloads, with the operations and the bytes that each of them cannot avoid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.bench.machine import Ceilings
from llmcore.config import ModelConfig
from llmcore.errors import ConfigError, did_you_mean
from llmcore.objectives import Batch, CausalLM, MaskedLM, Seq2Seq
from llmcore.parameters import parameter_shapes
from llmcore.presets import PRESETS
from llmcore.quantized import WEIGHT_BITS

DTYPES = ("float32", "bfloat16")

#: Bytes of a float32.
FLOAT_BYTES = 4

# AdamW reads a weight, its gradient and two moments, and writes all but the gradient.
_ADAMW_BYTES = 7 * FLOAT_BYTES
_NO_DROPOUT = dict.fromkeys(
    ("embedding_dropout", "attention_dropout", "residual_dropout", "ffn_dropout"), 0.0
)
_MASK_ID = 3


@dataclass(frozen=True)
class Measure:
    """One thing that is timed, and the floors under its time.

    Attributes:
        name: What reports call it.
        amount: What one run gets done.
        unit: What the amount counts; empty where a run is all there is, and reports show its time.
        operations: Operations of one run, a multiply-add being two.
        bytes: What one run has to read from and write to memory.
        dtype: What the peak of arithmetic is that of, a name that `Ceilings.peak` takes.
    """

    name: str
    amount: float
    unit: str
    operations: float
    bytes: float
    dtype: str = "float32"

    def floors(self, ceilings: Ceilings) -> dict[str, float]:
        """Return the seconds that arithmetic takes at its peak, and memory at its bandwidth.

        Example:
            >>> ceilings = Ceilings(1, 100e9, 200e9, 400e9, 50e9, 20e9)
            >>> Measure("product", 1, "", operations=5e9, bytes=1e9).floors(ceilings)
            {'arithmetic': 0.05, 'memory': 0.05}
        """
        return {
            "arithmetic": self.operations / ceilings.peak(self.dtype),
            "memory": self.bytes / ceilings.memory_bytes_per_second,
        }


def find_config(model: str, vocab_size: int | None = None) -> ModelConfig:
    """Return a preset without dropout, so that the engines can be compared number by number.

    Marian's ids for padding and end (Junczys-Dowmunt et al. 2018) are given to a model of two
    stacks that has none: the peers know their way with these.

    Raises:
        ConfigError: There is no such preset, or it cannot be that small.

    Example:
        >>> find_config("transformer-base", 8000).decoder_start_id
        7999
    """
    if model not in PRESETS:
        raise ConfigError(
            f"model must be one of {', '.join(PRESETS)}, got {model!r}"
            + did_you_mean(model, PRESETS)
        )
    fields: dict[str, Any] = dict(_NO_DROPOUT)
    if vocab_size is not None:
        fields["vocab_size"] = vocab_size
    config = ModelConfig.preset(model, **fields)
    if config.kind == "encoder-decoder" and config.decoder_start_id is None:
        last = config.vocab_size - 1
        config = config.replace(eos_id=0, pad_id=last, decoder_start_id=last)
    return config


@dataclass(frozen=True)
class Training:
    """Training steps: forward, backward, clipping of the gradient's norm, AdamW.

    A decoder predicts each next token, an encoder the 15 % that are masked, and of both stacks the
    decoder the target from the source, as long as each other.

    Attributes:
        model: Name of a preset.
        batch: Sequences, or pairs, a step.
        length: Tokens of each; of a pair, of each of its two.
        dtype: Of the computation.
        vocab_size: Instead of the preset's; None for that.

    Raises:
        ConfigError: With every problem found.

    Example:
        >>> training = Training("gpt2", 4, 64)
        >>> [measure] = training.measures()
        >>> measure.amount, round(measure.operations / 1e9)
        (256.0, 192)
    """

    model: str
    batch: int
    length: int
    dtype: str = "float32"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        config = self.config
        problems = []
        if self.batch < 1:
            problems.append(f"batch: must be from 1 on, got {self.batch}")
        if not 2 <= self.length <= config.max_positions:
            problems.append(
                f"length: must be from 2 to {config.max_positions}, the model's positions, got "
                f"{self.length}"
            )
        if self.dtype not in DTYPES:
            problems.append(f"dtype: must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if problems:
            raise ConfigError.listing("bench train", problems)

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return find_config(self.model, self.vocab_size)

    @property
    def title(self) -> str:
        """The workload in a few words."""
        what = "pairs" if self.config.kind == "encoder-decoder" else "sequences"
        return f"train {self.model}, {self.batch} {what} of {self.length} tokens, {self.dtype}"

    def data(self) -> Batch:
        """Return the batch, the same at every call."""
        config, random = self.config, np.random.default_rng(0)

        def ids(length: int) -> NDArray[np.int64]:
            return random.integers(_MASK_ID + 1, config.vocab_size, (self.batch, length))

        if config.kind == "decoder":
            return CausalLM()(ids(self.length + 1))
        if config.kind == "encoder":
            return MaskedLM(mask_id=_MASK_ID, vocab_size=config.vocab_size)(ids(self.length))
        return Seq2Seq()(ids(self.length).tolist(), ids(self.length + 1).tolist())

    def measures(self) -> list[Measure]:
        """Return the one measure: a step."""
        config, data = self.config, self.data()
        stacks = 2 if config.kind == "encoder-decoder" else 1
        positions = self.batch * self.length
        head = config.vocab_size * config.hidden_size
        if config.head_transform:
            head += config.hidden_size**2
        operations = (
            config.flops_per_token(self.length) * positions
            - 6.0 * head * (positions - data.num_targets)  # the head runs on these rows alone
        )
        return [
            Measure(
                "step",
                amount=float(stacks * positions),
                unit="tokens",
                operations=operations,
                bytes=float(_ADAMW_BYTES * config.num_parameters()),
                dtype=self.dtype,
            )
        ]


@dataclass(frozen=True)
class Generation:
    """Continuing prompts, or, where there are two stacks, translating, with random weights.

    Greedy without beams; no text ends before it has all its tokens. Loading, by a process that has
    imported all it needs, ends with the first token of a prompt; prefill is the first token after
    a long prompt; decoding is what comes after the first token: the time of all new tokens less
    that of one.

    Attributes:
        model: Name of a preset.
        prompt: Tokens of each prompt or source.
        new: Tokens to generate.
        batches: How many prompts at a time; several are measured one after the other.
        prefill: Tokens of the long prompt.
        beams: Beams of the search; 1 for none.
        weights: Their number format, one of `WEIGHT_BITS`. llmcore keeps keys and values in
            float32 beside float32 weights, else in bfloat16.
        vocab_size: Instead of the preset's; None for that.

    Raises:
        ConfigError: With every problem found.

    Example:
        >>> generation = Generation("gpt2", 32, 128, [1, 8])
        >>> [measure.name for measure in generation.measures()]
        ['load', 'prefill 512', 'decode batch 1', 'decode batch 8']
    """

    model: str
    prompt: int
    new: int
    batches: Sequence[int] = (1,)
    prefill: int = 512
    beams: int = 1
    weights: str = "float32"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        config = self.config
        problems = []
        if config.kind == "encoder":
            problems.append(f"model: must have a decoder to generate with, {self.model} has none")
        for name, value in (("prompt", self.prompt), ("prefill", self.prefill)):
            if not 1 <= value <= config.max_positions:
                problems.append(
                    f"{name}: must be from 1 to {config.max_positions}, the model's positions, got "
                    f"{value}"
                )
        used = self.new + (self.prompt if config.kind == "decoder" else 1)
        if self.new < 2 or used > config.max_positions:
            problems.append(
                f"new: must be from 2 on, and fit into the model's {config.max_positions} positions"
                f" after the prompt, got {self.new}"
            )
        if not self.batches or min(self.batches) < 1:
            problems.append(f"batch: must be numbers from 1 on, got {list(self.batches)}")
        if self.beams < 1:
            problems.append(f"beams: must be from 1 on, got {self.beams}")
        if self.weights not in WEIGHT_BITS:
            problems.append(
                f"weights: must be one of {', '.join(WEIGHT_BITS)}, got {self.weights!r}"
            )
        if problems:
            raise ConfigError.listing("bench generate", problems)

    @property
    def config(self) -> ModelConfig:
        """The architecture."""
        return find_config(self.model, self.vocab_size)

    @property
    def title(self) -> str:
        """The workload in a few words."""
        beams = f", {self.beams} beams" if self.beams > 1 else ""
        what = "source" if self.config.kind == "encoder-decoder" else "prompt"
        return (
            f"generate {self.model}, {what} {self.prompt} + {self.new} new{beams}, "
            f"{self.weights} weights"
        )

    def prompts(self, batch: int, length: int) -> list[list[int]]:
        """Return prompts, the same at every call; none has a special id."""
        random = np.random.default_rng(length)
        ids = random.integers(1, self.config.vocab_size - 1, (batch, length))
        return [[int(token) for token in row] for row in ids]

    def measures(self) -> list[Measure]:
        """Return the load and, by what the model is, prefill and decoding or the translation."""
        weights = self._weight_bytes(("encoder", "decoder", "head"))
        load = Measure("load", 1.0, "", 0.0, weights)
        if self.config.kind == "encoder-decoder":
            return [load, *(self._translation(batch) for batch in self.batches)]
        return [load, self._prefill(), *(self._decoding(batch) for batch in self.batches)]

    def _prefill(self) -> Measure:
        config, length = self.config, self.prefill
        operations = 2.0 * self._matrices("decoder") * length + 2.0 * self._matrices("head")
        # As `ModelConfig.flops_per_token` does, attention counts in full.
        operations += 4.0 * config.num_decoder_layers * _width(config) * length**2
        weights = self._weight_bytes(("decoder", "head"))
        return Measure(
            f"prefill {length}", float(length), "tokens", operations, weights, self.weights
        )

    def _decoding(self, batch: int) -> Measure:
        config, steps = self.config, self.new - 1
        keys = self.prompt + self.new / 2  # in the cache, on average
        weights = self._weight_bytes(("decoder", "head"))
        operations = 2.0 * (self._matrices("decoder") + self._matrices("head"))
        operations += 4.0 * config.num_decoder_layers * _width(config) * keys
        return Measure(
            f"decode batch {batch}",
            amount=float(batch * steps),
            unit="tokens",
            operations=operations * batch * steps,
            bytes=(weights + batch * self._cache_bytes(keys)) * steps,
            dtype=self.weights,
        )

    def _translation(self, batch: int) -> Measure:
        config, steps = self.config, self.new
        rows = batch * self.beams
        encoder = 2.0 * self._matrices("encoder") * self.prompt
        encoder += 4.0 * config.num_encoder_layers * _width(config) * self.prompt**2
        keys = self.new / 2 + self.prompt
        decoder = 2.0 * (self._matrices("decoder") + self._matrices("head"))
        decoder += 4.0 * config.num_decoder_layers * _width(config) * keys
        cache = rows * self._cache_bytes(self.new / 2) + batch * self._cache_bytes(self.prompt)
        return Measure(
            f"translate batch {batch}",
            amount=float(batch * steps),
            unit="tokens",
            operations=encoder * batch + decoder * rows * steps,
            bytes=self._weight_bytes(("encoder",))
            + (self._weight_bytes(("decoder", "head")) + cache) * steps,
            dtype=self.weights,
        )

    def _matrices(self, part: str) -> int:
        """Count the weights of the matrix products of the encoder, the decoder or the head."""
        config = self.config
        if part == "head":
            return config.vocab_size * config.hidden_size
        return sum(
            math.prod(shape)
            for name, shape in parameter_shapes(config).items()
            if len(shape) == 2 and name.startswith(f"{part}.layers.")
        )

    def _weight_bytes(self, parts: Sequence[str]) -> float:
        return sum(self._matrices(part) for part in parts) * WEIGHT_BITS[self.weights] / 8

    def _cache_bytes(self, keys: float) -> float:
        """Bytes of the keys and values of one sequence, as llmcore keeps them."""
        config = self.config
        width = config.num_kv_heads * config.head_dim
        each = FLOAT_BYTES if self.weights == "float32" else FLOAT_BYTES / 2
        return 2.0 * config.num_decoder_layers * width * keys * each


def _width(config: ModelConfig) -> int:
    return config.num_heads * config.head_dim
