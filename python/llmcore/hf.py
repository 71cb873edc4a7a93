"""Reading and writing models in the Hugging Face layout.

    config.json               the architecture
    generation_config.json    special ids, of models that generate
    model.safetensors         the tensors; when reading, also several files and their index

The names are in `families`; here is what is done with them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.atomic import ChecksumWriter, FileContent, is_file_name, write_files
from llmcore.config import TOKEN_ID_FIELDS, ModelConfig, parameter_shapes
from llmcore.errors import CheckpointError, ConfigError
from llmcore.families import FAMILIES, Family, Float32, Row, encode_ids
from llmcore.safetensors_io import SafetensorsFile, Shape, Source, read_json, write_tensors


def config_from_hf(
    values: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """Translate the contents of a config.json.

    A config we wrote carries ours whole under the key "llmcore", which holds what the foreign keys
    cannot (dropouts, absent biases). It counts only as long as the foreign keys agree with it: a
    config that was edited since means what its foreign keys say. Special ids may be edited alone.

    Args:
        values: The parsed file.
        generation: The contents of a generation_config.json, whose special ids win.

    Raises:
        ConfigError: for an architecture or a value that is not supported.

    Example:
        >>> config = config_from_hf({"architectures": ["GPT2LMHeadModel"], "n_layer": 6})
        >>> config.num_decoder_layers, config.hidden_size
        (6, 768)
    """
    family = _family_of(values)
    theirs = family.decode(values, generation)
    if isinstance(values.get("llmcore"), dict):
        ours = ModelConfig.from_dict(values["llmcore"])
        encoded = family.encode(ours)
        if encoded is not None:
            written = family.decode(encoded)
            edited = {
                name: getattr(theirs, name)
                for name in (*TOKEN_ID_FIELDS, "suppressed_ids")
                if getattr(theirs, name) != getattr(written, name)
            }
            if written.replace(**edited) == theirs:
                return ours.replace(**edited)
    return theirs


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Translate a config into the contents of a config.json that transformers reads.

    Models that no known architecture expresses become "LlmcoreModel", which only llmcore reads.

    Example:
        >>> values = config_to_hf(ModelConfig.preset("gpt2"))
        >>> values["architectures"], values["n_embd"]
        (['GPT2LMHeadModel'], 768)
    """
    return {**(_family_for(config).encode(config) or {}), "llmcore": config.to_dict()}


def generation_to_hf(config: ModelConfig) -> dict[str, Any]:
    """Translate the special ids of a config into the contents of a generation_config.json.

    Example:
        >>> generation_to_hf(ModelConfig.preset("t5-small"))
        {'eos_token_id': 1, 'pad_token_id': 0, 'decoder_start_token_id': 0}
    """
    return encode_ids(config, {})


def _family_of(values: Mapping[str, Any]) -> Family:
    """Find the family a config.json belongs to, by architecture or else by model type."""
    names = values.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    for family in FAMILIES:
        if name in (family.architecture, *family.also) or (
            name is None and values.get("model_type") == family.model_type
        ):
            return family
    known = [family.architecture for family in FAMILIES]
    wanted = str(name if name is not None else values.get("model_type"))
    raise ConfigError(f"architecture {wanted!r} is not supported; supported: {', '.join(known)}")


def _family_for(config: ModelConfig) -> Family:
    """Find the family to write a config as."""
    return next(family for family in FAMILIES if family.encode(config) is not None)


def load_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the config.json in a directory, and generation_config.json if it is there.

    Raises:
        CheckpointError: if it is missing, malformed, or describes what is not supported.
    """
    return read_config(Path(path) / "config.json", Path(path) / "generation_config.json")[0]


def read_config(file: Path, generation: Path | None = None) -> tuple[ModelConfig, Family]:
    """Read a config.json, with the family whose names its tensors have.

    Args:
        file: The config.json.
        generation: The generation_config.json, which need not be there.
    """
    values = read_json(file)
    ids = read_json(generation) if generation is not None and generation.exists() else None
    try:
        return config_from_hf(values, ids), _family_of(values)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


# Where a tensor is stored: the file, and its name there.
Stored = tuple[SafetensorsFile, str]


def load_state(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    fresh: Collection[str] = (),
    drop: Collection[str] = (),
) -> Iterator[tuple[str, Float32]]:
    """Read the parameters of a model from the safetensors files in a directory.

    All names and shapes are checked before this returns; data is read as the iterator advances.

    A model is fine-tuned for another task by reading it as another config, which `fresh` and `drop`
    make fit: a masked language model as a classifier with `fresh=("classifier.*", "pooler.*"),
    drop=("head.*",)`.

    Args:
        path: A directory with model.safetensors or model.safetensors.index.json.
        config: The architecture; the files must match it exactly, but for what follows.
        fresh: Patterns (`fnmatch`) of our names that the files may lack; those it lacks are left
            out of the result.
        drop: Patterns of our names that are not read, whether the config has them or not.

    Returns:
        Pairs of our parameter name and a float32 array. Arrays may be read-only, transposed views
        of the file: copy them to where they are to live.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors together, or naming what
            is wrong with a file.

    Example:
        >>> import tempfile
        >>> config = ModelConfig.preset("gpt-nano", num_decoder_layers=1)
        >>> parameters = {n: np.ones(s, np.float32) for n, s in parameter_shapes(config).items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(config, parameters, folder)
        ...     classifier = config.replace(num_labels=3)
        ...     state = dict(load_state(folder, classifier, fresh=["classifier.*"]))
        >>> parameter_shapes(classifier).keys() - state.keys() == {
        ...     "classifier.weight", "classifier.bias"
        ... }
        True
    """
    path = Path(path)
    exists = (path / "config.json").exists()
    family = read_config(path / "config.json")[1] if exists else _family_for(config)
    return read_state(path, weight_files(path), config, family, fresh=fresh, drop=drop)


def weight_files(path: Path) -> list[Path]:
    """List the safetensors files of a model: one, or the shards an index names.

    Raises:
        CheckpointError: if there are none, or the index is malformed.
    """
    whole, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(map(is_file_name, names.values())):
            raise CheckpointError(f"{index}: weight_map must map tensor names to file names")
        return [path / name for name in dict.fromkeys(names.values())]
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a directory with a model, found none")
    if list(path.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{path}: its weights are Python pickles, which llmcore does not read; "
            "convert them with transformers: AutoModel.from_pretrained(…).save_pretrained(…)"
        )
    raise CheckpointError(f"{path}: expected model.safetensors, found none")


def read_state(
    path: Path,
    files: Sequence[Path],
    config: ModelConfig,
    family: Family,
    *,
    fresh: Collection[str] = (),
    drop: Collection[str] = (),
) -> Iterator[tuple[str, Float32]]:
    """Do the work of `load_state` for given files; `path` is what errors name."""
    shapes, kept = parameter_shapes(family.widen(config)), parameter_shapes(config)
    rows = family.layout(config)
    stored = _find(path, files, family, drop)
    fitting = {name for name in kept if not _matches(name, fresh)}
    _check_names(path, stored, config, family, rows, shapes, fitting)

    def tensors() -> Iterator[tuple[str, Float32]]:
        for row in rows:
            found = [name for name in (*row.names, row.otherwise) if name in stored]
            if found:
                file, name_there = stored[found[0]]
                foreign = file.float32(name_there)
            elif row.optional:
                foreign = np.zeros(row.foreign_shape(shapes), np.float32)
            else:
                continue
            for name, tensor in row.split(foreign, shapes):
                if name in kept:
                    yield name, tensor
                elif tensor.any():
                    raise CheckpointError(
                        f"{path}: {found[0]} is not zero, but the model has no {name}; "
                        "to load it with biases, remove the key 'llmcore' from config.json"
                    )

    return tensors()


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _find(
    path: Path, files: Sequence[Path], family: Family, drop: Collection[str]
) -> dict[str, Stored]:
    """Map the foreign name of every tensor in `files`, with its base prefix, to where it is."""
    stored: dict[str, Stored] = {}
    for file in map(SafetensorsFile, files):
        for name in file.entries:
            if name in stored:
                raise CheckpointError(f"{path}: {name} is in two files")
            stored[name] = (file, name)
    for pattern, replacement in family.renames.items():
        stored = {re.sub(pattern, replacement, name): at for name, at in stored.items()}
    prefix = family.base_prefix
    if not any(name.startswith(prefix) for name in stored):
        names = (name for row in family.rows for name in row.names)
        heads = {name for name in names if not name.startswith(prefix)}
        stored = {name if name in heads else prefix + name: at for name, at in stored.items()}

    def dropped(foreign: str) -> bool:
        ours = family.our_names(foreign)
        return bool(ours) and all(_matches(name, drop) for name in ours)

    return {name: at for name, at in stored.items() if not dropped(name)}


def _check_names(
    path: Path,
    stored: Mapping[str, Stored],
    config: ModelConfig,
    family: Family,
    rows: Sequence[Row],
    shapes: Mapping[str, Shape],
    needed: Collection[str],
) -> None:
    """Compare names, shapes and dtypes with what the model has, and the ties.

    `needed` are our names that must be there.
    """
    covered = {name for row in rows for name in row.ours}
    missing = [name for name in needed if name not in covered]
    misshapen = []
    for row in rows:
        found = [name for name in row.names if name in stored]
        instead = row.optional or row.otherwise in stored
        if not found and not instead and any(name in needed for name in row.ours):
            missing.append(row.theirs)
        for name in found:
            entry, shape = stored[name][0].entries[stored[name][1]], row.foreign_shape(shapes)
            if not entry.is_float:
                misshapen.append(f"{name} (of dtype {entry.dtype})")
            elif entry.shape != shape:
                misshapen.append(f"{name} (expected {list(shape)}, got {list(entry.shape)})")
    expected = {name for row in rows for name in row.names}
    unexpected = [
        name for name in stored if name not in expected and not re.fullmatch(family.ignored, name)
    ]
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": sorted(misshapen)}
    problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in lists.items() if names]
    if problems:
        raise CheckpointError(
            f"{path}: the tensors do not fit the config ({family.architecture}): "
            f"{'; '.join(problems)}"
        )
    for row in rows:
        first, *others = [name for name in row.names if name in stored] or [row.theirs]
        for name in others:
            _check_tied(path, stored, name, first, head="head.weight" in family.our_names(name))


def _check_tied(
    path: Path, stored: Mapping[str, Stored], name: str, first: str, head: bool
) -> None:
    """Check that two names of one tensor hold the same bits."""
    a, b = (file.float32(at) for file, at in (stored[name], stored[first]))
    if not np.array_equal(a.view(np.uint32), b.view(np.uint32)):
        advice = "set tie_word_embeddings to false in config.json, or remove the tensor"
        raise CheckpointError(
            f"{path}: {name} differs from {first}, but "
            + (f"the config ties them; {advice}" if head else "they are one tensor in llmcore")
        )


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def save_state(
    config: ModelConfig, parameters: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Write config.json, model.safetensors and what goes with them, all or nothing, to a directory.

    Args:
        config: The architecture.
        parameters: Every parameter by our name: float32 arrays, or what NumPy takes for one.
        path: The directory, made if need be.

    Raises:
        CheckpointError: if parameters do not match the config, or the disk refuses.

    Example:
        >>> import tempfile
        >>> config = ModelConfig.preset("gpt-nano", num_decoder_layers=1)
        >>> parameters = {n: np.ones(s, np.float32) for n, s in parameter_shapes(config).items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_state(config, parameters, folder)
        ...     float(dict(load_state(folder, config))["decoder.norm.weight"].sum())
        128.0
    """
    write_files(path, model_files(config, parameters))


def model_files(config: ModelConfig, parameters: Mapping[str, Any]) -> dict[str, FileContent]:
    """Return the files that hold a model, ready to be written."""
    family = _family_for(config)
    shapes, kept = parameter_shapes(family.widen(config)), parameter_shapes(config)
    problems = [f"{name} is missing" for name in kept if name not in parameters]
    problems += [f"{name} is unexpected" for name in parameters if name not in kept]
    arrays = {name: np.asarray(parameters[name]) for name in kept if name in parameters}
    problems += [
        f"{name}: expected {list(kept[name])} float32, got {list(array.shape)} {array.dtype}"
        for name, array in arrays.items()
        if array.shape != kept[name] or array.dtype != np.float32
    ]
    if problems:
        raise CheckpointError(f"parameters do not fit the config: {_some(problems)}")
    sources = []
    for row in family.layout(config):
        shape, join = row.foreign_shape(shapes), partial(row.join, arrays, shapes)
        names = row.names if family.copies and not config.tie_embeddings else (row.theirs,)
        prefix = family.base_prefix if family.bare else ""
        sources += [Source(name.removeprefix(prefix), shape, join) for name in names]
    files = {"config.json": config_to_hf(config)}
    ids = generation_to_hf(config)
    if ids and config.num_decoder_layers and family.keys:  # our own layout keeps them in its config
        files["generation_config.json"] = ids
    return {
        "model.safetensors": lambda file: write_tensors(file, sources),
        **{name: partial(_write_json, values=values) for name, values in files.items()},
    }


def _write_json(file: ChecksumWriter, values: Mapping[str, Any]) -> None:
    file.write((json.dumps(values, indent=2) + "\n").encode())
