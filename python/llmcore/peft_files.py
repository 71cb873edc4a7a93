"""Adapters in the file layout of the library peft: adapter_config.json, adapter_model.safetensors.

Our names become a family's by its rows, as in `hf`. Where one foreign matrix holds several of ours,
as GPT-2's c_attn holds q, k and v, its one adapter holds ours as blocks: their A below each other,
their B along a diagonal. An adapter of such a matrix that peft trained gives each of our parts a
copy of A and its rows of B, which is the same function.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from llmcore.atomic import current_files, write_files
from llmcore.config import LORA_TARGETS, LoraConfig, ModelConfig, parameter_shapes
from llmcore.errors import CheckpointError, ConfigError
from llmcore.hf import Float32, Row, family_for
from llmcore.safetensors_io import (
    Array,
    SafetensorsFile,
    Shape,
    Source,
    read_json,
    write_tensors,
)
from llmcore.validation import build

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_TASKS = {"decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": None}
# Settings of peft that change what an adapter computes, with the value that we support.
_REFUSED = {
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "lora_bias": False,
    "bias": "none",
    "alora_invocation_tokens": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}


@dataclass(frozen=True)
class Adapter:
    """Adapters as a model takes them.

    Attributes:
        lora: Their config.
        parameters: Our names to float32 arrays: A, B, and whole parameters trained beside them.
    """

    lora: LoraConfig
    parameters: Mapping[str, Float32]


@dataclass(frozen=True)
class _Module:
    """A linear layer of the foreign model: its name, and our linear layers that it holds."""

    name: str
    transposed: bool
    parts: tuple[str, ...]
    rows: tuple[int, ...]  # of each part's weight
    width: int  # in

    def blocks(self) -> Iterator[tuple[str, slice]]:
        """Yield each part with its rows of the module's B."""
        start = 0
        for part, rows in zip(self.parts, self.rows, strict=True):
            yield part, slice(start, start + rows)
            start += rows


def _modules(config: ModelConfig) -> list[_Module]:
    """List the foreign layers that an adapter of ours may stand beside."""
    family = family_for(config)
    shapes = parameter_shapes(family.widen(config))
    every = LoraConfig(rank=1, targets=LORA_TARGETS)
    possible = parameter_shapes(dataclasses.replace(config, lora=every))
    modules = []
    for row in family.layout(config):
        parts = tuple(name.removesuffix(".weight") for name in row.ours)
        if all(f"{part}.lora_a" in possible for part in parts):
            rows = tuple(shapes[name][0] for name in row.ours)
            name = row.theirs.removesuffix(".weight")
            width = shapes[row.ours[0]][1]
            modules.append(_Module(name, row.transposed, parts, rows, width))
    return modules


# --- writing ------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    config: ModelConfig,
    parameters: Mapping[str, Array],
    trained: Sequence[str],
    *,
    base_model: str | None = None,
) -> None:
    """Write the adapters of a model, both files or neither.

    Args:
        path: A directory of their own, made if absent.
        config: The model's, with `lora`.
        parameters: Every parameter by our name.
        trained: Names of whole parameters that go with the adapters.
        base_model: Name of the model they belong to.

    Raises:
        CheckpointError: if the disk refuses, or other files were saved in this directory.
    """
    assert config.lora is not None
    others = set(current_files(Path(path), verify=False) or {}) - {_CONFIG, _WEIGHTS}
    if others:
        raise CheckpointError(
            f"{path}: holds {', '.join(sorted(others))}, which saving adapters here would remove; "
            "give them a directory of their own"
        )
    base = dataclasses.replace(config, lora=None)
    modules = _modules(base)
    adapted = [m for m in modules if any(f"{part}.lora_a" in parameters for part in m.parts)]
    counts = {m.name: sum(f"{part}.lora_a" in parameters for part in m.parts) for m in adapted}
    sources = []
    for module in adapted:
        rank = counts[module.name] * config.lora.rank
        name, join = _PREFIX + module.name, partial(_join, module, parameters, config.lora.rank)
        shape_a, shape_b = (rank, module.width), (sum(module.rows), rank)
        sources.append(Source(f"{name}.lora_A.weight", shape_a, lambda join=join: join()[0]))  # type: ignore[misc]
        sources.append(Source(f"{name}.lora_B.weight", shape_b, lambda join=join: join()[1]))  # type: ignore[misc]
    rows = _rows_of(base, trained)
    shapes = parameter_shapes(family_for(base).widen(base))
    sources += [
        Source(
            _PREFIX + row.theirs, row.foreign_shape(shapes), partial(row.join, parameters, shapes)
        )
        for row in rows
    ]
    values = _config_values(config, modules, counts)
    values["base_model_name_or_path"] = base_model
    values["modules_to_save"] = sorted({row.theirs.rpartition(".")[0] for row in rows}) or None
    text = json.dumps(values, indent=2) + "\n"
    write_files(
        path,
        {
            _WEIGHTS: lambda file: write_tensors(file, sources),
            _CONFIG: lambda file: file.write(text.encode()),
        },
    )


def _rows_of(config: ModelConfig, names: Sequence[str]) -> list[Row]:
    """List the rows of a model that hold any of the parameters `names`."""
    return [row for row in family_for(config).layout(config) if set(row.ours) & set(names)]


def _join(module: _Module, parameters: Mapping[str, Array], rank: int) -> tuple[Array, Array]:
    """Build A and B of a module from those of its parts."""
    present = [part for part in module.parts if f"{part}.lora_a" in parameters]
    a = np.concatenate([np.asarray(parameters[f"{part}.lora_a"]) for part in present])
    b = np.zeros((sum(module.rows), len(a)), np.float32)
    for part, rows in module.blocks():
        if part in present:
            first = present.index(part) * rank
            b[rows, first : first + rank] = parameters[f"{part}.lora_b"]
    return a, b


def _config_values(
    config: ModelConfig, modules: Sequence[_Module], counts: Mapping[str, int]
) -> dict[str, Any]:
    lora = config.lora
    assert lora is not None
    targets = {name: _shortest_suffix(name, counts, modules) for name in counts}
    least = min(counts.values())
    larger = {targets[name]: count for name, count in counts.items() if count != least}
    conv1d = {module.transposed for module in modules if module.name in counts}
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if config.num_labels else _TASKS[config.kind],
        "r": least * lora.rank,
        "lora_alpha": _whole(least * lora.alpha),
        "lora_dropout": lora.dropout,
        "target_modules": sorted(set(targets.values())),
        "rank_pattern": {name: count * lora.rank for name, count in larger.items()},
        "alpha_pattern": {name: _whole(count * lora.alpha) for name, count in larger.items()},
        "bias": "none",
        "fan_in_fan_out": conv1d == {True},
        "inference_mode": True,
        "llmcore": dataclasses.asdict(lora),
    }


def _whole(value: float) -> float:
    """The number as an int where it is one: peft writes alpha so."""
    return int(value) if value == int(value) else value


def _shortest_suffix(name: str, adapted: Mapping[str, int], modules: Sequence[_Module]) -> str:
    """Find the end of a module's name that only adapted modules share: "q_proj", "attn.c_proj"."""
    pieces = name.split(".")
    for length in range(1, len(pieces)):
        suffix = ".".join(pieces[-length:])
        sharing = [m.name for m in modules if m.name.endswith(f".{suffix}")]
        if len({adapted.get(other) for other in sharing} | {adapted[name]}) == 1:
            return suffix
    return name


# --- reading ------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str], config: ModelConfig) -> Adapter:
    """Read adapters for a model, all checked before this returns.

    Args:
        path: The directory.
        config: The model's, without adapters.

    Raises:
        CheckpointError: if a file is missing or damaged, does not fit the model, or asks for what
            is not supported.
    """
    path = Path(path)
    files = current_files(path) or {}
    values = read_json(files.get(_CONFIG, path / _CONFIG))
    file = SafetensorsFile(files.get(_WEIGHTS, path / _WEIGHTS))
    _check_config(path, values)
    modules = {module.name: module for module in _modules(config)}
    whole = {row.theirs: row for row in _rows_of(config, list(parameter_shapes(config)))}
    halves, rows = _find(path, file, modules, whole, config)
    _check_complete(path, values, modules, halves)
    lora, parameters = _split(path, values, modules, halves)
    shapes = parameter_shapes(family_for(config).widen(config))
    kept = parameter_shapes(config)
    for row, array in rows:
        parameters |= {name: part for name, part in row.split(array, shapes) if name in kept}
    return Adapter(lora, parameters)


def _check_config(path: Path, values: Mapping[str, Any]) -> None:
    kind = values.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type: only 'LORA' is supported, got {kind!r}")
    for name, supported in _REFUSED.items():
        if values.get(name, supported) not in (supported, None):
            raise CheckpointError(
                f"{path}: {name}: only {supported!r} is supported, got {values[name]!r}"
            )


def _find(
    path: Path,
    file: SafetensorsFile,
    modules: Mapping[str, _Module],
    whole: Mapping[str, Row],
    config: ModelConfig,
) -> tuple[dict[str, dict[str, Float32]], list[tuple[Row, Float32]]]:
    """Sort the tensors of a file: module -> {"A": …, "B": …}; and rows stored whole."""
    halves: dict[str, dict[str, Float32]] = {}
    rows: list[tuple[Row, Float32]] = []
    problems = []
    shapes = parameter_shapes(family_for(config).widen(config))
    base = family_for(config).base_prefix
    bare = not any(name.startswith(_PREFIX + base) for name in file.entries)
    for stored in file.entries:
        name = stored.removeprefix(_PREFIX)
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", name)
        inner = match.group(1) if match else name
        if bare and inner not in modules and inner not in whole:
            inner = base + inner
        if match and inner in modules:
            halves.setdefault(inner, {})[match.group(2)] = file.float32(stored)
        elif inner in whole and not match:
            rows.append((whole[inner], file.float32(stored)))
            expected = whole[inner].foreign_shape(shapes)
            if file.entries[stored].shape != expected:
                got = list(file.entries[stored].shape)
                problems.append(f"{stored}: expected {list(expected)}, got {got}")
        else:
            problems.append(f"{stored}: the model has no such layer")
    for name, pair in halves.items():
        module = modules[name]
        a, b = (pair.get(half, np.zeros((0, 0), np.float32)) for half in "AB")
        rank = len(a)
        if a.shape != (rank, module.width) or b.shape != (sum(module.rows), rank) or rank == 0:
            problems.append(
                f"{name}: expected A [r, {module.width}] and B [{sum(module.rows)}, r], "
                f"got {list(a.shape)} and {list(b.shape)}"
            )
    if not halves:
        problems.append("there is no adapter in it")
    if problems:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(problems[:8])}")
    return halves, rows


def _check_complete(
    path: Path,
    values: Mapping[str, Any],
    modules: Mapping[str, _Module],
    halves: Mapping[str, Any],
) -> None:
    """Compare with the targets the config lists, where it says so plainly."""
    targets = values.get("target_modules")
    if not isinstance(targets, list) or any(
        values.get(name) for name in ("layers_to_transform", "exclude_modules")
    ):
        return
    missing = [
        name
        for name in modules
        if name not in halves and any(name == t or name.endswith(f".{t}") for t in targets)
    ]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} adapters are missing: {missing[0]}, …")


def _scale(path: Path, values: Mapping[str, Any], ranks: Mapping[str, int]) -> float:
    """The one factor of all adapters, alpha / r; for rank-stabilised ones alpha / sqrt(r)."""
    patterns = values.get("alpha_pattern") or {}
    scales = {}
    for name, rank in ranks.items():
        matching = [key for key in patterns if re.match(rf"(.*\.)?({key})$", name)]
        alpha = patterns[matching[0]] if matching else values.get("lora_alpha", 8)
        scales[name] = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
    name, scale = next(iter(scales.items()))
    for other, its in scales.items():
        if not math.isclose(its, scale):
            raise CheckpointError(
                f"{path}: all adapters must have one scale alpha / r, "
                f"{name} has {scale:g}, {other} has {its:g}"
            )
    return float(scale)


def _split(
    path: Path,
    values: Mapping[str, Any],
    modules: Mapping[str, _Module],
    halves: Mapping[str, Mapping[str, Float32]],
) -> tuple[LoraConfig, dict[str, Float32]]:
    """Give each of our parts its A and B."""
    ranks = {name: len(pair["A"]) for name, pair in halves.items()}
    scale = _scale(path, values, ranks)
    lora = _own_config(path, values)
    parameters: dict[str, Float32] = {}
    for name, pair in halves.items():
        parts = _own_blocks(modules[name], pair, lora, scale) if lora else None
        if parts is None:
            lora = None
            break
        parameters |= parts
    if lora is not None:
        return lora, parameters

    rank = max(ranks.values())
    for name, pair in halves.items():
        for part, rows in modules[name].blocks():
            # Zeros on both sides are not trained: what is padded stays of its rank.
            more = ((0, 0), (0, rank - ranks[name]))
            parameters[f"{part}.lora_a"] = np.pad(pair["A"], more[::-1])
            parameters[f"{part}.lora_b"] = np.pad(pair["B"][rows], more)
    found = {name.split(".")[-2] for name in parameters}
    fields = {
        "rank": rank,
        "alpha": scale * rank,
        "dropout": values.get("lora_dropout", 0.0),
        "targets": [target for target in LORA_TARGETS if target in found],
    }
    return _built(path, fields), parameters


def _own_config(path: Path, values: Mapping[str, Any]) -> LoraConfig | None:
    """Our config, where we wrote the file."""
    ours = values.get("llmcore")
    return _built(path, ours) if isinstance(ours, dict) else None


def _built(path: Path, fields: Mapping[str, Any]) -> LoraConfig:
    try:
        return build(LoraConfig, fields)
    except ConfigError as error:
        raise CheckpointError(f"{path / _CONFIG}: {error}") from error


def _own_blocks(
    module: _Module, pair: Mapping[str, Float32], lora: LoraConfig, scale: float
) -> dict[str, Float32] | None:
    """Undo `_join`; None if it is not what `_join` makes of `lora`, since the file was edited."""
    present = [part for part in module.parts if part.rpartition(".")[2] in lora.targets]
    if len(pair["A"]) != len(present) * lora.rank or not math.isclose(
        scale, lora.alpha / lora.rank
    ):
        return None
    parameters: dict[str, Float32] = {}
    for part, rows in module.blocks():
        if part in present:
            first = present.index(part) * lora.rank
            columns = slice(first, first + lora.rank)
            parameters[f"{part}.lora_a"] = pair["A"][columns]
            parameters[f"{part}.lora_b"] = pair["B"][rows, columns]
    a, b = _join(module, parameters, lora.rank)
    return parameters if np.array_equal(b, pair["B"]) else None


__all__ = ["Adapter", "Shape", "load", "save"]
