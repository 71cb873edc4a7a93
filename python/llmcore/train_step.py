"""`TrainStep`: one update of a model, and what it reports."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from llmcore import _core
from llmcore.errors import ConfigError, ShapeError
from llmcore.model import Transformer, check_batch, check_model
from llmcore.objectives import Batch
from llmcore.tensor import write
from llmcore.validation import check_seed

TRAINING_DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class StepResult:
    """What one training step did.

    A GPU may still be at work on the step when it is returned: the first look at an attribute waits
    for it, so that who looks one step late never makes the GPU wait.

    Attributes:
        loss: mean over the targets of all micro-batches, before the update.
        grad_norm: global norm of the gradient, before clipping.
        targets: summed weight of the targets.
        skipped: the weights were left alone, since loss or norm was not finite or above its limit.
            `TrainStep.first_not_finite` then says where.
    """

    loss: float
    grad_norm: float
    targets: float
    skipped: bool

    @classmethod
    def _of(cls, report: _core.StepReport) -> StepResult:
        """What `report` will say, asked when somebody looks."""
        result = object.__new__(cls)
        object.__setattr__(result, "_report", report)
        return result

    def __getattr__(self, name: str) -> Any:
        # Only for what is not there yet.
        report = self.__dict__.get("_report")
        if report is None or name not in self.__dataclass_fields__:
            raise AttributeError(f"StepResult has no attribute {name!r}")
        self.__dict__.update(zip(self.__dataclass_fields__, report.get(), strict=True))
        del self.__dict__["_report"]
        return self.__dict__[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return StepResult, astuple(self)


class TrainStep:
    """Forward, backward, clip and AdamW (Loshchilov and Hutter 2019), all in the core.

    Weight decay applies to matrices and tables, those of adapters included, not to biases and
    norms. Frozen parameters (`Transformer.freeze`) are not updated and do not count in the norm.
    With several micro-batches the loss is the sum over all of them divided by the weight of all
    targets, so any split of a batch gives the same mean.

    Args:
        model: the model; its parameters are updated in place.
        lr: learning rate, unless `step` is given another.
        betas: decay rates of the moments.
        eps: added to the denominator.
        weight_decay: decoupled weight decay.
        max_grad_norm: gradients are scaled down to this global norm; None: never.
        dropout_seed: dropout masks are a function of this, the step and the place.
        dtype: "bfloat16" rounds the operands of all products to bfloat16, attention's too,
            forwards and backwards; their sums, the softmax, norms, losses, weights and moments are
            float32 all the same (Micikevicius et al. 2018; Kalamkar et al. 2019). It pays where the
            processor has instructions for it: `llmcore doctor` tells.

    Raises:
        ConfigError: a setting is out of range.

    Example:
        >>> from llmcore import CausalLM, ModelConfig
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> step = TrainStep(model, lr=1e-2)
        >>> batch = CausalLM()([[1, 2, 3, 4]])
        >>> before, after = step(batch).loss, step(batch).loss
        >>> after < before
        True
    """

    def __init__(
        self,
        model: Transformer,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
        dropout_seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        check_model(model, "TrainStep")
        _check_settings(lr, betas, eps, weight_decay, max_grad_norm, dtype)
        check_seed(dropout_seed, "TrainStep: dropout_seed")
        self.model = model
        self.lr = lr
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.max_grad_norm = max_grad_norm
        self.dtype = dtype
        self._core = _core.TrainStep(model._core, dropout_seed, dtype == "bfloat16")

    def __call__(
        self,
        batch: Batch | Sequence[Batch],
        lr: float | None = None,
        *,
        max_loss: float = float("inf"),
        max_norm: float = float("inf"),
    ) -> StepResult:
        """Take one step on a batch or on a list of micro-batches.

        Args:
            batch: one Batch, or several to accumulate over.
            lr: learning rate of this step, if not the one given at construction.
            max_loss: the update is skipped if the loss is above this.
            max_norm: the update is skipped if the gradient norm is above this.

        Returns:
            What happened. A loss or norm that is not finite always skips the update.

        Raises:
            ConfigError: no target has a weight above zero.
        """
        batches = list(batch) if isinstance(batch, Sequence) else [batch]
        if not batches:
            raise ConfigError("TrainStep: expected at least one batch, got none")
        for micro_batch in batches:
            check_batch(micro_batch, "TrainStep")
        rate = self.lr if lr is None else lr
        if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate >= 0):
            raise ConfigError(f"TrainStep: lr must be a number, at least 0, got {rate!r}")
        limit = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        return StepResult._of(
            self._core.step(
                self.model._core,
                batches,
                lr=float(rate),
                betas=self.betas,
                eps=self.eps,
                weight_decay=self.weight_decay,
                max_grad_norm=limit,
                max_loss=max_loss,
                max_norm=max_norm,
            )
        )

    step = __call__

    def first_not_finite(self) -> str | None:
        """Name the first tensor that is not finite after a step that was skipped for it.

        Weights are looked at in the order in which forward meets them, then the gradients of the
        last step in the order in which backward leaves them. It costs a pass over both.

        Returns:
            Such as "the gradient of decoder.norm.weight"; None if all are finite.

        Example:
            >>> from llmcore import ModelConfig
            >>> step = TrainStep(Transformer(ModelConfig.preset("gpt-nano")), lr=1.0)
            >>> step.model.parameters()["decoder.norm.weight"].numpy()[3] = float("nan")
            >>> step.first_not_finite()
            'the weight decoder.norm.weight'
        """
        trained = reversed(self.model.trainable_parameters())
        gradients = self.model.gradients()
        tensors = [(f"the weight {name}", t) for name, t in self.model.parameters().items()]
        tensors += [(f"the gradient of {name}", gradients[name]) for name in trained]
        return next((name for name, t in tensors if not np.isfinite(t.numpy()).all()), None)

    def state_dict(self) -> dict[str, Any]:
        """All that a later step depends on beside the weights.

        Returns:
            `m` and `v`, the moments as flat float32 arrays in the order of `parameters()`, views on
            the CPU and copies on a GPU; `step` (updates so far), `calls` (steps so far, skipped
            ones included) and `dropout_seed`.
        """
        return {
            "m": self._core.m.numpy(),
            "v": self._core.v.numpy(),
            "step": self._core.updates,
            "calls": self._core.calls,
            "dropout_seed": self._core.dropout_seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ConfigError: something is missing.
            ShapeError: the moments are those of another model.
        """
        keys = ("m", "v", "step", "calls", "dropout_seed")
        missing = [key for key in keys if key not in state]
        if missing:
            raise ConfigError(f"TrainStep.load_state_dict: there is no {', '.join(missing)}")
        for name in ("m", "v"):
            tensor = getattr(self._core, name)
            target = tensor.numpy()
            moment = np.asarray(state[name])
            if moment.shape != target.shape:
                raise ShapeError(
                    f"TrainStep.load_state_dict: {name} must have shape {list(target.shape)}, "
                    f"got {list(moment.shape)}: it belongs to another model"
                )
            for part in self._places():
                # Zeros on zeros are not written: what is frozen takes no memory.
                if moment[part].any() or target[part].any():
                    target[part] = moment[part]
            if tensor.device != "cpu":
                write(tensor, target)
        self._core.updates = int(state["step"])
        self._core.calls = int(state["calls"])
        self._core.dropout_seed = int(state["dropout_seed"])

    def _places(self) -> Iterator[slice]:
        """Where each parameter's moments are."""
        start = 0
        for tensor in self.model.parameters().values():
            end = start + math.prod(tensor.shape)
            yield slice(start, end)
            start = end


def _check_settings(
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    max_grad_norm: float | None,
    dtype: str,
) -> None:
    def number(value: Any) -> bool:
        return isinstance(value, numbers.Real) and math.isfinite(value)

    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    problems = [
        f"{name} must be {meaning}, got {value!r}"
        for name, value, ok, meaning in (
            ("lr", lr, number(lr) and lr >= 0, "a number, at least 0"),
            (
                "betas",
                betas,
                pair and all(number(beta) and 0 <= beta < 1 for beta in betas),
                "two numbers in [0, 1)",
            ),
            ("eps", eps, number(eps) and eps > 0, "a number above 0"),
            (
                "weight_decay",
                weight_decay,
                number(weight_decay) and weight_decay >= 0,
                "a number, at least 0",
            ),
            (
                "max_grad_norm",
                max_grad_norm,
                max_grad_norm is None or (number(max_grad_norm) and max_grad_norm > 0),
                "a number above 0, or None",
            ),
            ("dtype", dtype, dtype in TRAINING_DTYPES, " or ".join(map(repr, TRAINING_DTYPES))),
        )
        if not ok
    ]
    if problems:
        raise ConfigError.listing("TrainStep", problems)
