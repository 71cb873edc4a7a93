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
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.atomic import FileContent, Listed, current_files, write_files
from llmcore.config import LORA_TARGETS, LoraConfig, ModelConfig
from llmcore.errors import CheckpointError, ConfigError
from llmcore.hf import family_for
from llmcore.parameters import parameter_shapes
from llmcore.safetensors_io import Array, SafetensorsFile, Shape, Source, read_json, write_tensors
from llmcore.validation import build

if TYPE_CHECKING:
    from llmcore.families import Float32, Row

Halves = dict[str, "Float32"]  # "A" and "B" of one module

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OURS = "llmcore_adapter.json"  # peft warns of keys it does not know, so ours have their own file
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
    out: tuple[int, ...]  # of each part
    width: int  # in

    def present(self, targets: Sequence[str]) -> list[str]:
        """List the parts that are targets."""
        return [part for part in self.parts if part.rpartition(".")[2] in targets]

    def rows(self) -> Iterator[tuple[str, slice]]:
        """Yield each part with its rows of the module's B."""
        start = 0
        for part, out in zip(self.parts, self.out, strict=True):
            yield part, slice(start, start + out)
            start += out

    def blocks(self, lora: LoraConfig) -> Iterator[tuple[str, slice, slice]]:
        """Yield each part that is a target with its rows and columns of B, if those are blocks."""
        present = self.present(lora.targets)
        for part, rows in self.rows():
            if part in present:
                first = present.index(part) * lora.rank
                yield part, rows, slice(first, first + lora.rank)


@dataclass(frozen=True)
class _Layout:
    """What the files of a model without adapters have: layers, and tensors as a whole."""

    modules: Mapping[str, _Module]
    rows: Mapping[str, Row]
    shapes: Mapping[str, Shape]  # of our parameters, absent biases included
    base_prefix: str

    @classmethod
    def of(cls, config: ModelConfig) -> _Layout:
        base = dataclasses.replace(config, lora=None)
        family = family_for(base)
        shapes = parameter_shapes(family.widen(base))
        every = LoraConfig(rank=1, targets=LORA_TARGETS)
        adaptable = parameter_shapes(dataclasses.replace(base, lora=every))
        rows = {row.theirs: row for row in family.layout(base)}
        modules = {}
        for row in rows.values():
            parts = tuple(name.removesuffix(".weight") for name in row.ours)
            if all(f"{part}.lora_a" in adaptable for part in parts):
                name = row.theirs.removesuffix(".weight")
                out = tuple(shapes[weight][0] for weight in row.ours)
                width = shapes[row.ours[0]][1]
                modules[name] = _Module(name, row.transposed, parts, out, width)
        return cls(modules, rows, shapes, family.base_prefix)

    def whole_module(self, name: str) -> str:
        """Name what peft saves whole to save a tensor: its layer, or all of a head."""
        head = not name.startswith(self.base_prefix)
        return name.partition(".")[0] if head else name.rpartition(".")[0]


# --- writing ------------------------------------------------------------------------------------


def save(
    path: str | os.PathLike[str],
    config: ModelConfig,
    parameters: Mapping[str, Array],
    trained: Sequence[str],
    *,
    base_model: str | None = None,
) -> None:
    """Write the adapters of a model, all files or none.

    Args:
        path: A directory of their own, made if absent.
        config: The model's, with `lora`.
        parameters: Every parameter by our name.
        trained: Names of whole parameters that go with the adapters.
        base_model: Name of the model they belong to.

    Raises:
        CheckpointError: if the disk refuses, or other files were saved in this directory.
    """
    lora = config.lora
    if lora is None:
        raise ConfigError("peft_files.save: the config has no adapters")
    others = set(current_files(Path(path), verify=False) or {}) - {_CONFIG, _WEIGHTS, _OURS}
    if others:
        raise CheckpointError(
            f"{path}: holds {', '.join(sorted(others))}, which saving adapters here would remove; "
            "give them a directory of their own"
        )
    layout = _Layout.of(config)
    adapted = {m: n for m in layout.modules.values() if (n := len(m.present(lora.targets)))}
    sources = []
    for module, count in adapted.items():
        rank, name = count * lora.rank, _PREFIX + module.name
        for half, shape in {"A": (rank, module.width), "B": (sum(module.out), rank)}.items():
            array = partial(_join, module, parameters, lora, half)
            sources.append(Source(f"{name}.lora_{half}.weight", shape, array))
    rows = [row for row in layout.rows.values() if set(row.ours) & set(trained)]
    for row in rows:
        join = partial(row.join, parameters, layout.shapes)
        sources.append(Source(_PREFIX + row.theirs, row.foreign_shape(layout.shapes), join))
    values = _config_values(config, lora, layout, {m.name: n for m, n in adapted.items()})
    values["base_model_name_or_path"] = base_model
    values["modules_to_save"] = sorted({layout.whole_module(row.theirs) for row in rows}) or None
    files: dict[str, FileContent] = {
        _WEIGHTS: lambda file: write_tensors(file, sources),
        _CONFIG: lambda file: file.write(_json(values)),
        _OURS: lambda file: file.write(_json(dataclasses.asdict(lora))),
    }
    write_files(path, files)


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2) + "\n").encode()


def _join(module: _Module, parameters: Mapping[str, Array], lora: LoraConfig, half: str) -> Array:
    """Build A or B of a module from those of its parts."""
    present = module.present(lora.targets)
    if half == "A":
        return np.concatenate([np.asarray(parameters[f"{part}.lora_a"]) for part in present])
    b = np.zeros((sum(module.out), len(present) * lora.rank), np.float32)
    for part, rows, columns in module.blocks(lora):
        b[rows, columns] = parameters[f"{part}.lora_b"]
    return b


def _config_values(
    config: ModelConfig, lora: LoraConfig, layout: _Layout, counts: Mapping[str, int]
) -> dict[str, Any]:
    """Say in peft's words what was written; `counts` are the parts in each adapted module."""
    targets = {name: _shortest_suffix(name, counts, layout) for name in counts}
    least = min(counts.values())
    larger = {targets[name]: count for name, count in counts.items() if count != least}
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
        "fan_in_fan_out": all(layout.modules[name].transposed for name in counts),
        "inference_mode": True,
    }


def _whole(value: float) -> float:
    """Write a whole number without a fraction, as peft does."""
    return int(value) if value == int(value) else value


def _shortest_suffix(name: str, counts: Mapping[str, int], layout: _Layout) -> str:
    """Find the end of a name that only modules adapted alike share: "q_proj", "attn.c_proj"."""
    others = [row.removesuffix(".weight") for row in layout.rows if row.endswith(".weight")]
    pieces = name.split(".")
    for length in range(1, len(pieces)):
        suffix = ".".join(pieces[-length:])
        sharing = {counts.get(other) for other in others if other.endswith(f".{suffix}")}
        if sharing == {counts[name]}:
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
    opened: dict[Path, Listed] = {}
    files = current_files(path, opened=opened) or {}
    values = read_json(files.get(_CONFIG, path / _CONFIG))
    weights = files.get(_WEIGHTS, path / _WEIGHTS)
    file = SafetensorsFile(weights, opened[weights].content if weights in opened else None)
    _check_config(path, values)
    layout, kept = _Layout.of(config), parameter_shapes(config)
    halves, whole = _find(path, file, layout)
    _check_complete(path, values, layout, halves)
    ours = files.get(_OURS, path / _OURS)
    own = _lora_config(ours, read_json(ours)) if ours.exists() else None
    lora, parameters = _split(path, values, own, layout, halves)
    for name, array in whole.items():
        parts = layout.rows[name].split(array, layout.shapes)
        parameters |= {part: values for part, values in parts if part in kept}
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
    path: Path, file: SafetensorsFile, layout: _Layout
) -> tuple[dict[str, Halves], dict[str, Float32]]:
    """Sort the tensors of a file: A and B by module; by row what is stored whole."""
    halves: dict[str, Halves] = {}
    whole: dict[str, Float32] = {}
    problems = []
    bare = not any(name.startswith(_PREFIX + layout.base_prefix) for name in file.entries)
    for stored, entry in file.entries.items():
        name = stored.removeprefix(_PREFIX)
        match = re.fullmatch(r"(.+)\.lora_(A|B)\.weight", name)
        known: Mapping[str, Any] = layout.modules if match else layout.rows
        name = match[1] if match else name
        if bare and name not in known:
            name = layout.base_prefix + name
        if name not in known or not entry.is_float:
            problems.append(f"{stored}: the model has no such layer")
        elif match:
            halves.setdefault(name, {})[match[2]] = file.float32(stored)
        else:
            whole[name] = file.float32(stored)
            expected = layout.rows[name].foreign_shape(layout.shapes)
            if entry.shape != expected:
                problems.append(f"{stored}: expected {list(expected)}, got {list(entry.shape)}")
    for name, pair in halves.items():
        width, out = layout.modules[name].width, sum(layout.modules[name].out)
        a, b = (pair.get(half, np.zeros((0, 0), np.float32)) for half in "AB")
        if len(a) == 0 or a.shape != (len(a), width) or b.shape != (out, len(a)):
            problems.append(
                f"{name}: expected A [r, {width}] and B [{out}, r], "
                f"got {list(a.shape)} and {list(b.shape)}"
            )
    if not halves:
        problems.append("there is no adapter in it")
    if problems:
        raise CheckpointError(f"{path}: does not fit the model: {'; '.join(problems[:8])}")
    return halves, whole


def _check_complete(
    path: Path, values: Mapping[str, Any], layout: _Layout, halves: Mapping[str, Halves]
) -> None:
    """Compare with the targets the config lists, where it says so plainly."""
    targets = values.get("target_modules")
    partly = values.get("layers_to_transform") or values.get("exclude_modules")
    if not isinstance(targets, list) or partly:
        return
    missing = [
        name
        for name in layout.modules
        if name not in halves and any(f".{name}".endswith(f".{target}") for target in targets)
    ]
    if missing:
        raise CheckpointError(
            f"{path}: {_WEIGHTS} lacks {len(missing)} adapters that target_modules names, "
            f"{missing[0]} for one"
        )


def _scale(path: Path, values: Mapping[str, Any], ranks: Mapping[str, int]) -> float:
    """The one factor of all adapters, alpha / r; for rank-stabilised ones alpha / sqrt(r)."""
    patterns = values.get("alpha_pattern") or {}
    scales: dict[str, float] = {}
    try:
        for name, rank in ranks.items():
            matching = [key for key in patterns if re.match(rf"(.*\.)?({key})$", name)]
            alpha = patterns[matching[0]] if matching else values.get("lora_alpha", 8)
            scales[name] = alpha / (math.sqrt(rank) if values.get("use_rslora") else rank)
    except (TypeError, re.error) as error:
        raise CheckpointError(f"{path / _CONFIG}: lora_alpha, alpha_pattern: {error}") from error
    name, scale = next(iter(scales.items()))
    for other, its in scales.items():
        if not math.isclose(its, scale):
            raise CheckpointError(
                f"{path}: all adapters must have one scale alpha / r, "
                f"{name} has {scale:g}, {other} has {its:g}"
            )
    return scale


def _split(
    path: Path,
    values: Mapping[str, Any],
    own: LoraConfig | None,
    layout: _Layout,
    halves: Mapping[str, Halves],
) -> tuple[LoraConfig, dict[str, Float32]]:
    """Give each of our parts its A and B; `own` is what we wrote down, if we wrote the files."""
    ranks = {name: len(pair["A"]) for name, pair in halves.items()}
    scale = _scale(path, values, ranks)
    dropout = values.get("lora_dropout", 0.0)
    if own and own.dropout == dropout and math.isclose(scale, own.alpha / own.rank):
        blocks = _blocks(own, layout, halves)
        if blocks is not None:
            return own, blocks
    rank = max(ranks.values())
    parameters: dict[str, Float32] = {}
    for name, pair in halves.items():
        # Padded with zeros on both sides: neither is trained, and the rank is what it was.
        more = (0, rank - ranks[name])
        for part, rows in layout.modules[name].rows():
            parameters[f"{part}.lora_a"] = np.pad(pair["A"], (more, (0, 0)))
            parameters[f"{part}.lora_b"] = np.pad(pair["B"][rows], ((0, 0), more))
    found = {name.split(".")[-2] for name in parameters}
    fields = {
        "rank": rank,
        "alpha": scale * rank,
        "dropout": dropout,
        "targets": [target for target in LORA_TARGETS if target in found],
    }
    return _lora_config(path / _CONFIG, fields), parameters


def _blocks(
    lora: LoraConfig, layout: _Layout, halves: Mapping[str, Halves]
) -> dict[str, Float32] | None:
    """Undo `_join`; None if the tensors are not what it makes of `lora`."""
    parameters: dict[str, Float32] = {}
    for name, pair in halves.items():
        module = layout.modules[name]
        if len(pair["A"]) != len(module.present(lora.targets)) * lora.rank:
            return None
        for part, rows, columns in module.blocks(lora):
            parameters[f"{part}.lora_a"] = pair["A"][columns]
            parameters[f"{part}.lora_b"] = pair["B"][rows, columns]
        if not np.array_equal(_join(module, parameters, lora, "B"), pair["B"]):
            return None
    return parameters


def _lora_config(file: Path, fields: Mapping[str, Any]) -> LoraConfig:
    try:
        return build(LoraConfig, fields)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
