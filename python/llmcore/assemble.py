"""From the settings of a run to the things it needs: data, tokenizer, model, trainer."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmcore import checkpoint, hf
from llmcore.config import ModelConfig
from llmcore.data import TokenDataset, shakespeare
from llmcore.errors import CheckpointError, ConfigError, DataError, did_you_mean
from llmcore.plan import refuse_impossible
from llmcore.presets import PRESETS
from llmcore.shards import has_index
from llmcore.tokenizer import Tokenizer
from llmcore.tokenizing import tokenize_files
from llmcore.train_config import DataConfig, RunConfig, TrainConfig, dropout_fields, resume_changes
from llmcore.trainer import (
    Trainer,
    refuse_second_run,
    resolve_data,
)

#: Tokenizers that are trained on the data of the run, by name; anything else is a path.
KINDS = ("char", "bpe", "wordpiece", "unigram")


#: Size of a vocabulary that is trained, if none is named: for some megabytes of text.
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class RunData:
    """Token data ready for training, and what their ids mean."""

    train: TokenDataset
    val: TokenDataset | None
    tokenizer: Tokenizer | None


def build_trainer(run: RunConfig, *, device: str = "cpu", dtype: str = "float32") -> Trainer:
    """Make everything a run names, ready for `Trainer.fit`.

    The settings that end up in ``run.json`` hold the architecture in full, so that a resumed run
    needs nothing but its own directory and its data.

    Raises:
        ConfigError, DataError, CheckpointError: the settings, the data or a model to start from are
            not as they should be.
    """
    from llmcore.model import Transformer, check_computation

    train = run.train
    refuse_second_run(train)
    check_computation(device, dtype)
    source = dataclasses.replace(
        run.data, path=_absolute(run.data.path), validation=_absolute(run.data.validation)
    )
    if train.resume:
        _refuse_other_data(source, Path(train.out_dir))
    name = str(run.model["name"])
    start = _where_to_start(name, train)
    data = load_data(run.data, train, model_directory=start)
    config = build_model_config(run.model, tokenizer=data.tokenizer, train=train)
    if config.kind != "decoder":
        raise ConfigError(f"training on plain text needs a decoder; {name} is an {config.kind}")
    refuse_impossible(config, train)
    model = Transformer(config, device=device, dtype=dtype, seed=train.seed)
    if start is not None and not train.resume:
        weights = checkpoint.load(start, config=config).parameters
        checkpoint.copy_parameters(weights, model.parameters())
    model.tokenizer = data.tokenizer
    origin = {"model": {"name": name, **config.to_dict()}, "data": source.to_dict()}
    return Trainer(model, (data.train, data.val), train, tokenizer=data.tokenizer, origin=origin)


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
    return before


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


def load_data(
    config: DataConfig, train: TrainConfig, *, model_directory: Path | None = None
) -> RunData:
    """Open, or tokenize, what a run trains on.

    Shards are mapped. Other files are tokenized into ``out_dir/data`` once, where a resumed run
    finds them again. Without a path it is the Shakespeare text that comes with the package.

    Args:
        config: which data.
        train: where the run lives, and whether it is resumed.
        model_directory: the checkpoint that is fine-tuned; its tokenizer is taken if none is named.
    """
    if config.path is None:
        return _shakespeare(config, model_directory)
    path = Path(config.path)
    if is_directory(config.path):
        if config.tokenizer is not None:
            raise ConfigError(
                f"{path} is already tokenized; leave the tokenizer out, or give the text instead"
            )
        shards, val = resolve_data(path)
        if model_directory is not None:
            _refuse_other_tokenizer(shards, _tokenizer_of(model_directory), model_directory)
        if config.validation is not None:
            val = resolve_data(config.validation)[0]
        elif val is None and config.validation_fraction:
            return RunData(*shards.split(config.validation_fraction), shards.tokenizer)
        return RunData(shards, val, shards.tokenizer)
    out = Path(train.out_dir)
    stored, stored_val = out / "data", out / "data-validation"
    if not (train.resume and has_index(stored)):
        _require_file(path)
        tokenizer = choose_tokenizer(config, [path], model_directory)
        if config.validation:
            _require_file(Path(config.validation))
            tokenize_files([Path(config.validation)], tokenizer, stored_val, overwrite=True)
        # Last, since its presence tells a resumed run that all is there.
        fraction = 0.0 if config.validation else config.validation_fraction
        tokenize_files([path], tokenizer, stored, val_fraction=fraction, overwrite=True)
    shards, val = resolve_data(stored)
    if config.validation:
        val = resolve_data(stored_val)[0]
    return RunData(shards, val, shards.tokenizer)


def evaluation_data(directory: Path, path: Path | None) -> TokenDataset:
    """What to evaluate the checkpoint in `directory` on.

    Args:
        directory: holds the tokenizer.
        path: a text file, or shards (their "val" split if they have one); None for the validation
            data of the run that the checkpoint belongs to.
    """
    if path is None:
        settings = directory.parent / "run.json"
        if not settings.exists():
            raise ConfigError(
                f"{directory} does not belong to a run here; name data to evaluate on"
            )
        run = json.loads(settings.read_text(encoding="utf-8"))
        where = TrainConfig(out_dir=str(directory.parent), resume=True)
        found = load_data(DataConfig.from_dict(run["data"]), where, model_directory=directory)
        return found.val or found.train
    tokenizer = _tokenizer_of(directory)
    if path.is_dir():
        train, val = resolve_data(path)
        _refuse_other_tokenizer(val or train, tokenizer, directory)
        return val or train
    _require_file(path)
    if tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer; evaluate it on tokenized shards")
    with tempfile.TemporaryDirectory() as folder:
        tokenize_files([path], tokenizer, folder)
        shards = TokenDataset.open(folder)
        return TokenDataset.from_ids(shards.read(0, len(shards)), name=str(path))


def _tokenizer_of(directory: Path) -> Tokenizer | None:
    return checkpoint.load_tokenizer(checkpoint.load(directory, verify=False))


def _refuse_other_tokenizer(
    data: TokenDataset, tokenizer: Tokenizer | None, directory: Path
) -> None:
    """Raise if ids of `data` mean other texts to the model: the result would be nonsense."""
    if data.tokenizer is not None and tokenizer is not None and data.tokenizer != tokenizer:
        raise ConfigError(
            f"{data.name} was tokenized with another tokenizer than that of {directory};"
            " tokenize the text again with --tokenizer and that directory"
        )


def _shakespeare(config: DataConfig, model_directory: Path | None) -> RunData:
    text = shakespeare()
    tokenizer = choose_tokenizer(config, [text], model_directory)
    ids = np.asarray(tokenizer.encode(text), np.int32)
    data = TokenDataset.from_ids(ids, name="Shakespeare")
    if config.validation is not None:
        raise ConfigError("validation data need training data: name both, or neither")
    if not config.validation_fraction:
        return RunData(data, None, tokenizer)
    return RunData(*data.split(config.validation_fraction), tokenizer)


def choose_tokenizer(
    config: DataConfig, inputs: list[str] | list[Path], model_directory: Path | None = None
) -> Tokenizer:
    """Load the tokenizer that is named, or train one of the named kind on the inputs."""
    named = config.tokenizer
    own = _tokenizer_of(model_directory) if named is None and model_directory else None
    if own is not None:
        return own
    if named is None and model_directory is not None:
        raise ConfigError(f"{model_directory} has no tokenizer; name one, or give tokenized shards")
    kind = named or "char"
    if kind in KINDS:
        size = config.vocab_size or (None if kind == "char" else VOCAB_SIZE)
        return Tokenizer.train(inputs, kind, size)  # type: ignore[arg-type]
    if not Path(kind).exists():
        hint = did_you_mean(kind, KINDS)
        raise ConfigError(
            f"tokenizer must be one of {', '.join(KINDS)} or a path, got {kind}{hint}"
        )
    if config.vocab_size is not None:
        raise ConfigError(f"vocab_size is for tokenizers that are trained; {kind} has its own")
    return Tokenizer.load(kind)


def build_model_config(
    settings: Mapping[str, Any], *, tokenizer: Tokenizer | None, train: TrainConfig
) -> ModelConfig:
    """The architecture of a run: a preset or checkpoint, fitted to the data, then overridden.

    A preset takes its vocabulary and special ids from the tokenizer and as many positions as a
    block needs; a checkpoint keeps its own. What `settings` says wins over both.

    Args:
        settings: "name" (a preset, or the directory of a checkpoint) and fields of `ModelConfig`.
        tokenizer: that of the data.
        train: block size and dropout.

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
    fitted["max_positions"] = max(train.block_size, ModelConfig.preset(name).max_positions)
    return ModelConfig.preset(name, **{**fitted, **overrides})


def is_whole(fields: Mapping[str, Any]) -> bool:
    """Whether every field of an architecture is there, as run.json has: no preset is needed."""
    return fields.keys() >= {item.name for item in dataclasses.fields(ModelConfig)}


def check_model_name(name: str) -> None:
    """Raise unless `name` is a preset or an existing directory."""
    if name not in PRESETS and not is_directory(name):
        hint = did_you_mean(name, PRESETS) or f"; presets: {', '.join(PRESETS)}"
        raise ConfigError(f"model {name!r} is neither a preset nor a directory{hint}")


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The model directory meant by `path`: itself, or the best (else last) one of a run.

    Raises:
        CheckpointError: there is no model.
    """
    path = Path(path)
    for candidate in (path, path / "best", path / "last"):
        if checkpoint.exists(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}; train one with llmcore train")
    if path.is_file():
        raise CheckpointError(f"{path} is a file; name the directory that holds config.json")
    raise CheckpointError(f"{path} holds no model: it has no config.json, best/ or last/")


def is_directory(path: str) -> bool:
    """Whether `path` is an existing directory."""
    return bool(path) and Path(path).is_dir()


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"there is no file {path}")


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).absolute())
