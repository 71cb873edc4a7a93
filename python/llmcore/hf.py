"""Reading and writing models in the Hugging Face layout: config.json and model.safetensors.

The names are in `hf_families`; here is what is done with them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.atomic import FileContent, is_file_name, write_files
from llmcore.config import ModelConfig, parameter_shapes
from llmcore.errors import CheckpointError, ConfigError
from llmcore.hf_families import FAMILIES, Family, Float32, Row
from llmcore.safetensors_io import SafetensorsFile, Shape, Source, read_json, write_tensors


def config_from_hf(values: Mapping[str, Any]) -> ModelConfig:
    """Translate the contents of a config.json.

    A config we wrote carries ours whole under the key "llmcore", which holds what the foreign keys
    cannot (dropouts, absent biases). It counts only as long as the foreign keys agree with it: a
    config that was edited since means what its foreign keys say.

    Args:
        values: The parsed file.

    Raises:
        ConfigError: for an architecture or a value that is not supported.

    Example:
        >>> config = config_from_hf({"architectures": ["GPT2LMHeadModel"], "n_layer": 6})
        >>> config.num_decoder_layers, config.hidden_size
        (6, 768)
    """
    family = _family_of(values)
    theirs = family.decode(values)
    if isinstance(values.get("llmcore"), dict):
        ours = ModelConfig.from_dict(values["llmcore"])
        encoded = family.encode(ours)
        if encoded is not None and family.decode(encoded) == theirs:
            return ours
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


def _family_of(values: Mapping[str, Any]) -> Family:
    """Find the family a config.json belongs to, by architecture or else by model type."""
    names = values.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    for family in FAMILIES:
        if name == family.architecture or (
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
    """Read the config.json in a directory.

    Raises:
        CheckpointError: if it is missing, malformed, or describes what is not supported.
    """
    return read_config(Path(path) / "config.json")[0]


def read_config(file: Path) -> tuple[ModelConfig, Family]:
    """Read a config.json, with the family whose names its tensors have."""
    values = read_json(file)
    try:
        return config_from_hf(values), _family_of(values)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


# Where a tensor is stored: the file, and its name there.
Stored = tuple[SafetensorsFile, str]


def load_state(path: str | os.PathLike[str], config: ModelConfig) -> Iterator[tuple[str, Float32]]:
    """Read every parameter of a model from the safetensors files in a directory.

    All names and shapes are checked before this returns; data is read as the iterator advances.

    Args:
        path: A directory with model.safetensors or model.safetensors.index.json.
        config: The architecture; the files must match it exactly.

    Returns:
        Pairs of our parameter name and a float32 array. Arrays may be read-only, transposed views
        of the file: copy them to where they are to live.

    Raises:
        CheckpointError: listing missing, unexpected and misshapen tensors together, or naming what
            is wrong with a file.
    """
    path = Path(path)
    exists = (path / "config.json").exists()
    family = read_config(path / "config.json")[1] if exists else _family_for(config)
    return read_state(path, weight_files(path), config, family)


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
    path: Path, files: Sequence[Path], config: ModelConfig, family: Family
) -> Iterator[tuple[str, Float32]]:
    """Do the work of `load_state` for given files; `path` is what errors name."""
    shapes, kept = parameter_shapes(family.widen(config)), parameter_shapes(config)
    rows = family.layout(config)
    stored = _find(path, files, family, rows)
    _check_names(path, stored, config, family, rows, shapes)

    def tensors() -> Iterator[tuple[str, Float32]]:
        for row in rows:
            file, foreign_name = stored[row.theirs]
            for name, tensor in row.split(file.float32(foreign_name), shapes):
                if name in kept:
                    yield name, tensor
                elif tensor.any():
                    raise CheckpointError(
                        f"{path}: {foreign_name} is not zero, but the model has no {name}; "
                        "to load it with biases, remove the key 'llmcore' from config.json"
                    )

    return tensors()


def _find(
    path: Path, files: Sequence[Path], family: Family, rows: Sequence[Row]
) -> dict[str, Stored]:
    """Map the foreign name of every tensor in `files`, with its base prefix, to where it is."""
    stored: dict[str, Stored] = {}
    for file in map(SafetensorsFile, files):
        for name in file.entries:
            if name in stored:
                raise CheckpointError(f"{path}: {name} is in two files")
            stored[name] = (file, name)
    prefix = family.base_prefix
    if not any(name.startswith(prefix) for name in stored):
        heads = {row.theirs for row in rows if not row.theirs.startswith(prefix)} | {family.tied}
        return {name if name in heads else prefix + name: at for name, at in stored.items()}
    return stored


def _check_names(
    path: Path,
    stored: Mapping[str, Stored],
    config: ModelConfig,
    family: Family,
    rows: Sequence[Row],
    shapes: Mapping[str, Shape],
) -> None:
    """Compare names, shapes and dtypes with what the model has, and the ties."""
    expected = {row.theirs: row.foreign_shape(shapes) for row in rows}
    optional = {family.tied} if config.tie_embeddings else set()
    missing = [name for name in expected if name not in stored]
    unexpected = [
        name
        for name in stored
        if name not in expected and name not in optional and not re.fullmatch(family.ignored, name)
    ]
    misshapen = []
    for name in expected.keys() & stored.keys():
        entry = stored[name][0].entries[stored[name][1]]
        if entry.shape != expected[name] or not entry.is_float:
            wanted = f"expected {list(expected[name])}, got {list(entry.shape)}"
            misshapen.append(f"{name} ({wanted if entry.is_float else f'of dtype {entry.dtype}'})")
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": sorted(misshapen)}
    found = [f"{len(names)} {kind}: {_some(names)}" for kind, names in lists.items() if names]
    if found:
        raise CheckpointError(
            f"{path}: the tensors do not fit the config ({family.architecture}): {'; '.join(found)}"
        )
    table = next(row.theirs for row in rows if row.ours == ("embed.tokens.weight",))
    for name in optional & stored.keys():
        head, tokens = (file.float32(at) for file, at in (stored[name], stored[table]))
        if not np.array_equal(head.view(np.uint32), tokens.view(np.uint32)):
            raise CheckpointError(
                f"{path}: {name} differs from {table}, but the config ties them; "
                "set tie_word_embeddings to false in config.json, or remove the tensor"
            )


def _some(names: Sequence[str], limit: int = 8) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def save_state(
    config: ModelConfig, parameters: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Write config.json and model.safetensors, both or neither, into a directory.

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
    sources = [
        Source(row.theirs, row.foreign_shape(shapes), partial(row.join, arrays, shapes))
        for row in family.layout(config)
    ]
    text = json.dumps(config_to_hf(config), indent=2) + "\n"
    return {
        "model.safetensors": lambda file: write_tensors(file, sources),
        "config.json": lambda file: file.write(text.encode()),
    }
