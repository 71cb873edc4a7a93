"""What a training run will cost, told before it starts: memory, arithmetic and time."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llmcore.config import ModelConfig
from llmcore.errors import OutOfMemory
from llmcore.parameters import is_trained, parameter_shapes
from llmcore.training.log import format_bytes, format_count, format_duration
from llmcore.training.train_config import TrainConfig

#: Share of the GEMM peak a training step reaches before one has been timed. Small models, whose
#: time goes into everything but matrix products, stay below it; large ones come out above.
ASSUMED_SHARE = 0.5

_FLOAT = 4  # bytes of a float32
_HEAD_ROWS = 128  # rows of logits the head holds at a time (nn/head)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a run. Sizes are in bytes, arithmetic in floating-point operations.

    Attributes:
        parameters: trainable parameters, tied ones once.
        weight_bytes: the weights.
        optimizer_bytes: gradients and AdamW's two moments, of what is trained.
        activation_bytes: what one micro-batch keeps for backward, plus working space.
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
            f"memory     about {self.describe_memory()}",
            f"time       about {format_duration(self.seconds)}: {self.steps} steps of"
            f" {self.tokens_per_step:,} tokens, {_format_flops(self.flops_per_step)} each, if"
            f" {ASSUMED_SHARE:.0%} of this machine's {_format_flops(self.peak_flops)}/s is reached",
        ]


def make_plan(model: ModelConfig, train: TrainConfig, *, peak_flops: float | None = None) -> Plan:
    """Estimate memory and time of training `model` as `train` says.

    Args:
        model: the architecture.
        train: batch, block, steps and whether blocks are recomputed.
        peak_flops: the machine's matrix-product peak per second; measured if not given.

    Example:
        >>> from llmcore.config import ModelConfig
        >>> from llmcore.training.plan import make_plan
        >>> from llmcore.training.train_config import TrainConfig
        >>> plan = make_plan(ModelConfig.preset("gpt2"), TrainConfig(), peak_flops=1e12)
        >>> plan.parameters, plan.tokens_per_step
        (124439808, 768)
    """
    parameters = model.num_parameters()
    shapes = parameter_shapes(model)
    trained = sum(math.prod(shapes[name]) for name in shapes if is_trained(model, name))
    micro_batch = train.batch_size * train.block_size
    return Plan(
        parameters=parameters,
        weight_bytes=_FLOAT * parameters,
        optimizer_bytes=3 * _FLOAT * trained,
        activation_bytes=_FLOAT * _activation_floats(model, micro_batch, train.recompute),
        checkpoint_bytes=3 * _FLOAT * parameters,
        tokens_per_step=micro_batch * train.accumulation,
        flops_per_step=model.flops_per_token(train.block_size) * micro_batch * train.accumulation,
        steps=train.steps,
        peak_flops=measure_peak_flops() if peak_flops is None else peak_flops,
    )


def refuse_impossible(model: ModelConfig, train: TrainConfig) -> None:
    """Raise if a run would need more memory than this process may have at all.

    Raises:
        OutOfMemory: saying what needs how much, and what to do.
    """
    from llmcore import _core

    cost = make_plan(model, train, peak_flops=1.0)
    limit = int(_core.device_info()["memory_bytes"])
    if cost.memory_bytes <= limit:
        return
    cure = "use a smaller model"
    if cost.activation_bytes > cost.weight_bytes + cost.optimizer_bytes:
        cure = "lower batch_size and raise accumulation"
        cure += "" if train.recompute else ", or use recompute"
    raise OutOfMemory(
        f"training needs about {cost.describe_memory()};"
        f" this process may use {format_bytes(limit)}: {cure}"
    )


def find_shortages(cost: Plan, directory: str | Path) -> list[str]:
    """Warn, in a sentence each with its cure, where memory or disk will hardly do.

    Args:
        cost: the plan of a model whose weights are in memory already.
        directory: an existing directory where checkpoints will go.
    """
    found = []
    free = available_memory()
    if free is not None and cost.activation_bytes + cost.optimizer_bytes > free:
        found.append(
            f"only {format_bytes(free)} of memory are free: lower batch_size and raise"
            " accumulation, or use recompute"
        )
    room = shutil.disk_usage(directory).free
    # While a checkpoint is replaced the old and the new one exist side by side; and the best.
    if room < 2 * cost.checkpoint_bytes + cost.weight_bytes:
        found.append(
            f"only {format_bytes(room)} of disk are free at {directory}: a checkpoint takes"
            f" {format_bytes(cost.checkpoint_bytes)}, twice that while it is replaced"
        )
    return found


@lru_cache(maxsize=1)
def measure_peak_flops(seconds: float = 0.2) -> float:
    """Time multiply-adds on the registers of all threads for a moment; FLOP per second.

    The one place where the peak behind every "share of peak" is measured; once a process.
    """
    from llmcore import _core

    return float(_core.measure_peak(seconds))


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


def _activation_floats(model: ModelConfig, tokens: int, recompute: bool) -> int:
    """Numbers kept for backward by one micro-batch of `tokens` tokens per stack."""
    encoder = model.num_encoder_layers * _block_floats(model, cross=False)
    both = model.num_encoder_layers > 0 and model.num_decoder_layers > 0
    one_decoder_block = _block_floats(model, cross=both)
    per_token = encoder + model.num_decoder_layers * one_decoder_block
    if recompute:
        layers = model.num_encoder_layers + model.num_decoder_layers
        per_token = layers * model.hidden_size + max(
            one_decoder_block, _block_floats(model, cross=False)
        )
    # Working space of backward: the residual gradient, the widest sublayer's gradients, and the
    # final norm's input and output; then the head's chunk of logits with its gradient.
    per_token += 4 * model.hidden_size + (3 if model.gated_ffn else 2) * model.ffn_size
    return tokens * per_token + 2 * min(tokens, _HEAD_ROWS) * model.vocab_size


def _block_floats(model: ModelConfig, *, cross: bool) -> int:
    """Numbers one block keeps per token: inputs of norms and of matrix products, and q, k, v."""
    q_width = model.num_heads * model.head_dim
    kv_width = 2 * model.num_kv_heads * model.head_dim
    # The sublayer's input and its norm; q, k, v; the heads' output; log-sum-exp, mean, scale.
    attention = 2 * model.hidden_size + q_width + kv_width + q_width + model.num_heads + 2
    # The sublayer's input and its norm; before and after the activation (gate and up if gated).
    feed_forward = 2 * model.hidden_size + 2 + (3 if model.gated_ffn else 2) * model.ffn_size
    return (2 if cross else 1) * attention + feed_forward
