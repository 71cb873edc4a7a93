"""Where a run stands: its saved counters, its speed, and how it ended."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llmcore.training.log import format_duration

#: Steps whose losses and norms an outlier is compared with, and how many are needed to judge.
WINDOW, ENOUGH = 128, 32


class StepResult(Protocol):
    """What one update reports."""

    loss: float
    grad_norm: float
    targets: float
    skipped: bool


@dataclass
class RunState:
    """The counters of a run. They go into the checkpoint, so that a resumed run decides alike.

    Attributes:
        step: updates tried so far, skipped ones included.
        evaluated_step: the step of the last evaluation, -1 before the first.
        loss: mean training loss of the last interval of metrics, None before the first.
        val_loss: last validation loss, None before the first.
        best_loss: the lowest validation loss so far, None before the first.
        best_step: where it was.
        worse_evaluations: evaluations since the best one.
        skipped: steps skipped in all, and in a row.
        skipped_in_a_row: as it says.
        recent_losses: losses of the latest updates that were not skipped, at most `WINDOW`.
        recent_norms: their gradient norms.
        loss_sum: losses since the last line of metrics, each times its targets.
        loss_targets: those targets.

    Example:
        >>> from llmcore.training.run_state import RunState
        >>> state = RunState(step=3)
        >>> RunState.from_dict(state.to_dict()) == state
        True
    """

    step: int = 0
    evaluated_step: int = -1
    loss: float | None = None
    val_loss: float | None = None
    best_loss: float | None = None
    best_step: int = 0
    worse_evaluations: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    recent_losses: list[float] = field(default_factory=list)
    recent_norms: list[float] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_targets: float = 0.0

    def record_step(self, result: StepResult) -> None:
        """Count one update that was tried."""
        self.step += 1
        if result.skipped:
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.loss_sum += result.loss * result.targets
        self.loss_targets += result.targets
        self.recent_losses = [*self.recent_losses[1 - WINDOW :], result.loss]
        self.recent_norms = [*self.recent_norms[1 - WINDOW :], result.grad_norm]

    def record_evaluation(self, loss: float) -> bool:
        """Count one evaluation; returns whether it is the best so far.

        That of the untrained model, at step 0, is the first point of the curve and no more.
        """
        self.evaluated_step = self.step
        self.val_loss = loss if math.isfinite(loss) else None
        if self.step == 0:
            return False
        better = self.val_loss is not None and (self.best_loss is None or loss < self.best_loss)
        if better:
            self.best_loss, self.best_step, self.worse_evaluations = loss, self.step, 0
        else:
            self.worse_evaluations += 1
        return better

    def end_interval(self) -> float | None:
        """Set `loss` to the mean since the last call, None if every step was skipped."""
        self.loss = self.loss_sum / self.loss_targets if self.loss_targets else None
        self.loss_sum = self.loss_targets = 0.0
        return self.loss

    def limits(self, deviations: float) -> tuple[float, float]:
        """The largest (loss, gradient norm) that the next step may have.

        Each is the mean of the recent ones plus `deviations` standard deviations; infinite while
        there are too few to judge by, or with `deviations` 0. A deviation counts as at least 1 % of
        the mean, lest a nearly constant past make outliers of everything.

        Example:
            >>> from llmcore.training.run_state import RunState
            >>> RunState(recent_losses=[2.0, 3.0] * 20, recent_norms=[1.0] * 40).limits(4)
            (4.5, 1.04)
        """
        if not deviations or len(self.recent_losses) < ENOUGH:
            return math.inf, math.inf
        return (
            _limit(self.recent_losses, deviations),
            _limit(self.recent_norms, deviations),
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; floats keep every bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunState:
        """The inverse of `to_dict`."""
        return cls(**values)


class Clock:
    """Speed of the steps alone, smoothed; evaluation and saving do not count.

    Attributes:
        started: when the run began, on `time.perf_counter`'s clock.
        step_seconds: time of one step.
        evaluation_seconds: time of the last evaluation.
        speed: tokens per second.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.step_seconds = 0.0
        self.evaluation_seconds = 0.0
        self.speed = 0.0
        self._steps = 0

    def add(self, seconds: float, tokens: int) -> None:
        """Count one step."""
        # The first step also grows the arena: it stands in until there is a second.
        self._steps += 1
        weight = 1.0 if self._steps <= 2 else max(0.02, 1.0 / (self._steps - 1))
        self.step_seconds += weight * (seconds - self.step_seconds)
        self.speed = tokens / self.step_seconds


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """How a run ended.

    Attributes:
        step: steps made, over all resumed parts.
        loss: mean training loss over the last interval of metrics, None if there was none.
        val_loss: last validation loss, None without validation data.
        best_loss: lowest validation loss.
        best_step: the step it belongs to.
        skipped: steps skipped.
        seconds: time of this part of the run.
        reason: "finished", "early stopping" or "interrupted".
        signal: the signal that interrupted it, or 0.
    """

    step: int
    loss: float | None
    val_loss: float | None
    best_loss: float | None
    best_step: int
    skipped: int
    seconds: float
    reason: str
    signal: int = 0

    def describe(self, out_dir: Path) -> str:
        """Say it in two lines, with what to do next."""
        losses = ""
        if self.best_loss is not None:
            losses = f"; best validation loss {self.best_loss:.4f} at step {self.best_step}"
        skipped = f"; {self.skipped} steps skipped" if self.skipped else ""
        first = f"{self.reason} at step {self.step}, {format_duration(self.seconds)}"
        second = f"checkpoints, metrics.jsonl and the curve loss.svg are in {out_dir}"
        if self.reason == "interrupted":
            second = f"saved; continue with: llmcore train --resume --out-dir {out_dir}"
        return f"{first}{losses}{skipped}\n{second}"


def _limit(recent: list[float], deviations: float) -> float:
    mean = statistics.fmean(recent)
    return mean + deviations * max(statistics.pstdev(recent, mean), 0.01 * abs(mean))
