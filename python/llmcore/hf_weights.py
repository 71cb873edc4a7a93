"""Which tensors of foreign files are which parameters; all is checked before anything is read."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

import numpy as np

from llmcore import quantized
from llmcore.atomic import Content, is_file_name
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError
from llmcore.families import Family, Row
from llmcore.parameters import parameter_shapes
from llmcore.quantized import Quantized
from llmcore.safetensors_io import Array, SafetensorsFile, Shape, read_json, widened

# Where a tensor is stored: the file, and its name there.
Stored = tuple[SafetensorsFile, str]


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
    format: str,
    fresh: Collection[str] = (),
    drop: Collection[str] = (),
    contents: Mapping[Path, Content] = MappingProxyType({}),
) -> Iterator[tuple[str, Array | Quantized]]:
    """Do the work of `load_state` for given files; `path` is what errors name.

    Arrays are views of the files, as stored: `widened` makes float32 of them. `format` is what
    config.json says that matrices were rounded to; `contents` has those of the files that are
    mapped already.
    """
    shapes, kept = parameter_shapes(family.widen(config)), parameter_shapes(config)
    rows = family.layout(config)
    opened = [SafetensorsFile(file, contents.get(file)) for file in files]
    stored = _find(path, opened, family, drop)
    needed = [name for name in kept if not _matches(name, fresh)]
    _check_names(path, stored, config, family, rows, shapes, needed, format)

    def tensors() -> Iterator[tuple[str, Array | Quantized]]:
        for row in rows:
            found = [name for name in (*row.names, row.otherwise) if name in stored]
            if found:
                file, name_there = stored[found[0]]
                if quantized.is_stored(file, name_there):
                    upright = row.upright
                    depth = upright.foreign_shape(shapes)[1]
                    yield from upright.split(quantized.read(file, name_there, depth), shapes)
                    continue
                foreign = file.floats(name_there)
            elif row.optional:
                foreign = np.zeros(row.foreign_shape(shapes), np.float32)
            else:
                continue
            for name, tensor in row.split(foreign, shapes):
                if name in kept:
                    yield name, tensor
                elif widened(tensor).any():
                    raise CheckpointError(
                        f"{path}: {found[0]} is not zero, but the model has no {name}; "
                        "to load it with biases, remove the key 'llmcore' from config.json"
                    )

    return tensors()


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _find(
    path: Path, files: Sequence[SafetensorsFile], family: Family, drop: Collection[str]
) -> dict[str, Stored]:
    """Map the foreign name of every tensor in `files`, with its base prefix, to where it is.

    Scales go with what they belong to, under its name.
    """
    stored: dict[str, Stored] = {}
    for file in files:
        for name in file.entries:
            if quantized.is_scale(file, name):
                continue
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

    if not drop:
        return stored

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
    format: str,
) -> None:
    """Compare names, shapes and dtypes with what the model has, and the ties.

    `needed` are our names that must be there.
    """
    covered = {name for row in rows for name in row.ours}
    missing = [name for name in needed if name not in covered]
    misshapen: list[str] = []
    for row in rows:
        found = [name for name in row.names if name in stored]
        instead = row.optional or row.otherwise in stored
        if not found and not instead and any(name in needed for name in row.ours):
            missing.append(row.theirs)
        for name in found:
            file, name_there = stored[name]
            entry, shape = file.entries[name_there], row.foreign_shape(shapes)
            if len(shape) == 2 and not row.batched and quantized.is_stored(file, name_there):
                upright = row.upright.foreign_shape(shapes)
                misshapen += quantized.misfits(file, name_there, upright, format)
            elif not entry.is_float:
                misshapen.append(f"{name} (of dtype {entry.dtype})")
            elif entry.shape != shape:
                misshapen.append(f"{name} (expected {list(shape)}, got {list(entry.shape)})")
    expected = {name for row in rows for name in row.names}
    unexpected = [
        name for name in stored if name not in expected and not re.fullmatch(family.ignored, name)
    ]
    lists = {"missing": missing, "unexpected": unexpected, "misshapen": sorted(misshapen)}
    problems = [f"{len(names)} {kind}: {some_of(names)}" for kind, names in lists.items() if names]
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
    a, b = (_bits(*stored[each]) for each in (name, first))
    if not np.array_equal(a, b):
        advice = "set tie_word_embeddings to false in config.json, or remove the tensor"
        raise CheckpointError(
            f"{path}: {name} differs from {first}, but "
            + (f"the config ties them; {advice}" if head else "they are one tensor in llmcore")
        )


def _bits(file: SafetensorsFile, name: str) -> Array:
    """A tensor, so that others can be compared with it: widened, or codes with their scales."""
    if not quantized.is_stored(file, name):
        return file.float32(name).view(np.uint32)
    return np.asarray(quantized.read(file, name, 2 * file.entries[name].shape[1])).view(np.uint32)


def some_of(names: Sequence[str], limit: int = 8) -> str:
    """List the first few of some names."""
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
