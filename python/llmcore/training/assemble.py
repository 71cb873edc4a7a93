"""From the settings of a run to the things it needs: data, tokenizer, model, trainer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmcore import checkpoint, hf
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError, ConfigError, did_you_mean
from llmcore.presets import PRESETS
from llmcore.tokenizer import Tokenizer
from llmcore.training.plan import refuse_impossible
from llmcore.training.run_data import kind_of_source, load_data
from llmcore.training.run_directory import find_checkpoint, is_directory, refuse_second_run
from llmcore.training.tasks import (
    check_models,
    fit_config,
    natural_objective,
    parse_objective,
)
from llmcore.training.train_config import (
    DataConfig,
    RunConfig,
    TrainConfig,
    dropout_fields,
    resume_changes,
)
from llmcore.training.trainer import Trainer

if TYPE_CHECKING:
    from llmcore.model import Transformer


def build_trainer(run: RunConfig, *, device: str = "cpu") -> Trainer:
    """Make everything a run names, ready for `Trainer.fit`.

    The settings that end up in ``run.json`` hold the architecture and the objective in full, so
    that a resumed run needs nothing but its own directory and its data.

    Raises:
        ConfigError, DataError, CheckpointError: the settings, the data or a model to start from are
            not as they should be.
    """
    from llmcore.model import Transformer, check_computation

    refuse_second_run(run.train)
    check_computation(device, "float32")
    source = _with_absolute_paths(run.data)
    if run.train.resume:
        _refuse_other_data(source, Path(run.train.out_dir))
    name = str(run.model["name"])
    start = _where_to_start(name, run.train)
    longest = run.data.max_length or 0
    planned = build_model_config(run.model, tokenizer=None, train=run.train, longest=longest)
    train, names = _choose_objective(run, planned)
    data = load_data(run.data, train, names, planned, model_directory=start)
    # A model of its own has what it began with; a new one is fitted to the data.
    overrides = {key: value for key, value in run.model.items() if key != "name"}
    config = build_model_config(run.model, tokenizer=data.tokenizer, train=train, longest=longest)
    if not is_whole(overrides):
        fitted = fit_config(names, config, data.tokenizer, data.train, fresh=not is_directory(name))
        config = config.replace(**{**fitted, **overrides})
    refuse_impossible(config, train, device)
    model = Transformer(config, device=device, seed=train.seed)
    if start is not None and not train.resume:
        _copy_weights(start, model)
    model.tokenizer = data.tokenizer
    origin = {"model": {"name": name, **config.to_dict()}, "data": source.to_dict()}
    return Trainer(model, (data.train, data.val), train, tokenizer=data.tokenizer, origin=origin)


def _choose_objective(run: RunConfig, model: ModelConfig) -> tuple[TrainConfig, dict[str, float]]:
    """Settle on an objective, and check that the model suits it before data are read."""
    train = run.train
    out_dir = Path(train.out_dir)
    if train.resume and checkpoint.exists(out_dir / "last"):
        before = stored_run(out_dir).get("train", {}).get("objective") or "causal"
        if train.objective not in (None, before):
            raise ConfigError(
                f"cannot resume {out_dir} with another objective ({before} before, now"
                f" {train.objective}); leave it out, or start a run of its own"
            )
        train = train.replace(objective=before)
    if train.objective is None:
        train = train.replace(
            objective=natural_objective(kind_of_source(run.data, train), model.kind)
        )
    names = parse_objective(str(train.objective))
    check_models(names, model)
    return train, names


def _copy_weights(start: Path, model: Transformer) -> None:
    """Copy the weights of the checkpoint that a run starts from into its model.

    A classifier that the checkpoint lacks begins anew, and of a model that is to classify no head
    over the vocabulary is taken over.
    """
    classifies = model.config.num_labels > 0
    saved = checkpoint.load(
        start,
        config=model.config,
        verify="later",
        fresh=("classifier.*", "pooler.*") if classifies else (),
        drop=("head.*",) if classifies else (),
    )
    checkpoint.copy_parameters(saved.parameters, model.parameters(), saved.unchecked)


def stored_run(out_dir: Path) -> dict[str, Any]:
    """The settings of the run in a directory, as ``run.json`` has them; empty without a run.

    Raises:
        CheckpointError: the file is damaged.
    """
    file = out_dir / "run.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise CheckpointError(
            f"{file} is damaged; delete it and give the settings of the run again"
        ) from None
    return dict(settings)


def run_to_resume(out_dir: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The stored settings of the run that `settings` asks to resume; empty if none was begun.

    Args:
        out_dir: the run's directory.
        settings: the sections "model", "data" and "train" as the user gave them.

    Raises:
        CheckpointError: the stored settings are damaged; or there are none, and `settings` do not
            say either what run it would be.
        ConfigError: the user asks for another model than that of the run.
    """
    before = stored_run(out_dir)
    if not before:
        stated = {*settings.get("model", {}), *settings.get("data", {}), *settings["train"]}
        if stated == {"out_dir", "resume"}:
            raise CheckpointError(
                f"there is no run in {out_dir} to resume; leave --resume out to start one"
            )
        return {}
    old = before.get("model", {})
    changes = [
        f"{name} from {old[name]} to {value}"
        for name, value in settings.get("model", {}).items()
        if name in old and not isinstance(value, Mapping) and value != old[name]
    ]
    if changes:
        raise ConfigError(
            f"cannot resume {out_dir} with another model ({', '.join(changes)}); leave these"
            " settings out, or start a run of its own"
        )
    return {name: before[name] for name in ("model", "data", "train") if name in before}


def _where_to_start(name: str, train: TrainConfig) -> Path | None:
    """The checkpoint whose tokenizer, and unless resumed weights, the run takes; None for none."""
    last = Path(train.out_dir) / "last"
    if train.resume and checkpoint.exists(last):
        return last  # the model it once started from may be gone
    return find_checkpoint(name) if is_directory(name) else None


def _refuse_other_data(source: DataConfig, out_dir: Path) -> None:
    before = DataConfig.from_dict(stored_run(out_dir).get("data", source.to_dict()))
    changes = resume_changes(before, source)[1]
    if changes:
        raise ConfigError(
            f"cannot resume {out_dir} on other data ({', '.join(changes)}); give it the data it"
            " began with, or start a run of its own"
        )


def build_model_config(
    settings: Mapping[str, Any],
    *,
    tokenizer: Tokenizer | None,
    train: TrainConfig,
    longest: int = 0,
) -> ModelConfig:
    """The architecture of a run: a preset or checkpoint, fitted to the data, then overridden.

    A preset takes its vocabulary and special ids from the tokenizer and as many positions as a
    block needs; a checkpoint keeps its own. What `settings` says wins over both.

    Args:
        settings: "name" (a preset, or the directory of a checkpoint) and fields of `ModelConfig`.
        tokenizer: that of the data.
        train: block size and dropout.
        longest: tokens of an example, at most.

    Raises:
        ConfigError: unknown names, or values that do not fit together.
    """
    overrides = {key: value for key, value in settings.items() if key != "name"}
    if is_whole(overrides):
        return ModelConfig.from_dict(overrides)
    if train.dropout is not None:
        overrides = {**dropout_fields(train.dropout), **overrides}
    name = str(settings["name"])
    if is_directory(name):
        return hf.load_config(find_checkpoint(name)).replace(**overrides)
    check_model_name(name)
    fitted: dict[str, Any] = {}
    if tokenizer is not None:
        fitted["vocab_size"] = tokenizer.vocab_size
        for special in ("bos_id", "eos_id", "pad_id"):
            fitted[special] = getattr(tokenizer, special)
    positions = ModelConfig.preset(name).max_positions
    fitted["max_positions"] = max(train.block_size, longest, positions)
    return ModelConfig.preset(name, **{**fitted, **overrides})


def is_whole(fields: Mapping[str, Any]) -> bool:
    """Whether every field of an architecture is there, as run.json has: no preset is needed."""
    return fields.keys() >= {item.name for item in dataclasses.fields(ModelConfig)}


def check_model_name(name: str) -> None:
    """Raise unless `name` is a preset or an existing directory."""
    if name not in PRESETS and not is_directory(name):
        hint = did_you_mean(name, PRESETS) or f"; presets: {', '.join(PRESETS)}"
        raise ConfigError(f"model {name!r} is neither a preset nor a directory{hint}")


def _with_absolute_paths(data: DataConfig) -> DataConfig:
    """A copy that means the same from any directory."""
    settings = data.to_dict()
    for name in ("path", "target", "validation", "validation_target"):
        if settings[name] is not None:
            settings[name] = str(Path(settings[name]).absolute())
    return DataConfig.from_dict(settings)
