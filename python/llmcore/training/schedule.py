"""Learning-rate schedules: pure functions of the step, all with a linear warmup."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from llmcore.errors import ConfigError, did_you_mean

ScheduleKind = Literal["cosine", "constant", "linear", "inverse_sqrt", "wsd"]

#: Share of `total_steps` that a WSD schedule spends decaying when nothing is said (Hu et al. 2024).
DEFAULT_DECAY_SHARE = 0.1

_NEEDS_TOTAL = ("cosine", "linear", "wsd")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    r"""The learning rate of each step; `schedule(1)` is the rate of the first update.

    With step s (from 1), warmup w, total n, decay d, peak `lr`, floor `min_lr`:

    * s ≤ w, every kind: `lr · s / w`, so that step w is the first at the peak.
    * "constant": `lr`.
    * "linear": `lr + (min_lr - lr) · p` with `p = (s - w) / (n - w)`.
    * "cosine": `min_lr + (lr - min_lr) · (1 + cos(π p)) / 2` with the same p
      (Loshchilov & Hutter 2017, SGDR, eq. 5, one period).
    * "inverse_sqrt": `lr · sqrt(max(w, 1) / s)`, not below `min_lr` (Vaswani et al. 2017, eq. 3,
      whose `d_model^-0.5 · warmup^-0.5` is the peak `lr` here).
    * "wsd", warmup–stable–decay (Hu et al. 2024, MiniCPM): `lr` up to step n - d, then linear down
      to `min_lr` at step n (the straight line is that of Hägele et al. 2024).

    The decaying kinds reach `min_lr` at step n exactly and stay there afterwards.

    Attributes:
        kind: Which formula.
        lr: The peak, > 0.
        min_lr: The floor, between 0 and `lr`.
        warmup_steps: Length of the linear warmup, in steps; 0 for none.
        total_steps: Length of the whole run; "cosine", "linear" and "wsd" need it.
        decay_steps: Length of the final decay of "wsd"; a tenth of `total_steps` if not given.

    Raises:
        ConfigError: Naming every field that is wrong.

    Example:
        >>> schedule = Schedule(kind="cosine", lr=1.0, warmup_steps=2, total_steps=6)
        >>> [round(schedule(step), 3) for step in range(1, 8)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """

    kind: ScheduleKind = "cosine"
    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    total_steps: int | None = None
    decay_steps: int | None = None

    def __post_init__(self) -> None:
        if self.kind == "wsd" and self.decay_steps is None and self.total_steps is not None:
            room = self.total_steps - self.warmup_steps
            steps = min(max(1, round(DEFAULT_DECAY_SHARE * self.total_steps)), max(room, 0))
            object.__setattr__(self, "decay_steps", steps)
        problems = self._problems()
        if problems:
            raise ConfigError.listing("Schedule", problems)

    def _problems(self) -> list[str]:
        """Return one sentence for every field that is wrong."""
        problems = []
        kinds = get_args(ScheduleKind)
        if self.kind not in kinds:
            hint = did_you_mean(str(self.kind), kinds)
            problems.append(f"kind: expected one of {', '.join(kinds)}, got {self.kind!r}{hint}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            problems.append(f"lr: expected a positive number, got {self.lr}")
        elif not 0 <= self.min_lr <= self.lr:
            problems.append(f"min_lr: expected between 0 and lr = {self.lr}, got {self.min_lr}")
        if self.warmup_steps < 0:
            problems.append(f"warmup_steps: expected 0 or more, got {self.warmup_steps}")
        if self.total_steps is None:
            if self.kind in _NEEDS_TOTAL:
                problems.append(f"total_steps: {self.kind!r} needs the length of the run, got None")
        elif self.total_steps < 1:
            problems.append(f"total_steps: expected 1 or more, got {self.total_steps}")
        elif self.warmup_steps > self.total_steps:
            problems.append(
                f"warmup_steps: expected at most total_steps = {self.total_steps}, "
                f"got {self.warmup_steps}"
            )
        if self.decay_steps is not None:
            problems += self._decay_problems(self.decay_steps)
        return problems

    def _decay_problems(self, decay: int) -> list[str]:
        if self.kind != "wsd":
            return [f"decay_steps: only 'wsd' has a decay of its own, got {decay} for {self.kind}"]
        if decay < 0:
            return [f"decay_steps: expected 0 or more, got {decay}"]
        if self.total_steps is not None and decay > self.total_steps - self.warmup_steps >= 0:
            room = self.total_steps - self.warmup_steps
            return [
                f"decay_steps: expected at most total_steps - warmup_steps = {room}, got {decay}"
            ]
        return []

    def __call__(self, step: int) -> float:
        """Return the learning rate of update `step`, counted from 1.

        Raises:
            ConfigError: If `step` is less than 1.
        """
        if step < 1:
            raise ConfigError(f"schedule: step counts from 1 (the first update), got {step}")
        warmup, peak, floor = self.warmup_steps, self.lr, self.min_lr
        if step < warmup:
            return peak * step / warmup
        if self.kind == "constant":
            return peak
        if self.kind == "inverse_sqrt":
            return max(floor, peak * math.sqrt(max(warmup, 1) / step))
        assert self.total_steps is not None  # checked in __post_init__
        start = self.total_steps - (self.decay_steps or 0) if self.kind == "wsd" else warmup
        if step >= self.total_steps:
            return peak if start == self.total_steps == step else floor
        progress = max(0.0, (step - start) / (self.total_steps - start))
        if self.kind == "cosine":
            return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
        return peak + (floor - peak) * progress
