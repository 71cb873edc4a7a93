"""Reading and writing models in the Hugging Face layout.

    config.json               the architecture
    generation_config.json    special ids, of models that generate
    model.safetensors         the tensors; when reading, also several files and their index

The names are in `families`, the reading of tensors in `hf_weights`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmcore.atomic import ChecksumWriter, FileContent, write_files
from llmcore.config import TOKEN_ID_FIELDS, ModelConfig
from llmcore.errors import CheckpointError, ConfigError
from llmcore.families import FAMILIES, Family, Float32, Row, encode_ids
from llmcore.hf_weights import read_state, some_of, weight_files
from llmcore.parameters import parameter_shapes
from llmcore.quantized import Packed, Quantized, bfloat16_bits, config_keys, sources, stored_format
from llmcore.safetensors_io import Shape, Source, read_json, widened, write_tensors


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
    return {**(family_for(config).encode(config) or {}), "llmcore": config.to_dict()}


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


def family_for(config: ModelConfig) -> Family:
    """Find the family to write a config as."""
    return next(family for family in FAMILIES if family.encode(config) is not None)


class StoredModel(NamedTuple):
    """What a config.json says: the architecture, whose names its tensors have, their format."""

    config: ModelConfig
    family: Family
    format: str


def load_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the config.json in a directory, and generation_config.json if it is there.

    Raises:
        CheckpointError: if it is missing, malformed, or describes what is not supported.
    """
    return read_config(Path(path) / "config.json", Path(path) / "generation_config.json").config


def read_config(file: Path, generation: Path | None = None) -> StoredModel:
    """Read a config.json.

    Args:
        file: The config.json.
        generation: The generation_config.json, which need not be there.
    """
    values = read_json(file)
    ids = read_json(generation) if generation is not None and generation.exists() else None
    try:
        return StoredModel(config_from_hf(values, ids), _family_of(values), stored_format(values))
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error


def load_state(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    fresh: Collection[str] = (),
    drop: Collection[str] = (),
) -> Iterator[tuple[str, Float32 | Quantized]]:
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
        Pairs of our parameter name and a float32 array, or a `Quantized` matrix, which NumPy takes
        for one. Arrays may be read-only, transposed views of the file: copy them to where they are
        to live.

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
    family, format = family_for(config), "float32"
    if (path / "config.json").exists():
        _, family, format = read_config(path / "config.json")
    state = read_state(
        path, weight_files(path), config, family, format=format, fresh=fresh, drop=drop
    )
    return (
        (name, value if isinstance(value, Quantized) else widened(value)) for name, value in state
    )


def save_state(
    config: ModelConfig, parameters: Mapping[str, Any], path: str | os.PathLike[str]
) -> None:
    """Write config.json, model.safetensors and what goes with them, all or nothing, to a directory.

    Args:
        config: The architecture.
        parameters: Every parameter by our name: float32 arrays, what NumPy takes for one, or
            `Packed` matrices of a model, which are written in its format.
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
    family = family_for(config)
    shapes, kept = parameter_shapes(family.widen(config)), parameter_shapes(config)
    problems = [f"{name} is missing" for name in kept if name not in parameters]
    problems += [f"{name} is unexpected" for name in parameters if name not in kept]
    given = {name: parameters[name] for name in kept if name in parameters}
    packed = {name: value for name, value in given.items() if isinstance(value, Packed)}
    arrays = {name: np.asarray(given[name]) for name in given if name not in packed}
    problems += [
        f"{name}: expected {list(kept[name])} float32, got {list(array.shape)} {array.dtype}"
        for name, array in arrays.items()
        if array.shape != kept[name] or array.dtype != np.float32
    ]
    if problems:
        raise CheckpointError(f"parameters do not fit the config: {some_of(problems)}")
    tensors = []
    for row in family.layout(config):
        names = row.names if family.copies and not config.tie_embeddings else (row.theirs,)
        prefix = family.base_prefix if family.bare else ""
        for name in names:
            tensors += _sources(row, name.removeprefix(prefix), arrays, packed, shapes)
    formats = {matrix.format for matrix in packed.values()} or {"float32"}
    files = {"config.json": {**config_to_hf(config), **config_keys(*formats)}}
    ids = generation_to_hf(config)
    if ids and config.num_decoder_layers and family.keys:  # our own layout keeps them in its config
        files["generation_config.json"] = ids
    return {
        "model.safetensors": lambda file: write_tensors(file, tensors),
        **{name: partial(_write_json, values=values) for name, values in files.items()},
    }


def _sources(
    row: Row,
    name: str,
    arrays: dict[str, Any],
    packed: dict[str, Packed],
    shapes: Mapping[str, Shape],
) -> list[Source]:
    """What to write of one foreign tensor: a matrix and its scale where it is quantised."""
    parts = [packed[ours] for ours in row.ours if ours in packed]
    if parts and parts[0].format != "bfloat16":
        return sources(name, parts)
    shape, join = row.foreign_shape(shapes), partial(row.join, arrays | packed, shapes)
    if not parts:
        return [Source(name, shape, join)]
    return [Source(name, shape, lambda: bfloat16_bits(join()), "BF16")]


def _write_json(file: ChecksumWriter, values: Mapping[str, Any]) -> None:
    file.write((json.dumps(values, indent=2) + "\n").encode())
