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
# What CUDA keeps of a GPU's memory for a process and its code, an estimate; cuBLASLt's workspace;
# and what both ends of the activations are rounded up by, at most.
_CONTEXT, _WORKSPACE, _ROUNDING = 512 << 20, 32 << 20, 2 * 64 << 20
# Batches of twice as many tokens are planned as they are; beyond, every row takes the same.
_MOST_TOKENS = 1 << 17


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run. Sizes are in bytes, arithmetic in floating-point operations.

    Attributes:
        parameters: trainable parameters, tied ones once.
        weight_bytes: the weights, in whole pages, and tables of positions.
        optimizer_bytes: gradients and AdamW's two moments, of what is trained; on a GPU, where
            memory is not taken as it is touched, of everything.
        activation_bytes: what one micro-batch keeps for backward, plus working space, where every
            sequence is `block_size` long; on a GPU also the inputs of all micro-batches.
        device_bytes: of a GPU, what CUDA and cuBLASLt take besides, an estimate.
        checkpoint_bytes: one checkpoint with everything a resume needs.
        tokens_per_step: tokens in one update, over all its micro-batches.
        flops_per_step: forward and backward of one update.
        steps: updates of the whole run.
        peak_flops: this machine's measured matrix-product peak, per second; None of a GPU that is
            not there.
    """

    parameters: int
    weight_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    device_bytes: int = 0
    checkpoint_bytes: int
    tokens_per_step: int
    flops_per_step: float
    steps: int
    peak_flops: float | None

    @property
    def memory_bytes(self) -> int:
        """Everything together."""
        parts = (self.weight_bytes, self.optimizer_bytes, self.activation_bytes, self.device_bytes)
        return sum(parts)

    @property
    def own_bytes(self) -> int:
        """What `used_bytes` sees of it: of a GPU, without CUDA's part but for the workspace."""
        return self.memory_bytes - max(0, self.device_bytes - _WORKSPACE)

    @property
    def seconds(self) -> float | None:
        """Expected time of the steps, at `ASSUMED_SHARE` of the peak; None where that is."""
        if self.peak_flops is None:
            return None
        return self.steps * self.flops_per_step / (ASSUMED_SHARE * self.peak_flops)

    def describe_memory(self) -> str:
        """The total, and what it is made of."""
        return (
            f"{format_bytes(self.memory_bytes)}: weights {format_bytes(self.weight_bytes)},"
            f" gradients and moments {format_bytes(self.optimizer_bytes)},"
            f" activations {format_bytes(self.activation_bytes)}"
            + (f", CUDA about {format_bytes(self.device_bytes)}" if self.device_bytes else "")
        )

    def describe(self) -> list[str]:
        """Say it in a few lines, for people."""
        work = (
            f"{self.steps} steps of {self.tokens_per_step:,} tokens,"
            f" {_format_flops(self.flops_per_step)} each"
        )
        if self.peak_flops is not None and self.seconds is not None:
            work = (
                f"about {format_duration(self.seconds)}: {work}, if {ASSUMED_SHARE:.0%} of this"
                f" machine's {_format_flops(self.peak_flops)}/s is reached"
            )
        return [
            f"parameters {format_count(self.parameters)} ({self.parameters:,})",
            f"memory     {self.describe_memory()}",
            f"time       {work}",
        ]


def make_plan(
    model: ModelConfig,
    train: TrainConfig,
    *,
    peak_flops: float | None = None,
    device: str = "cpu",
) -> Plan:
    """Tell memory and time of training `model` as `train` says.

    Memory is that of a step which is taken with kernels that do nothing, on addresses instead of
    memory: a model of any size takes milliseconds.

    Args:
        model: the architecture.
        train: batch, block, steps, objective, what is frozen and whether blocks are recomputed.
        peak_flops: the device's matrix-product peak per second; measured if not given, where the
            device is there.
        device: "cpu", "cuda" or "cuda:<index>", which needs no GPU to be there.

    Raises:
        DeviceError: this build of llmcore has no CUDA back end, and so does not know what one
            takes.

    Example:
        >>> from llmcore.config import ModelConfig
        >>> from llmcore.training.plan import make_plan
        >>> from llmcore.training.train_config import TrainConfig
        >>> plan = make_plan(ModelConfig.preset("gpt2"), TrainConfig(), peak_flops=1e12)
        >>> plan.parameters, plan.tokens_per_step
        (124439808, 768)
    """
    model = with_adapters(model, train)
    parameters = model.num_parameters()
    shapes = parameter_shapes(model)
    frozen = [name for name in shapes if not _is_trained(name, model, train)]
    before = _core.memory_stats()["current_bytes"]
    core = _core.Transformer(model.to_dict(), device, None, planned=True)
    tables = _core.memory_stats()["current_bytes"] - before  # all that a planned model holds
    for name in frozen:
        core.set_trainable(name, False)
    core.recompute = train.recompute
    micro_batch = train.batch_size * train.block_size
    on_cpu = device == "cpu"
    if peak_flops is None and (on_cpu or not _core.cuda_unavailable_reason()):
        peak_flops = measure_peak_flops(device)
    weights = core.weight_bytes if on_cpu else _FLOAT * core.flat_parameters().size  # whole pages
    untouched = _size(shapes[name] for name in frozen) if on_cpu else 0
    return Plan(
        parameters=parameters,
        weight_bytes=weights + tables,
        optimizer_bytes=3 * (weights - untouched),
        activation_bytes=_activation_bytes(core, model, train, 1 if on_cpu else train.accumulation),
        device_bytes=0 if on_cpu else _CONTEXT + _WORKSPACE + _ROUNDING,
        checkpoint_bytes=3 * _FLOAT * parameters,
        tokens_per_step=micro_batch * train.accumulation,
        flops_per_step=model.flops_per_token(train.block_size) * micro_batch * train.accumulation,
        steps=train.steps,
        peak_flops=peak_flops,
    )


def used_bytes(model: Any) -> int:
    """Most memory of a model's device that weights, gradients, moments and activations have taken.

    Args:
        model: the `Transformer` that was trained. On the CPU, gradients and moments of what is
            frozen have addresses, and nothing behind them.
    """
    peak = int(_core.memory_stats(model.device)["peak_bytes"])
    if model.device != "cpu":
        return peak
    trained = model.trainable_parameters()
    shapes = {name: tensor.shape for name, tensor in model.parameters().items()}
    untouched = 3 * _size(shapes[name] for name in shapes.keys() - trained.keys())
    return peak - untouched


def refuse_impossible(model: ModelConfig, train: TrainConfig, device: str = "cpu") -> None:
    """Raise if a run would need more memory than this process, or the GPU, may have at all.

    Raises:
        OutOfMemory: saying what needs how much, and what to do.
    """
    cost = make_plan(model, train, peak_flops=1.0, device=device)
    facts = _core.device_info()
    if device == "cpu":
        owner, limit = "this process may use", int(facts["memory_bytes"])
    else:
        owner = f"{device} has"
        limit = int(facts["cuda"]["devices"][_index(device)]["memory_bytes"])
    if cost.memory_bytes > limit:
        raise OutOfMemory(
            f"training needs {cost.describe_memory()}; {owner} {format_bytes(limit)}:"
            f" {_cure(model, train, limit, device)}"
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
        device: where the run is.
    """
    found = []
    cost = make_plan(model, train, peak_flops=1.0, device=device)
    free, taken = available_memory(device), cost.weight_bytes if loaded else 0
    if device != "cpu":  # all that this process holds already, and what CUDA has taken
        taken = int(_core.memory_stats(device)["current_bytes"]) + _CONTEXT if free else 0
    if free is not None and cost.memory_bytes > free + taken:
        found.append(
            f"only {format_bytes(free)} of memory are free:"
            f" {_cure(model, train, free + taken, device)}"
        )
    room = shutil.disk_usage(directory).free
    # While a checkpoint is replaced the old and the new one exist side by side; and the best.
    if room < 2 * cost.checkpoint_bytes + cost.weight_bytes:
        found.append(
            f"only {format_bytes(room)} of disk are free at {directory}: a checkpoint takes"
            f" {format_bytes(cost.checkpoint_bytes)}, twice that while it is replaced"
        )
    return found


def _cure(model: ModelConfig, train: TrainConfig, limit: int, device: str) -> str:
    """What takes a run below `limit` bytes: the largest micro-batch that does, or recomputing."""
    whole = train.batch_size
    small = [size for size in range(1, math.isqrt(whole) + 1) if whole % size == 0]
    sizes = sorted({*small, *(whole // size for size in small)}, reverse=True)
    for recompute in dict.fromkeys((train.recompute, True)):  # which costs time
        for size in sizes:
            accumulation = train.accumulation * (whole // size)
            tried = train.replace(batch_size=size, accumulation=accumulation, recompute=recompute)
            needed = make_plan(model, tried, peak_flops=1.0, device=device).memory_bytes
            if needed > limit:
                continue
            words = [f"batch_size {size} with accumulation {accumulation}"] if size < whole else []
            words += ["recompute"] if recompute and not train.recompute else []
            return f"use {' and '.join(words)}, which takes {format_bytes(needed)}"
    return "use a smaller model"


@lru_cache
def measure_peak_flops(device: str = "cpu", seconds: float = 0.2, dtype: str = "bfloat16") -> float:
    """Time multiply-adds on the registers of all threads for a moment; FLOP per second.

    Of a GPU, products of ever larger matrices of `dtype`. The one place where the peak behind every
    "share of peak" is measured; once a process.
    """
    if device == "cpu":
        return float(_core.measure_peak(seconds))
    size, best = 64, 0.0
    while True:
        x = tensor(np.random.default_rng(0).random((size, size)), dtype, device)
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


def available_memory(device: str = "cpu") -> int | None:
    """Bytes this process may still take: free memory, or less inside a control group.

    None where the system does not say (it has no /proc), and of a GPU that is not there.
    """
    if device != "cpu":
        return None if _core.cuda_unavailable_reason() else _core.free_memory(_index(device))
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


def with_adapters(model: ModelConfig, train: TrainConfig) -> ModelConfig:
    """The architecture with the adapters that a run adds to it."""
    if not train.lora_rank or model.lora is not None:
        return model
    lora = LoraConfig(rank=train.lora_rank, dropout=train.lora_dropout, targets=train.lora_targets)
    return model.replace(lora=lora)


def _index(device: str) -> int:
    return int(device.partition(":")[2] or 0)


def _size(shapes: Iterable[tuple[int, ...]]) -> int:
    return _FLOAT * sum(map(math.prod, shapes))


def _is_trained(name: str, model: ModelConfig, train: TrainConfig) -> bool:
    return is_trained(model, name) and not any(fnmatchcase(name, each) for each in train.freeze)


def _activation_bytes(core: Any, model: ModelConfig, train: TrainConfig, micro_batches: int) -> int:
    bfloat16 = train.dtype != "float32"

    def planned(rows: int) -> int:
        batch = fullest_batch(model, train.replace(batch_size=rows))
        return int(core.planned_bytes(batch, micro_batches=micro_batches, bfloat16=bfloat16))

    most = max(1, _MOST_TOKENS // train.block_size)
    if train.batch_size <= 2 * most:
        return planned(train.batch_size)
    less, more = planned(most), planned(2 * most)
    return more + (train.batch_size - 2 * most) * (more - less) // most


def fullest_batch(model: ModelConfig, train: TrainConfig) -> Batch:
    """Make a micro-batch of one token, whose sequences are as long as any in the run."""
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
