"""What a training run will cost, told before it starts: memory, arithmetic and time."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.config import LoraConfig, ModelConfig
from llmcore.errors import OutOfMemory
from llmcore.objectives import Batch
from llmcore.parameters import is_trained, parameter_shapes
from llmcore.tensor import tensor, zeros
from llmcore.training.log import format_bytes, format_count, format_duration
from llmcore.training.train_config import TrainConfig

#: Share of the GEMM peak a training step reaches before one has been timed. Small models, whose
#: time goes into everything but matrix products, stay below it; large ones come out above.
ASSUMED_SHARE = 0.5

_FLOAT = 4  # bytes of a float32
# Batches of twice as many tokens are planned as they are; beyond, every row takes the same.
_MOST_TOKENS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run. Sizes are in bytes, arithmetic in floating-point operations.

    Attributes:
        parameters: trainable parameters, tied ones once.
        weight_bytes: the weights, in whole pages, and tables of positions.
        optimizer_bytes: gradients and AdamW's two moments, of what is trained.
        activation_bytes: what one micro-batch keeps for backward, plus working space, where every
            sequence is `block_size` long.
        checkpoint_bytes: one checkpoint with everything a resume needs.
        tokens_per_step: tokens in one update, over all its micro-batches.
        flops_per_step: forward and backward of one update.
        steps: updates of the whole run.
        peak_flops: this machine's measured matrix-product peak, per second.
    """

    parameters: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    checkpoint_bytes: int
    tokens_per_step: int
    flops_per_step: float
    steps: int
    peak_flops: float

    @property
    def memory_bytes(self) -> int:
        """Everything together."""
        return self.weight_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def seconds(self) -> float:
        """Expected time of the steps, at `ASSUMED_SHARE` of the peak."""
        return self.steps * self.flops_per_step / (ASSUMED_SHARE * self.peak_flops)

    def describe_memory(self) -> str:
        """The total, and what it is made of."""
        return (
            f"{format_bytes(self.memory_bytes)}: weights {format_bytes(self.weight_bytes)},"
            f" gradients and moments {format_bytes(self.optimizer_bytes)},"
            f" activations {format_bytes(self.activation_bytes)}"
        )

    def describe(self) -> list[str]:
        """Say it in a few lines, for people."""
        return [
            f"parameters {format_count(self.parameters)} ({self.parameters:,})",
            f"memory     {self.describe_memory()}",
            f"time       about {format_duration(self.seconds)}: {self.steps} steps of"
            f" {self.tokens_per_step:,} tokens, {_format_flops(self.flops_per_step)} each, if"
            f" {ASSUMED_SHARE:.0%} of this machine's {_format_flops(self.peak_flops)}/s is reached",
        ]


def make_plan(model: ModelConfig, train: TrainConfig, *, peak_flops: float | None = None) -> Plan:
    """Tell memory and time of training `model` as `train` says.

    Memory is that of a step which is taken with kernels that do nothing, on addresses instead of
    memory: a model of any size takes milliseconds.

    Args:
        model: the architecture.
        train: batch, block, steps, objective, what is frozen and whether blocks are recomputed.
        peak_flops: the machine's matrix-product peak per second; measured if not given.

    Example:
        >>> from llmcore.config import ModelConfig
        >>> from llmcore.training.plan import make_plan
        >>> from llmcore.training.train_config import TrainConfig
        >>> plan = make_plan(ModelConfig.preset("gpt2"), TrainConfig(), peak_flops=1e12)
        >>> plan.parameters, plan.tokens_per_step
        (124439808, 768)
    """
    if train.lora_rank and model.lora is None:
        model = model.replace(
            lora=LoraConfig(
                rank=train.lora_rank, dropout=train.lora_dropout, targets=train.lora_targets
            )
        )
    parameters = model.num_parameters()
    shapes = parameter_shapes(model)
    frozen = [name for name in shapes if not _is_trained(name, model, train)]
    before = _core.memory_stats()["current_bytes"]
    core = _core.Transformer(model.to_dict(), "cpu", None, planned=True)
    tables = _core.memory_stats()["current_bytes"] - before  # all that a planned model holds
    for name in frozen:
        core.set_trainable(name, False)
    core.recompute = train.recompute
    micro_batch = train.batch_size * train.block_size
    return Plan(
        parameters=parameters,
        weight_bytes=core.weight_bytes + tables,
        optimizer_bytes=3 * (core.weight_bytes - _size(shapes[name] for name in frozen)),
        activation_bytes=_activation_bytes(core, model, train),
        checkpoint_bytes=3 * _FLOAT * parameters,
        tokens_per_step=micro_batch * train.accumulation,
        flops_per_step=model.flops_per_token(train.block_size) * micro_batch * train.accumulation,
        steps=train.steps,
        peak_flops=measure_peak_flops() if peak_flops is None else peak_flops,
    )


def used_bytes(model: Any) -> int:
    """Most memory of a model's device that weights, gradients, moments and activations have taken.

    Args:
        model: the `Transformer` that was trained. Gradients and moments of what is frozen have
            addresses, and nothing behind them.
    """
    trained = model.trainable_parameters()
    shapes = {name: tensor.shape for name, tensor in model.parameters().items()}
    untouched = 3 * _size(shapes[name] for name in shapes.keys() - trained.keys())
    return int(_core.memory_stats(model.device)["peak_bytes"]) - untouched


def refuse_impossible(model: ModelConfig, train: TrainConfig, device: str = "cpu") -> None:
    """Raise if a run would need more memory than this process may have at all.

    Raises:
        OutOfMemory: saying what needs how much, and what to do. What a GPU has shows when it is
            asked for.
    """
    if device != "cpu":
        return
    cost = make_plan(model, train, peak_flops=1.0)
    limit = int(_core.device_info()["memory_bytes"])
    if cost.memory_bytes > limit:
        raise OutOfMemory(
            f"training needs {cost.describe_memory()}; this process may use {format_bytes(limit)}:"
            f" {_cure(model, train, limit)}"
        )


def find_shortages(
    model: ModelConfig,
    train: TrainConfig,
    directory: str | Path,
    *,
    loaded: bool,
    device: str = "cpu",
) -> list[str]:
    """Warn, in a sentence each with its cure, where memory or disk will hardly do.

    Args:
        model: the architecture.
        train: the settings, with the longest sequence as `block_size`.
        directory: an existing directory where checkpoints will go.
        loaded: whether the weights are in memory already.
        device: where the run is; of a GPU's memory nothing is foretold.
    """
    found = []
    cost = make_plan(model, train, peak_flops=1.0)
    free = available_memory() if device == "cpu" else None
    if free is not None:
        limit = free + (cost.weight_bytes if loaded else 0)
        if cost.memory_bytes > limit:
            found.append(
                f"only {format_bytes(free)} of memory are free: {_cure(model, train, limit)}"
            )
    room = shutil.disk_usage(directory).free
    # While a checkpoint is replaced the old and the new one exist side by side; and the best.
    if room < 2 * cost.checkpoint_bytes + cost.weight_bytes:
        found.append(
            f"only {format_bytes(room)} of disk are free at {directory}: a checkpoint takes"
            f" {format_bytes(cost.checkpoint_bytes)}, twice that while it is replaced"
        )
    return found


def _cure(model: ModelConfig, train: TrainConfig, limit: int) -> str:
    """What takes a run below `limit` bytes: the largest micro-batch that does, or recomputing."""
    whole = train.batch_size
    small = [size for size in range(1, math.isqrt(whole) + 1) if whole % size == 0]
    sizes = sorted({*small, *(whole // size for size in small)}, reverse=True)
    for recompute in dict.fromkeys((train.recompute, True)):  # which costs time
        for size in sizes:
            accumulation = train.accumulation * (whole // size)
            tried = train.replace(batch_size=size, accumulation=accumulation, recompute=recompute)
            needed = make_plan(model, tried, peak_flops=1.0).memory_bytes
            if needed > limit:
                continue
            words = [f"batch_size {size} with accumulation {accumulation}"] if size < whole else []
            words += ["recompute"] if recompute and not train.recompute else []
            return f"use {' and '.join(words)}, which takes {format_bytes(needed)}"
    return "use a smaller model"


@lru_cache
def measure_peak_flops(device: str = "cpu", seconds: float = 0.2) -> float:
    """Time multiply-adds on the registers of all threads for a moment; FLOP per second.

    Of a GPU, products of ever larger bfloat16 matrices. The one place where the peak behind every
    "share of peak" is measured; once a process.
    """
    if device == "cpu":
        return float(_core.measure_peak(seconds))
    size, best = 64, 0.0
    while True:
        x = tensor(np.random.default_rng(0).random((size, size)), "bfloat16", device)
        elapsed = min(_product_seconds(x) for _ in range(3))
        best = max(best, 2 * size**3 / elapsed)
        if size == 4096 or elapsed > 0.01:
            return best
        size *= 2


def _product_seconds(x: Tensor) -> float:
    times, y = 8, _core.empty(x.shape, dtype=x.dtype, device=x.device)
    last = zeros([1], device=x.device)
    start = time.perf_counter()
    for _ in range(times):
        _core.matmul(a=x, b=x, c=y)
    last.numpy()  # waits for what was asked of the device before
    return (time.perf_counter() - start) / times


def available_memory() -> int | None:
    """Bytes this process may still take: free memory, or less inside a control group.

    None where the system does not say (it has no /proc).
    """
    sizes = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                sizes.append(int(line.split()[1]) * 1024)
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((group / "memory.current").read_text(encoding="ascii"))
            sizes.append(max(0, int(limit) - used))
    except (OSError, ValueError):
        pass  # what was read so far still holds
    return min(sizes, default=None)


def _format_flops(number: float) -> str:
    words = format_count(number)
    digits = words.rstrip("kMGT")
    return f"{digits} {words[len(digits) :]}FLOP"


def _size(shapes: Iterable[tuple[int, ...]]) -> int:
    return _FLOAT * sum(map(math.prod, shapes))


def _is_trained(name: str, model: ModelConfig, train: TrainConfig) -> bool:
    return is_trained(model, name) and not any(fnmatchcase(name, each) for each in train.freeze)


def _activation_bytes(core: Any, model: ModelConfig, train: TrainConfig) -> int:
    def planned(rows: int) -> int:
        batch = _fullest_batch(model, train.replace(batch_size=rows))
        return int(core.planned_bytes(batch, train.dtype != "float32"))

    most = max(1, _MOST_TOKENS // train.block_size)
    if train.batch_size <= 2 * most:
        return planned(train.batch_size)
    less, more = planned(most), planned(2 * most)
    return more + (train.batch_size - 2 * most) * (more - less) // most


def _fullest_batch(model: ModelConfig, train: TrainConfig) -> Batch:
    """A micro-batch of one token, whose sequences are as long as any in the run."""
    from llmcore.training.tasks import natural_objective, parse_objective

    length = train.block_size
    if model.positions not in ("relative", "none"):
        length = min(length, model.max_positions)
    ids = np.zeros((train.batch_size, length), np.int32)
    make = partial(
        Batch,
        enc_ids=ids if model.num_encoder_layers else None,
        dec_ids=ids if model.num_decoder_layers else None,
    )
    names = list(parse_objective(train.objective or natural_objective("text", model.kind)))
    if names == ["classification"] and model.num_labels:
        rows = np.arange(0, ids.size, length, dtype=np.int32)
        return make(rows=rows, targets=np.zeros_like(rows), head="labels")
    if names == ["masked"]:
        rows = np.arange(math.ceil(train.mask_probability * ids.size), dtype=np.int32)
        return make(rows=rows, targets=np.zeros_like(rows))
    return make(targets=np.zeros(ids.size, np.int32))
