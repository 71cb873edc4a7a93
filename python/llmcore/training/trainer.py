"""The training loop: steps, evaluation, checkpoints, and everything a run tells on its way."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmcore import checkpoint
from llmcore.atomic import write_atomically
from llmcore.config import LoraConfig, ModelConfig
from llmcore.data import TokenDataset
from llmcore.data.examples import ExampleDataset
from llmcore.errors import CheckpointError, ConfigError, DataError, DTypeError, LlmcoreError
from llmcore.objectives import Batch, Objective
from llmcore.training import plan
from llmcore.training.evaluate import HasLoss, evaluate
from llmcore.training.feed import (
    check_data,
    describe_size,
    eval_batches,
    make_sampler,
    resolve_data,
    sequence_lengths,
)
from llmcore.training.interrupt import Interrupts
from llmcore.training.log import RunLog, format_bytes, format_count, format_duration
from llmcore.training.run_directory import finish_saves, make_directory, refuse_second_run
from llmcore.training.run_state import Clock, FitResult, RunState, StepResult
from llmcore.training.tasks import (
    block_frame,
    check_objective,
    describe_objective,
    make_objective,
    writes_text,
)
from llmcore.training.train_config import TrainConfig, dropout_fields, resume_changes
from llmcore.viz import save_loss_curve

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer


class TrainableModel(HasLoss, Protocol):
    """What the loop needs of a model; `llmcore.Transformer` has it.

    Attributes:
        recompute: whether backward runs each block's forward again.
    """

    recompute: bool

    @property
    def config(self) -> ModelConfig:
        """The architecture."""

    def parameters(self) -> Mapping[str, Any]:
        """Name → tensor whose ``numpy()`` shares its memory."""


class Trainer:
    """Trains a model on text or examples and keeps what is needed to go on after any end.

    In ``config.out_dir`` it writes ``last/`` (a checkpoint with everything a resume needs),
    ``best/`` (the weights with the lowest validation loss), ``metrics.jsonl``, ``loss.svg`` and
    ``run.json`` (the settings).

    A resumed run may change settings that cannot matter; a change after which it no longer equals
    an uninterrupted run (learning rate, number of steps, …) is said in one line; one that would
    make the data cursor mean something else (batch, block, seed, data) is refused.

    Args:
        model: what to train, changed in place.
        data: a `TokenDataset`, an `ExampleDataset`, a one-dimensional array of ids, or a directory
            of tokenized data; or a pair (training, validation) of these. Without validation data
            there is no evaluation and no best checkpoint; a directory brings its own "val" split if
            it has one.
        config: the settings.
        tokenizer: saved beside the weights if given.
        objective: what makes batches of the data; the one that ``config.objective`` names, or that
            suits model and data (`llmcore.training.tasks`), if not given.
        origin: more settings to write to run.json, such as where the data came from.
        train_step: the class that makes the updates; `llmcore.TrainStep` if not given.

    Raises:
        DataError: the data are smaller than a block, or not where they should be.
        TokenIndexError: an id lies outside the model's vocabulary.
        ConfigError: settings that do not fit the model, or an objective that does not fit the model
            or the data.

    Example:
        ``Trainer(model, (train_ids, val_ids), TrainConfig(steps=500)).fit().val_loss``
    """

    def __init__(
        self,
        model: TrainableModel,
        data: Any,
        config: TrainConfig | None = None,
        *,
        tokenizer: Tokenizer | None = None,
        objective: Objective | None = None,
        origin: Mapping[str, Any] | None = None,
        train_step: Callable[..., Any] | None = None,
    ) -> None:
        self.model = model
        self.config = TrainConfig() if config is None else config
        _check_kinds(model, self.config)
        self.train_data, self.val_data = resolve_data(data)
        self.tokenizer = tokenizer or self.train_data.tokenizer
        self.out_dir = Path(self.config.out_dir)
        self.state = RunState()
        self.objective: Any = objective or make_objective(
            self.config, model.config, self.tokenizer, self.train_data
        )
        self._origin = dict(origin or {})
        self._check_fit()
        self._adapt_model()
        plan.refuse_impossible(model.config, self._planned(longest=True), self._device)
        self._schedule = self.config.make_schedule()
        self._frame = block_frame(self.objective, self.tokenizer)
        self._sampler = make_sampler(self.train_data, self.config, self.objective, self._frame)
        self._step = self._make_train_step(train_step)
        self._saved_step: int | None = None
        self._resumed = False

    # ------------------------------------------------------------------ what users call

    def fit(self) -> FitResult:
        """Train to the end: the last step, early stopping, or a signal.

        SIGINT (Ctrl-C) and SIGTERM let the running step end, save, and return; a second one of the
        same kind kills the process at once.

        Raises:
            CheckpointError: the output directory already holds a run, or a checkpoint could not be
                written (the one before it stays).
            LlmcoreError: too many steps in a row were skipped.
        """
        if self.config.resume and not self._resumed:
            self.resume()
        self._prepare_out_dir()
        self._log = RunLog(
            self.out_dir,
            total=self.config.steps,
            done=self.state.step,
            # Killed before its first checkpoint, a run begins again, and so do its metrics.
            resumed=self._saved_step is not None,
            tensorboard=self.config.tensorboard,
        )
        try:
            planned = self._announce()
            self._clock = Clock()
            with Interrupts() as stop:
                reason = self._run(stop)
            self._draw_curve()
            self._tell_memory(planned)
        finally:
            self._log.close()
        result = self._result(reason, stop.signal if reason == "interrupted" else 0)
        print(result.describe(self.out_dir), flush=True)
        return result

    def evaluate(self) -> float:
        """Mean loss over the same fixed batches of the validation data every time.

        Raises:
            ConfigError: there are no validation data.
        """
        return evaluate(self.model, self._validation_batches()).loss

    def resume(self, path: str | Path | None = None) -> int:
        """Take up the run whose checkpoint lies at `path`; ``out_dir/last`` if not given.

        Where the output directory has no checkpoint yet (the run was killed before its first), the
        run starts from its beginning; a `path` that was given must exist.

        Returns:
            The step at which it continues.

        Raises:
            CheckpointError: the checkpoint is damaged, of another architecture, or was made with
                settings that this run must not change.
        """
        directory = Path(path) if path is not None else self.out_dir / "last"
        finish_saves(self.out_dir)
        if path is None and not checkpoint.exists(directory):
            print(f"no checkpoint in {self.out_dir} yet; starting from step 0", flush=True)
            self._resumed = True
            return 0
        self._load(directory)
        self._resumed = True
        self._saved_step = self.state.step
        return self.state.step

    def sample_prompt(self) -> str | None:
        """What a sample of the model's text may go on from: a prompt of the data, or "" for text.

        None where the model has not learned to go on from one, or has no tokenizer.
        """
        if self.tokenizer is None or not writes_text(self.objective):
            return None
        data = self.val_data or self.train_data
        if not isinstance(data, ExampleDataset):
            return ""
        (prompt, *_), *_ = data.take(np.zeros(1, np.int64)).columns
        return self.tokenizer.decode(prompt)

    # ------------------------------------------------------------------ the loop

    def _run(self, stop: Interrupts) -> str:
        config, state = self.config, self.state
        while True:
            if self._evaluation_due() and not stop.signal:
                self._evaluate_and_keep(stop)
            reason = self._reason_to_end(stop)
            at_interval = state.step > 0 and state.step % (config.save_interval or 1) == 0
            if (reason or at_interval) and state.step != self._saved_step:
                self._save_last()
            if reason:
                return reason
            self._one_step()

    def _reason_to_end(self, stop: Interrupts) -> str:
        if self.state.step >= self.config.steps and not self._evaluation_due():
            return "finished"
        if stop.signal:
            return "interrupted"
        patience = self.config.early_stopping
        if patience and self.state.worse_evaluations >= patience:
            return "early stopping"
        return ""

    def _one_step(self) -> None:
        config, state = self.config, self.state
        started = time.perf_counter()
        samples = [self._sampler.next_sample() for _ in range(config.accumulation)]
        batches = [sample.batch(self.objective) for sample in samples]
        lr = self._schedule(state.step + 1)
        max_loss, max_norm = state.limits(config.skip_outliers)
        result: StepResult = self._step.step(
            batches if len(batches) > 1 else batches[0], lr, max_loss=max_loss, max_norm=max_norm
        )
        state.record_step(result)
        self._clock.add(time.perf_counter() - started, sum(batch.tokens for batch in batches))
        if result.skipped:
            self._tell_skip(result, max_loss, max_norm)
        self._report(result, lr)

    def _tell_skip(self, result: StepResult, max_loss: float, max_norm: float) -> None:
        state = self.state
        what = f"loss {result.loss:.4g}, gradient norm {result.grad_norm:.4g}"
        if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
            what += f" (limits {max_loss:.4g} and {max_norm:.4g})"
        elif hasattr(self._step, "first_not_finite"):
            what += f", first not finite: {self._step.first_not_finite() or 'their sum alone'}"
        self._log.write(
            state.step, {"skipped": 1, "bad_loss": result.loss, "bad_norm": result.grad_norm}
        )
        self._log.say(f"step {state.step} skipped: {what}; {state.skipped} skipped so far")
        if state.skipped_in_a_row >= self.config.max_skips:
            kept = f"step {self._saved_step}" if self._saved_step is not None else "none yet"
            raise LlmcoreError(
                f"{state.skipped_in_a_row} steps in a row were skipped, the last with {what};"
                f" lower lr (now {self.config.lr:g}) or look at the data. The last good checkpoint"
                f" is kept ({kept}, {self.out_dir / 'last'})"
            )

    def _report(self, result: StepResult, lr: float) -> None:
        """Write the metrics of an interval when it ends, and move the progress line."""
        state, clock = self.state, self._clock
        line_ends = state.step % self.config.log_interval == 0 or state.step == self.config.steps
        share = clock.speed * self._flops_per_token / self._peak_flops
        if line_ends:
            values = {
                "loss": state.end_interval(),
                "lr": lr,
                "grad_norm": result.grad_norm,
                "tokens_per_second": round(clock.speed, 1),
                "peak_share": round(share, 4),
            }
            self._log.write(state.step, values)
        if self._log.wants_update(last=state.step == self.config.steps):
            parts = [
                f"loss {result.loss:.4f}",
                f"val {state.val_loss:.4f}" if state.val_loss is not None else "",
                f"{format_count(clock.speed)} tok/s",
                f"ETA {format_duration(self._time_left())}",
                f"{share:.0%} of peak",
                f"lr {lr:.2e}",
                f"norm {result.grad_norm:.2f}",
            ]
            self._log.update(state.step, [part for part in parts if part])

    def _time_left(self) -> float:
        steps_left = self.config.steps - self.state.step
        evaluations_left = steps_left // self.config.eval_interval + 1
        return steps_left * self._clock.step_seconds + (
            evaluations_left * self._clock.evaluation_seconds
        )

    # ------------------------------------------------------------------ evaluation

    def _evaluation_due(self) -> bool:
        step = self.state.step
        due = step % self.config.eval_interval == 0 or step == self.config.steps
        return due and self.val_data is not None and self.state.evaluated_step < step

    def _validation_batches(self) -> Iterator[Batch]:
        if self.val_data is None:
            raise ConfigError("there are no validation data; give the Trainer a pair (train, val)")
        return eval_batches(
            self.val_data,
            self.objective,
            block_size=self.config.block_size,
            batch_size=self.config.batch_size,
            max_batches=self.config.eval_batches,
            frame=self._frame,
        )

    def _evaluate_and_keep(self, stop: Interrupts) -> None:
        started = time.perf_counter()
        batches = itertools.takewhile(lambda _: not stop.signal, self._validation_batches())
        loss = evaluate(self.model, batches).loss
        if stop.signal:
            return  # cut short; the resumed run evaluates at this step
        state = self.state
        self._clock.evaluation_seconds = time.perf_counter() - started
        better = state.record_evaluation(loss)
        self._log.write(state.step, {"val_loss": loss})
        note = ""
        if better:
            self._save("best", None)
            note = "  best so far"
        elif state.best_loss is not None:
            note = f"  best {state.best_loss:.4f} at step {state.best_step}"
        self._log.say(f"step {state.step} validation loss {loss:.4f}{note}")
        self._draw_curve()

    def _draw_curve(self) -> None:
        save_loss_curve(self._log.records, self.out_dir / "loss.svg", title=self._title())

    def _title(self) -> str:
        return f"{format_count(self.model.config.num_parameters())} parameters, {self.out_dir.name}"

    # ------------------------------------------------------------------ checkpoints

    def _save(self, name: str, state: checkpoint.TrainState | None) -> None:
        weights = {name: tensor.numpy() for name, tensor in self.model.parameters().items()}
        checkpoint.save(
            self.out_dir / name,
            config=self.model.config,
            parameters=weights,
            state=state,
            tokenizer=self.tokenizer,
        )

    def _save_last(self) -> None:
        optimizer = self._step.state_dict()
        moments = {name: v for name, v in optimizer.items() if isinstance(v, np.ndarray)}
        # Where a run lives and how it was called say nothing of its state, whose bytes are the same
        # wherever it went on.
        called = ("out_dir", "resume", "overwrite")
        settings = {name: v for name, v in self.config.to_dict().items() if name not in called}
        state = checkpoint.TrainState(
            step=self.state.step,
            moments=moments,
            optimizer={name: v for name, v in optimizer.items() if name not in moments},
            data=self._sampler.state_dict(),
            best_metric=self.state.best_loss,
            history={
                "run": self.state.to_dict(),
                "settings": settings,
                "objective": describe_objective(self.objective),
            },
        )
        self._save("last", state)
        self._saved_step = self.state.step

    def _load(self, directory: Path) -> None:
        saved = checkpoint.load(directory)
        if saved.state is None:
            raise CheckpointError(
                f"{directory} holds weights only, no training state; resume from last/ of a run"
            )
        if saved.config != self.model.config:
            changed = _differences(saved.config.to_dict(), self.model.config.to_dict())
            raise CheckpointError(f"{directory} is of another architecture: {changed}")
        # The first release had no objectives to name.
        settings = {"objective": self.config.objective, **saved.state.history["settings"]}
        before = TrainConfig.from_dict(settings)
        warn, refuse = resume_changes(before, self.config)
        if refuse:
            raise ConfigError(
                f"cannot resume {directory} with other {', '.join(refuse)}: the data would not"
                " continue where they stopped; use the old values or start a run of its own"
            )
        self._refuse_other_objective(directory, saved.state.history)
        if warn:
            print(
                f"resuming with {', '.join(warn)}: from here on the run differs from one that was"
                " never interrupted",
                flush=True,
            )
        checkpoint.copy_parameters(saved.parameters, self.model.parameters())
        self._step.load_state_dict({**saved.state.optimizer, **saved.state.moments})
        self._sampler.load_state_dict(dict(saved.state.data))
        self.state = RunState.from_dict(saved.state.history["run"])

    def _refuse_other_objective(self, directory: Path, history: Mapping[str, Any]) -> None:
        now = describe_objective(self.objective)
        before = history.get("objective", now)  # the first release had one only, and did not say
        if before != now:
            raise ConfigError(
                f"cannot resume {directory} with another objective"
                f" ({_differences(before, now) or 'fewer settings'}); use the old one, or start a"
                " run of its own"
            )

    # ------------------------------------------------------------------ before and after

    def _adapt_model(self) -> None:
        """Freeze parameters and add adapters as the settings say."""
        config = self.config
        model: Any = self.model  # more is asked of it than of one that is trained whole
        if config.lora_rank:
            wanted = LoraConfig(
                rank=config.lora_rank,
                alpha=config.lora_alpha,  # type: ignore[arg-type]  # None: computed there
                dropout=config.lora_dropout,
                targets=config.lora_targets,
            )
            if model.config.lora is None:
                model.add_lora(wanted)
            elif dataclasses.asdict(model.config.lora) != dataclasses.asdict(wanted):
                raise ConfigError(
                    f"the model has other adapters ({model.config.lora}) than the settings ask for"
                    f" ({wanted})"
                )
        if config.freeze:
            model.freeze(config.freeze)

    def _planned(self, *, longest: bool) -> TrainConfig:
        """The settings with the length of a sequence, the mean or the longest, as block_size."""
        lengths = sequence_lengths(self.train_data, self.config, self.model.config)
        return self.config.replace(block_size=lengths[longest])

    def _make_train_step(self, factory: Callable[..., Any] | None) -> Any:
        config = self.config
        if config.threads:
            from llmcore import set_num_threads

            set_num_threads(config.threads)
        if config.recompute:
            self.model.recompute = True
        return (factory or _core_train_step())(
            self.model,
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm or None,
            dropout_seed=config.seed,
            dtype=config.dtype,
        )

    def _check_fit(self) -> None:
        """Refuse what does not fit together, before anything is computed."""
        model, config = self.model.config, self.config
        check_objective(self.objective, model, self.train_data)
        if config.dropout is not None:
            wanted = dropout_fields(config.dropout)
            if any(getattr(model, name) != value for name, value in wanted.items()):
                raise ConfigError(
                    f"dropout {config.dropout:g} is not that of the model, which is part of its"
                    " architecture; build it with config.replace(**dropout_fields(...))"
                )
        for data in (self.train_data, self.val_data):
            if data is not None:
                check_data(data, config, model)
        if self.val_data is None:
            return
        check_objective(self.objective, model, self.val_data)
        if isinstance(self.val_data, TokenDataset) and len(self.val_data) < 2:
            raise DataError(
                f"{self.val_data.name} has {len(self.val_data)} tokens; validation needs at least 2"
            )

    def _prepare_out_dir(self) -> None:
        if not self._resumed:
            refuse_second_run(self.config)
            for name in ("last", "best"):
                shutil.rmtree(self.out_dir / name, ignore_errors=True)
        make_directory(self.out_dir)
        settings = {
            **self._origin,
            "train": self.config.to_dict(),
            "objective": describe_objective(self.objective),
        }
        write_atomically(
            self.out_dir / "run.json", (json.dumps(settings, indent=2) + "\n").encode()
        )

    def _announce(self) -> plan.Plan:
        """Say, before the first step, what is about to happen and what it will cost."""
        config, model = self.config, self.model.config
        usual, longest = self._planned(longest=False), self._planned(longest=True)
        self._peak_flops = plan.measure_peak_flops(self._device)
        make_plan = partial(plan.make_plan, peak_flops=self._peak_flops, device=self._device)
        cost, most = make_plan(model, usual), make_plan(model, longest)
        cost = dataclasses.replace(cost, activation_bytes=most.activation_bytes)
        # A position of each stack, where the count below is of both stacks' tokens.
        stacks = 2 if model.kind == "encoder-decoder" else 1
        self._flops_per_token = model.flops_per_token(usual.block_size) / stacks
        say = self._log.say
        validation = f", {len(self.val_data):,} for validation" if self.val_data else ""
        say(f"data       {describe_size(self.train_data)} to train on{validation}")
        say(f"objective  {describe_objective(self.objective)['name']}")
        for line in dataclasses.replace(
            cost, steps=max(0, config.steps - self.state.step)
        ).describe():
            say(line)
        say(f"results    {self.out_dir}")
        if self._resumed and self.state.step:
            say(f"resuming   at step {self.state.step} of {config.steps}")
        for shortage in plan.find_shortages(
            model, longest, self.out_dir, loaded=True, device=self._device
        ):
            say(f"warning    {shortage}")
        return cost

    @property
    def _device(self) -> str:
        return getattr(self.model, "device", "cpu")

    def _tell_memory(self, planned: plan.Plan) -> None:
        """Say what was planned beside what was used, where the model can tell."""
        if hasattr(self.model, "trainable_parameters"):
            own, used = planned.own_bytes, plan.used_bytes(self.model)
            self._log.say(f"memory     {format_bytes(own)} planned, {format_bytes(used)} used")

    def _result(self, reason: str, signal: int) -> FitResult:
        return FitResult(
            step=self.state.step,
            loss=self.state.loss,
            val_loss=self.state.val_loss,
            best_loss=self.state.best_loss,
            best_step=self.state.best_step,
            skipped=self.state.skipped,
            seconds=time.perf_counter() - self._clock.started,
            reason=reason,
            signal=signal,
        )


def _check_kinds(model: Any, config: Any) -> None:
    if not isinstance(getattr(model, "config", None), ModelConfig):
        raise DTypeError(f"Trainer: model must be a Transformer, got a {type(model).__name__}")
    if not isinstance(config, TrainConfig):
        raise DTypeError(f"Trainer: config must be a TrainConfig, got a {type(config).__name__}")


def _core_train_step() -> Callable[..., Any]:
    from llmcore.train_step import (
        TrainStep,  # loads the compiled core, which not every caller needs
    )

    return TrainStep


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    changed = [name for name in new if old.get(name) != new[name]]
    return ", ".join(f"{name} was {old.get(name)} and is {new[name]}" for name in changed)
