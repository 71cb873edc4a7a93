"""Every setting of a training run, in three small frozen dataclasses: model, data, train."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmcore.config import LORA_TARGETS, ModelConfig
from llmcore.errors import ConfigError, did_you_mean
from llmcore.train_step import TRAINING_DTYPES
from llmcore.training.schedule import Schedule, ScheduleKind
from llmcore.training.settings import (
    build_settings,
    find_problems,
    setting,
    unknown_settings,
)
from llmcore.validation import told_at_once

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

SCHEDULES: tuple[str, ...] = typing.get_args(ScheduleKind)


@told_at_once(build_settings)
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train: the length, the optimizer, the evaluation, and where the results go.

    The defaults are the CPU preset of nanoGPT's README (Karpathy 2022): 2000 steps of 12 blocks
    of 64 tokens. ``None`` means "derived from the others" and is replaced on construction.

    Raises:
        ConfigError: lists every setting that is out of range, of the wrong type or unknown.

    Example:
        >>> from llmcore.training.train_config import TrainConfig
        >>> config = TrainConfig(steps=500, lr=3e-4)
        >>> config.warmup_steps, config.min_lr
        (50, 3e-05)
        >>> TrainConfig.from_dict({"step": 500})
        Traceback (most recent call last):
        ...
        llmcore.errors.ConfigError: TrainConfig: unknown setting 'step', did you mean 'steps'?
    """

    objective: str | None = setting(
        None, "causal, reversed, prefix, masked, span-corruption, seq2seq, completion,"
        " classification, or a mixture such as causal=2,masked=1; what suits model and data if not"
        " given.", resume="refuse",
    )  # fmt: skip
    label_smoothing: float = setting(
        0.0, "Share of each target's probability spread over the vocabulary.", minimum=0.0,
        maximum=0.999, resume="refuse",
    )  # fmt: skip
    mask_probability: float = setting(
        0.15, "Share of the tokens hidden by masked and span-corruption.", minimum=0.001,
        maximum=0.999, resume="refuse",
    )  # fmt: skip
    whole_words: bool = setting(
        False, "masked: hide all tokens of a word, or none.", resume="refuse"
    )

    steps: int = setting(2000, "Updates to make.", minimum=1, resume="warn")
    batch_size: int = setting(
        12, "Blocks, or examples, in one micro-batch.", minimum=1, resume="refuse"
    )
    block_size: int = setting(64, "Tokens in one block of text.", minimum=1, resume="refuse")
    accumulation: int = setting(1, "Micro-batches in one update.", minimum=1, resume="warn")
    sampling: str = setting(
        "random", "Blocks from random places, as nanoGPT draws them, or epoch: each once, shuffled,"
        " as examples always are.",
        choices=("random", "epoch"), resume="refuse",
    )  # fmt: skip

    lr: float = setting(2e-3, "Peak learning rate.", minimum=0.0, resume="warn")
    min_lr: float | None = setting(
        None, "Learning rate at the end; a tenth of the peak if not given.", minimum=0.0,
        resume="warn",
    )  # fmt: skip
    schedule: str = setting(
        "cosine", "Shape of the learning rate: " + ", ".join(SCHEDULES) + ".", choices=SCHEDULES,
        resume="warn",
    )  # fmt: skip
    warmup_steps: int | None = setting(
        None, "Linear warmup; 100 if not given, a tenth of a shorter run.", minimum=0,
        resume="warn",
    )  # fmt: skip
    decay_steps: int | None = setting(
        None, "Length of the final decay of wsd; a tenth of the run if not given.", minimum=0,
        resume="warn",
    )  # fmt: skip
    betas: tuple[float, float] = setting(
        (0.9, 0.99), "Decay of AdamW's two moments.", resume="warn"
    )
    eps: float = setting(1e-8, "AdamW's epsilon.", minimum=0.0, resume="warn")
    weight_decay: float = setting(
        0.1, "Decoupled weight decay, on matrices only.", minimum=0.0, resume="warn"
    )
    max_grad_norm: float = setting(
        1.0, "Clip the gradient to this global norm; 0 does not clip.", minimum=0.0, resume="warn"
    )
    dtype: str = setting(
        "float32", "Of matrix products: float32, or bfloat16 with float32 sums, weights, moments.",
        choices=TRAINING_DTYPES, resume="warn",
    )  # fmt: skip
    dropout: float | None = setting(
        None, "Dropout of embeddings, attention and residuals; the model's own if not given.",
        minimum=0.0, maximum=0.999, resume="refuse",
    )  # fmt: skip
    seed: int = setting(
        1337, "Seed of weights, data order and dropout.", minimum=0, maximum=2**64 - 1,
        resume="refuse",
    )  # fmt: skip

    freeze: tuple[str, ...] = setting(
        (), "Parameters that are not trained, by name, such as embed.*; repeatable.",
        resume="warn",
    )  # fmt: skip
    lora_rank: int = setting(
        0, "Train low-rank adapters of this rank instead of the weights; 0 trains the weights.",
        minimum=0, resume="refuse",
    )  # fmt: skip
    lora_alpha: float | None = setting(
        None, "Scale of the adapters, before it is divided by the rank; the rank if not given.",
        minimum=0.0, resume="refuse",
    )  # fmt: skip
    lora_dropout: float = setting(
        0.0, "Dropout of the adapters' input.", minimum=0.0, maximum=0.999, resume="refuse"
    )
    lora_targets: tuple[str, ...] = setting(
        ("q", "v"), f"Layers with adapters: {', '.join(LORA_TARGETS)}; repeatable.",
        choices=LORA_TARGETS, resume="refuse",
    )  # fmt: skip

    eval_interval: int = setting(250, "Steps between two evaluations.", minimum=1, resume="warn")
    eval_batches: int = setting(
        20, "Batches in one evaluation; 0 takes all the validation data.", minimum=0, resume="warn"
    )
    early_stopping: int = setting(
        0, "Stop after this many evaluations without a better loss; 0 never.", minimum=0,
        resume="warn",
    )  # fmt: skip
    skip_outliers: float = setting(
        0.0, "Skip a step whose loss or norm lies this many standard deviations above the recent"
        " ones; 0 skips only those that are not finite.", minimum=0.0, resume="warn",
    )  # fmt: skip
    max_skips: int = setting(
        10, "Give up after this many skipped steps in a row.", minimum=1, resume="free"
    )

    log_interval: int = setting(10, "Steps between two lines of metrics.", minimum=1)
    save_interval: int | None = setting(
        None, "Steps between two checkpoints; those of the evaluations if not given.", minimum=1
    )
    out_dir: str = setting(
        "out/shakespeare-char",
        "Directory for the results; out/ and the name of the data if not given.",
    )
    resume: bool = setting(False, "Continue the run in the output directory, bit for bit.")
    overwrite: bool = setting(False, "Start over where the output directory already has a run.")
    recompute: bool = setting(
        False, "Keep only each block's input and compute its inside twice: less memory, more time."
    )
    threads: int = setting(
        0, "Threads to use; 0 takes all this process may use.", minimum=0, maximum=4096
    )
    tensorboard: bool = setting(False, "Also write TensorBoard events (needs that package).")
    sample_tokens: int = setting(
        500, "Tokens of the sample printed at the end; 0 prints none.", minimum=0
    )

    def __post_init__(self) -> None:
        problems = find_problems(type(self), self.to_dict())
        if not problems:
            for name in ("betas", "freeze", "lora_targets"):  # lists, in JSON and TOML
                object.__setattr__(self, name, tuple(getattr(self, name)))
            if self.min_lr is None:
                # Rounded, so that a tenth of 3e-4 reads 3e-05 in every file it is written to.
                object.__setattr__(self, "min_lr", float(f"{self.lr / 10:.12g}"))
            if self.warmup_steps is None:
                object.__setattr__(self, "warmup_steps", min(100, self.steps // 10))
            if self.save_interval is None:
                object.__setattr__(self, "save_interval", self.eval_interval)
            problems = self._contradictions()
        if problems:
            raise ConfigError.listing("TrainConfig", problems)

    def _contradictions(self) -> list[str]:
        """What is wrong between settings that are each in range."""
        found: list[str] = []
        try:
            self.make_schedule()
        except ConfigError as error:
            found += error.problems
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            found.append(f"betas must both lie in [0, 1), got {self.betas}")
        try:
            # Here rather than above, since it brings in all objectives.
            from llmcore.training.tasks import parse_objective

            if self.objective is not None:
                parse_objective(self.objective)
        except ConfigError as error:
            found.append(str(error))
        if self.resume and self.overwrite:
            found.append("resume and overwrite exclude each other: continue the run or start over")
        return found

    def make_schedule(self) -> Schedule:
        """The learning rate of every step, as `llmcore.training.schedule.Schedule` computes it."""
        assert self.min_lr is not None  # replaced on construction, as is warmup_steps
        assert self.warmup_steps is not None
        return Schedule(
            kind=typing.cast(ScheduleKind, self.schedule),
            lr=self.lr,
            min_lr=self.min_lr,
            warmup_steps=self.warmup_steps,
            total_steps=self.steps,
            decay_steps=self.decay_steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TrainConfig:
        """Build from a mapping of settings; unknown names are errors that suggest the nearest."""
        return build_settings(cls, settings)

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """Read the ``[train]`` table of a TOML file."""
        return cls.from_dict(read_toml(path).get("train", {}))

    def replace(self, **settings: Any) -> TrainConfig:
        """A copy with other values, checked anew."""
        return self.from_dict({**self.to_dict(), **settings})


@told_at_once(build_settings)
@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on: text, examples, a directory of shards, or (by default) Shakespeare.

    Examples (`llmcore.data.example_files`) are read for objectives made from them: two parallel
    files, or one in TSV or JSONL.

    Example:
        >>> from llmcore.training.train_config import DataConfig
        >>> DataConfig(path="notes.txt", tokenizer="bpe", vocab_size=4096).validation_fraction
        0.1
    """

    path: str | None = setting(
        None, "Text, TSV or JSONL file or directory of shards to train on; Shakespeare, shipped, if"
        " not given.",
        resume="refuse",
        option="data",
    )  # fmt: skip
    target: str | None = setting(
        None, "File whose lines are the targets of the lines of the data.", resume="refuse"
    )
    fields: str | None = setting(
        None, "Fields of JSONL, or columns named in the first line of TSV, in order, such as de,en"
        " or review,stars; the usual ones if not given.", resume="refuse",
    )  # fmt: skip
    max_length: int | None = setting(
        None, "Tokens of a text of an example, at most; as many as the model takes if not given."
        " Longer ones are cut.", minimum=2, resume="refuse",
    )  # fmt: skip
    validation: str | None = setting(
        None, "File or shards to evaluate on; a share of the data if not given.",
        resume="refuse",
    )  # fmt: skip
    validation_target: str | None = setting(
        None, "File whose lines are the targets of the lines of the validation data.",
        resume="refuse",
    )  # fmt: skip
    validation_fraction: float = setting(
        0.1, "Share of the data kept for evaluation: the end of text, examples from everywhere.",
        minimum=0.0, maximum=0.9, resume="refuse",
    )  # fmt: skip
    tokenizer: str | None = setting(
        None, "Tokenizer for text: char, bpe, wordpiece, unigram (trained on it), or a path.",
        resume="refuse",
    )  # fmt: skip
    vocab_size: int | None = setting(
        None, "Size of the vocabulary to train for bpe, wordpiece and unigram.", minimum=1,
        resume="refuse",
    )  # fmt: skip

    def __post_init__(self) -> None:
        problems = find_problems(type(self), self.to_dict())
        if problems:
            raise ConfigError.listing("DataConfig", problems)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name, ready for JSON; the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> DataConfig:
        """Build from a mapping of settings; unknown names are errors that suggest the nearest."""
        return build_settings(cls, settings)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run: which model, which data, how to train. One TOML file, or one command line.

    ``model`` holds "name" (a preset, or the path of a checkpoint to fine-tune) and any field of
    `llmcore.ModelConfig` to override; it is checked where the model is built, beside the
    vocabulary.

    Example:
        >>> from llmcore.training.train_config import RunConfig
        >>> run = RunConfig.from_dict({"model": {"name": "gpt2"}, "train": {"steps": 10}})
        >>> run.model["name"], run.train.steps
        ('gpt2', 10)
    """

    model: Mapping[str, Any] = field(default_factory=lambda: {"name": "gpt-nano"})
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def to_dict(self) -> dict[str, Any]:
        """The three sections, ready for JSON; the inverse of `from_dict`."""
        return {
            "model": dict(self.model),
            "data": self.data.to_dict(),
            "train": self.train.to_dict(),
        }

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> RunConfig:
        """Build from the sections "model", "data" and "train", each optional."""
        names = ("model", "data", "train")
        problems = [
            f"unknown section [{name}]{did_you_mean(name, names)}"
            for name in sections
            if name not in names
        ]
        tables: dict[str, Mapping[str, Any]] = {}
        for name in names:
            table = sections.get(name, {})
            if isinstance(table, Mapping):
                tables[name] = table
            else:
                problems.append(f"[{name}] must be a table of settings, got {table!r}")
        built: dict[str, Any] = {}
        for name, section in (("data", DataConfig), ("train", TrainConfig)):
            try:
                built[name] = build_settings(section, tables.get(name, {}))
            except ConfigError as error:
                problems += [f"[{name}] {problem}" for problem in error.problems]
        fields = ("name", *(item.name for item in dataclasses.fields(ModelConfig)))
        found = unknown_settings(fields, tables.get("model", {}))
        problems += [f"[model] {problem}" for problem in found]
        if problems:
            raise ConfigError.listing("RunConfig", problems)
        path = built["data"].path
        if path is not None and "out_dir" not in tables["train"]:
            built["train"] = built["train"].replace(out_dir=f"out/{Path(path).resolve().stem}")
        return cls(model={"name": "gpt-nano", **tables["model"]}, **built)

    @classmethod
    def from_toml(cls, path: str | Path) -> RunConfig:
        """Read a TOML file with the tables ``[model]``, ``[data]`` and ``[train]``."""
        return cls.from_dict(read_toml(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file into nested dictionaries.

    Raises:
        ConfigError: the file is missing, a directory, not text, or not TOML; says which.
    """
    try:
        settings: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory; expected a TOML file") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; expected TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    return settings


def merge(*sections: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings from left to right; the rightmost wins.

    Example:
        >>> from llmcore.training.train_config import merge
        >>> merge({"train": {"lr": 1.0, "steps": 5}}, {"train": {"lr": 2.0}})
        {'train': {'lr': 2.0, 'steps': 5}}
    """
    merged: dict[str, Any] = {}
    for layer in sections:
        for key, value in layer.items():
            inside = merged.get(key)
            if isinstance(inside, Mapping) and isinstance(value, Mapping):
                value = merge(inside, value)
            merged[key] = value
    return merged


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``section.key=value`` words of a command line into nested settings.

    Values are read as TOML (``8``, ``1e-3``, ``true``, ``[1, 2]``); what is not TOML is a string.

    Example:
        >>> from llmcore.training.train_config import parse_overrides
        >>> parse_overrides(["model.num_heads=8", "model.norm=rms"])
        {'model': {'num_heads': 8, 'norm': 'rms'}}
    """
    settings: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ConfigError(
                f'--set takes SECTION.NAME=VALUE, for example model.num_heads=8, got "{assignment}"'
            )
        try:
            value = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        settings.setdefault(section, {})[key] = value
    return settings


def dropout_fields(probability: float) -> dict[str, float]:
    """The fields of `ModelConfig` that one dropout probability stands for, as in GPT-2.

    Example:
        >>> from llmcore.training.train_config import dropout_fields
        >>> dropout_fields(0.1)["residual_dropout"]
        0.1
    """
    names = ("embedding_dropout", "attention_dropout", "residual_dropout")
    return dict.fromkeys(names, probability)


def resume_changes(
    old: TrainConfig | DataConfig, new: TrainConfig | DataConfig
) -> tuple[list[str], list[str]]:
    """Compare the settings of a saved run with those of the run that continues it.

    Returns:
        (warn, refuse): the changes after which the run no longer equals an uninterrupted one,
        and those with which it cannot go on; each as "name from old to new".
    """
    warn: list[str] = []
    refuse: list[str] = []
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if before != after:
            change = f"{item.name} from {before} to {after}"
            if item.metadata["resume"] == "warn":
                warn.append(change)
            elif item.metadata["resume"] == "refuse":
                refuse.append(change)
    return warn, refuse
