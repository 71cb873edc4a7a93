"""The data of a run and their tokenizer: opened, or tokenized once where the run lives."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from llmcore import checkpoint
from llmcore.config import ModelConfig
from llmcore.data import TokenDataset, shakespeare
from llmcore.data.example_files import ExampleFiles, ExampleKind, kind_of_file
from llmcore.data.example_tokenizing import tokenize_examples
from llmcore.data.examples import ExampleDataset
from llmcore.data.shards import has_index, load_index
from llmcore.data.tokenizing import tokenize_files
from llmcore.errors import ConfigError, DataError, did_you_mean
from llmcore.tokenizer import Tokenizer
from llmcore.training.feed import Dataset, most_positions, resolve_data
from llmcore.training.run_directory import is_directory
from llmcore.training.tasks import (
    DataKind,
    check_tokens,
    data_kind,
    natural_objective,
    parse_objective,
    special_tokens,
    usual_tokenizer,
)
from llmcore.training.train_config import DataConfig, TrainConfig

if TYPE_CHECKING:
    from llmcore.tokenizer.training import TokenizerKind

#: Tokenizers that are trained on the data of the run, by name; anything else is a path.
KINDS = ("char", "bpe", "wordpiece", "unigram")

#: Size of a vocabulary that is trained, if none is named: for some megabytes of text.
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class RunData:
    """Data ready for training, and what their ids mean."""

    train: Dataset
    val: Dataset | None
    tokenizer: Tokenizer | None


def kind_of_source(config: DataConfig, train: TrainConfig) -> DataKind:
    """Return what data a run that names no objective has.

    Raises:
        DataError: They cannot be read.
    """
    stored = Path(train.out_dir) / "data"
    if train.resume and has_index(stored):
        return _kind_of_index(stored)
    if config.path is None:
        return "text"
    if is_directory(config.path):
        return _kind_of_index(Path(config.path))
    target = None if config.target is None else Path(config.target)
    return kind_of_file(Path(config.path), target) or "text"


def _kind_of_index(directory: Path) -> DataKind:
    return cast(DataKind, load_index(directory).get("kind", "text"))


def load_data(
    config: DataConfig,
    train: TrainConfig,
    names: Mapping[str, float],
    model: ModelConfig,
    *,
    model_directory: Path | None = None,
) -> RunData:
    """Open, or tokenize, what a run trains on.

    Tokenized data are mapped. Other files are tokenized into ``out_dir/data`` once, where a resumed
    run finds them again. Without a path it is the Shakespeare text that comes with the package.

    Args:
        config: which data.
        train: where the run lives, and whether it is resumed.
        names: the objectives, which decide what is read and which special tokens there must be.
        model: the architecture, before it is fitted to the data.
        model_directory: the checkpoint that is fine-tuned; its tokenizer is taken if none is named.
    """
    kind = data_kind(names)
    _check_source(config, names, kind)
    if config.path is not None and is_directory(config.path):
        return _open_directory(config, Path(config.path), model_directory)
    making = _TokenizerChoice(config, names, model, model_directory)
    if config.path is None:
        return _shakespeare(config, making)
    stored = Path(train.out_dir) / "data"
    if kind != "text":
        if not (train.resume and has_index(stored)):
            _tokenize_examples(config, kind, making, stored)
        examples, held = resolve_data(stored)
        return RunData(examples, held, examples.tokenizer)
    path, stored_val = Path(config.path), Path(train.out_dir) / "data-validation"
    if not (train.resume and has_index(stored)):
        _require_file(path)
        options: dict[str, Any] = {"text_field": config.fields or "text", "overwrite": True}
        tokenizer = making.choose([path])
        if config.validation:
            _require_file(Path(config.validation))
            tokenize_files([Path(config.validation)], tokenizer, stored_val, **options)
        # Last, since its presence tells a resumed run that all is there.
        fraction = 0.0 if config.validation else config.validation_fraction
        tokenize_files([path], tokenizer, stored, val_fraction=fraction, **options)
    shards, val = resolve_data(stored)
    if config.validation:
        val = resolve_data(stored_val)[0]
    return RunData(shards, val, shards.tokenizer)


def _check_source(config: DataConfig, names: Mapping[str, float], kind: DataKind) -> None:
    """Refuse settings of data that make no sense together."""
    objective = next(iter(names))
    if config.path is None:
        if config.validation is not None or config.target is not None:
            raise ConfigError("validation data and targets need training data: name --data, too")
        if kind != "text":
            raise ConfigError(
                f"the objective {objective} is made from examples, not from plain text: name a"
                " file of them with --data, and for parallel text the other with --target"
            )
    if kind == "text" and config.target is not None:
        raise ConfigError(f"the objective {objective} reads one text; leave --target out")
    if config.target is not None and config.validation and not config.validation_target:
        raise ConfigError(
            f"the targets of {config.validation} are missing: name their file with"
            " --validation-target"
        )
    if config.validation_target and not (config.target and config.validation):
        raise ConfigError("validation_target goes with target and validation: name all three")


def _open_directory(config: DataConfig, path: Path, model_directory: Path | None) -> RunData:
    if config.tokenizer is not None:
        raise ConfigError(
            f"{path} is already tokenized; leave the tokenizer out, or give the text instead"
        )
    data, val = resolve_data(path)
    if model_directory is not None:
        _refuse_other_tokenizer(data, _tokenizer_of(model_directory), model_directory)
    if config.validation is not None:
        val = resolve_data(config.validation)[0]
    elif val is None and config.validation_fraction:
        first, held = data.split(config.validation_fraction)
        return RunData(first, held, data.tokenizer)
    return RunData(data, val, data.tokenizer)


def _tokenize_examples(
    config: DataConfig, kind: ExampleKind, making: _TokenizerChoice, out: Path
) -> None:
    files = example_files(config, kind)
    validation = None
    if config.validation is not None:
        validation = example_files(
            dataclasses.replace(config, path=config.validation, target=config.validation_target),
            kind,
        )
    limit = most_positions(making.model)
    if config.max_length is not None:
        if limit is not None and config.max_length > limit:
            raise ConfigError(
                f"max_length {config.max_length} is more than the model's max_positions {limit}"
            )
        limit = config.max_length
    result = tokenize_examples(
        files,
        making.choose(files.texts()),
        out,
        validation=validation,
        val_fraction=config.validation_fraction,
        limit=limit,
        types=making.model.type_vocab_size > 1,
    )
    if result.cut:
        print(
            f"warning: {result.cut:,} texts were longer than {limit} tokens and have been cut;"
            " --max-length sets how many are kept",
            flush=True,
        )


def example_files(config: DataConfig, kind: ExampleKind) -> ExampleFiles:
    """The files of examples that the settings name."""
    return ExampleFiles(
        Path(str(config.path)),
        None if config.target is None else Path(config.target),
        kind=kind,
        fields=[name.strip() for name in config.fields.split(",")] if config.fields else (),
    )


def evaluation_settings(directory: Path, objective: str | None) -> TrainConfig:
    """The settings by which to evaluate the checkpoint in `directory`: those of its run, if any.

    Args:
        directory: as of `evaluation_data`.
        objective: another objective than that of the run.
    """
    run = run_of(directory)
    settings = {"objective": "causal", **run["train"]} if run else {}
    where = {"out_dir": str(directory.parent), "resume": True, "overwrite": False}
    stated = {} if objective is None else {"objective": objective}
    return TrainConfig.from_dict({**settings, **where, **stated})


def evaluation_data(
    directory: Path, path: Path | None, target: Path | None, settings: TrainConfig
) -> Dataset:
    """What to evaluate the checkpoint in `directory` on.

    Args:
        directory: holds the tokenizer; beside it lies the run.json of its run, if it is of one.
        path: a file as the run was trained on, or tokenized data (their "val" split if they have
            one); None for the validation data of the run.
        target: the file with the targets, where there are two.
        settings: as from `evaluation_settings`.
    """
    run = run_of(directory)
    model = checkpoint.load(directory, verify=False).config
    source = DataConfig.from_dict(run["data"]) if run else DataConfig()
    if path is None:
        if not run:
            raise ConfigError(
                f"{directory} does not belong to a run here; name data to evaluate on"
            )
        kind = kind_of_source(source, settings)
        names = parse_objective(settings.objective or natural_objective(kind, model.kind))
        found = load_data(source, settings, names, model, model_directory=directory)
        return found.val or found.train
    tokenizer = _tokenizer_of(directory)
    if path.is_dir():
        train, val = resolve_data(path)
        _refuse_other_tokenizer(val or train, tokenizer, directory)
        return val or train
    _require_file(path)
    if tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer; evaluate it on tokenized shards")
    kind = kind_of_file(path, target) or "text"
    if settings.objective is not None:
        kind = data_kind(parse_objective(settings.objective))
    with tempfile.TemporaryDirectory() as folder:
        if kind == "text":
            tokenize_files([path], tokenizer, folder, text_field=source.fields or "text")
            shards = TokenDataset.open(folder)
            return TokenDataset.from_ids(shards.read(0, len(shards)), name=str(path))
        files = dataclasses.replace(
            source, path=str(path), target=None if target is None else str(target)
        )
        tokenize_examples(
            example_files(files, kind),
            tokenizer,
            Path(folder),
            limit=most_positions(model),
            types=model.type_vocab_size > 1,
            label_names=_label_names(directory.parent),
        )
        examples = ExampleDataset.open(folder)
        examples.name = str(path)
        return examples


def run_of(directory: Path) -> dict[str, Any]:
    """The run.json of the run that the checkpoint in `directory` belongs to; empty if of none."""
    file = directory.parent / "run.json"
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _label_names(out_dir: Path) -> Sequence[str]:
    """The labels of a run, in order, where it has tokenized its data itself."""
    data = out_dir / "data"
    names: Sequence[str] = load_index(data).get("label_names", ()) if has_index(data) else ()
    return names


def _tokenizer_of(directory: Path) -> Tokenizer | None:
    return checkpoint.load_tokenizer(checkpoint.load(directory, verify=False))


def _refuse_other_tokenizer(data: Dataset, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Raise if ids of `data` mean other texts to the model: the result would be nonsense."""
    if data.tokenizer is not None and tokenizer is not None and data.tokenizer != tokenizer:
        raise ConfigError(
            f"{data.name} was tokenized with another tokenizer than that of {directory};"
            " tokenize the text again with --tokenizer and that directory"
        )


def _shakespeare(config: DataConfig, making: _TokenizerChoice) -> RunData:
    text = shakespeare()
    tokenizer = making.choose([text])
    ids = np.asarray(tokenizer.encode(text, add_special_tokens=False), np.int32)
    data = TokenDataset.from_ids(ids, name="Shakespeare")
    if not config.validation_fraction:
        return RunData(data, None, tokenizer)
    return RunData(*data.split(config.validation_fraction), tokenizer)


@dataclass(frozen=True)
class _TokenizerChoice:
    """What decides about the tokenizer of a run."""

    config: DataConfig
    names: Mapping[str, float]
    model: ModelConfig
    model_directory: Path | None

    def choose(self, inputs: Iterable[str | Path]) -> Tokenizer:
        """That of the model, the one that is named, or one trained on the inputs."""
        tokenizer = self._chosen(inputs)
        check_tokens(self.names, tokenizer)
        return tokenizer

    def _chosen(self, inputs: Iterable[str | Path]) -> Tokenizer:
        config = self.config
        if config.tokenizer is None and self.model_directory is not None:
            own = _tokenizer_of(self.model_directory)
            if own is None:
                raise ConfigError(
                    f"{self.model_directory} has no tokenizer; name one, or give tokenized shards"
                )
            return own
        kind = cast("TokenizerKind", config.tokenizer)
        if config.tokenizer is None:
            kind = usual_tokenizer(self.names, self.model.kind)
        special = special_tokens(self.names, kind) if kind in KINDS else ()
        tokenizer = choose_tokenizer(kind, inputs, config.vocab_size, special)
        if kind in KINDS and "seq2seq" in self.names:
            _end_every_text(tokenizer)
        return tokenizer


def _end_every_text(tokenizer: Tokenizer) -> None:
    """Let a tokenizer that puts nothing around a text add "</s>", as T5's and Marian's do.

    So a trained model is given its sources as in training, by us and by transformers.
    """
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.token_to_id("</s>")
    if tokenizer.backend.post_processor is None and end is not None:
        tokenizer.backend.post_processor = TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
        )


def choose_tokenizer(
    named: str,
    inputs: Iterable[str | Path],
    vocab_size: int | None = None,
    special: Sequence[str] | None = None,
) -> Tokenizer:
    """Load the tokenizer that is named, or train one of the named kind on the inputs.

    Args:
        named: One of `KINDS`, or a path.
        inputs: Texts and files to train on.
        vocab_size: Size of a vocabulary that is trained; `VOCAB_SIZE` if not given.
        special: Special tokens of one that is trained; the usual ones of its kind if None.

    Raises:
        ConfigError: It is neither a kind nor a path, or has a vocabulary of its own.
    """
    if named in KINDS:
        size = vocab_size or (None if named == "char" else VOCAB_SIZE)
        return Tokenizer.train(inputs, cast("TokenizerKind", named), size, special)
    check_tokenizer_name(named)
    if vocab_size is not None:
        raise ConfigError(f"vocab_size is for tokenizers that are trained; {named} has its own")
    return Tokenizer.load(named)


def check_tokenizer_name(named: str) -> None:
    """Raise `ConfigError` unless it is one of `KINDS`, or a path to something."""
    if named not in KINDS and not Path(named).exists():
        hint = did_you_mean(named, KINDS)
        raise ConfigError(
            f"tokenizer must be one of {', '.join(KINDS)} or a path, got {named}{hint}"
        )


def _require_file(path: Path) -> None:
    if not path.exists():
        raise DataError(f"there is no file {path}")
