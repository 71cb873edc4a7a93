"""Checkpoints: a Hugging Face model directory plus the state of training, saved all or nothing.

    config.json, model.safetensors, …   what transformers and `hf` read
    tokenizer.json, …                   if there is a tokenizer
    training_state.safetensors, .json   optimizer moments; everything else that `--resume` needs
    checkpoint.json                     sizes and checksums of the files above

A directory that someone else wrote has no checkpoint.json and loads as well, unchecked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from llmcore import _core
from llmcore.atomic import (
    ChecksumWriter,
    Content,
    FileContent,
    Listed,
    current_files,
    manifests,
    reason,
    write_files,
)
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError
from llmcore.families import Float32
from llmcore.hf import model_files, read_config
from llmcore.hf_weights import read_state, weight_files
from llmcore.quantized import Quantized
from llmcore.safetensors_io import Array, SafetensorsFile, Source, read_json, write_tensors

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

_STATE = "training_state.json"
_MOMENTS = "training_state.safetensors"


class SavesItself(Protocol):
    """What a tokenizer must be able to do to be part of a checkpoint."""

    def save(self, directory: str | os.PathLike[str]) -> object:
        """Write the tokenizer's files into a directory."""


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """What, beside the weights, decides how training continues, bit for bit.

    Dictionaries hold JSON values: keys are strings, tuples come back as lists, whole numbers of any
    size and floats come back exactly.

    Attributes:
        step: Optimizer updates made.
        moments: Flat float32 arrays of the optimizer, "m" and "v".
        optimizer: The optimizer's other state, such as its dropout seed.
        schedule: State of the learning rate schedule.
        rng: Counters or states of random generators.
        data: The data cursor.
        accumulation_phase: Micro-batches already added to the gradient; 0 between updates.
        best_metric: Best evaluation result so far, or None.
        history: Counters and records that logs go on with.
    """

    step: int
    moments: Mapping[str, Float32] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    schedule: Mapping[str, Any] = field(default_factory=dict)
    rng: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    accumulation_phase: int = 0
    best_metric: float | None = None
    history: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read.

    Attributes:
        config: The architecture.
        format: What its matrices are rounded to in the files; "float32" if to nothing.
        parameters: Yields (name, array or `Quantized`) once; the arrays are views of the files, as
            stored: float32, float16, or the bits of bfloat16 in uint16.
        state: The state of training, or None if only a model was saved.
        files: Where each file is now, by name; tokenizer files among them.
        unchecked: The file of weights whose checksum is not compared yet, if `load` left it so.
    """

    config: ModelConfig
    format: str
    parameters: Iterator[tuple[str, Array | Quantized]]
    state: TrainState | None
    files: Mapping[str, Path]
    unchecked: Listed | None = None


def save(
    directory: str | os.PathLike[str],
    *,
    config: ModelConfig,
    parameters: Mapping[str, Any],
    state: TrainState | None = None,
    tokenizer: SavesItself | None = None,
) -> None:
    """Save a checkpoint; if anything fails, at any moment, the one saved before is kept whole.

    Tensors are streamed: beyond what is passed in, memory for one tensor is used at most. The disk
    needs room for both checkpoints until the new one is complete.

    Args:
        directory: Made if need be. Files of other origin in it are left alone.
        config: The architecture.
        parameters: Every parameter by name, as `hf.save_state` takes them.
        state: The state of training, if it is to be resumed.
        tokenizer: Has `save(directory)`.

    Raises:
        CheckpointError: if parameters do not fit the config or the disk refuses.

    Example:
        >>> from llmcore.parameters import parameter_shapes
        >>> config = ModelConfig.preset("gpt-nano", num_decoder_layers=1)
        >>> parameters = {n: np.ones(s, np.float32) for n, s in parameter_shapes(config).items()}
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, config=config, parameters=parameters, state=TrainState(step=7))
        ...     load(folder).state.step
        7
    """
    files = model_files(config, parameters)
    if state is not None:
        files |= _state_files(state)
    if tokenizer is not None:
        files |= _tokenizer_files(tokenizer)
    write_files(directory, files)


def load(
    directory: str | os.PathLike[str],
    *,
    config: ModelConfig | None = None,
    verify: bool | Literal["later"] = True,
    fresh: Collection[str] = (),
    drop: Collection[str] = (),
) -> Checkpoint:
    """Read a checkpoint; the names, shapes and checksums of everything are checked first.

    Safe while another process saves to the same directory: the result is one of its checkpoints.
    Weights are mapped until they are copied: who cuts a file short in place meanwhile, instead of
    renaming a new one over it as `save` does, ends this process with SIGBUS.

    Args:
        directory: Written by `save`, or a Hugging Face model directory.
        config: Read the weights as those of this architecture; that of config.json if None.
        verify: Read all data once to compare checksums (several GB/s from the page cache); "later"
            leaves that of the weights in `unchecked`, for `copy_parameters` to compare.
        fresh: Patterns of parameters that the files may lack; see `hf.load_state`.
        drop: Patterns of parameters that are not read.

    Returns:
        The checkpoint. Arrays are read-only views of the files where possible.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    directory = Path(directory)
    if not directory.is_dir():
        what = "a file" if directory.exists() else "nothing"
        raise CheckpointError(f"{directory}: expected a directory with a checkpoint, found {what}")
    # A writer may replace files between two looks of ours. Its manifests tell, and we look again.
    failures = 0
    for _ in range(100):
        before = manifests(directory)
        try:
            checkpoint = _load(directory, config, verify, fresh, drop)
            if manifests(directory) == before:
                return checkpoint
        except CheckpointError:
            if manifests(directory) == before:
                failures += 1
                if before[1] is None or failures == 5:  # not for want of a file being renamed
                    raise
        time.sleep(0.01)
    raise CheckpointError(f"{directory}: is saved over faster than it can be read; try again")


def copy_parameters(
    source: Iterable[tuple[str, Array | Quantized]],
    target: Mapping[str, Any],
    unchecked: Listed | None = None,
) -> None:
    """Copy what `Checkpoint.parameters` yields into a model of the same architecture, widened.

    Raises:
        CheckpointError: the checksum of `Checkpoint.unchecked`, which is computed in the same pass,
            is another; then the target may hold anything.
    """
    with _blamed_on(unchecked):
        arrays = {
            name: np.asarray(value, np.float32) if isinstance(value, Quantized) else value
            for name, value in source
        }
    targets = [target[name] for name in arrays]
    staged = [_core.in_place_tensor(tensor.numpy()) for tensor in targets]  # copies, on a GPU
    if unchecked is None:
        _core.widen(list(arrays.values()), staged)
    else:
        unchecked.check(_core.crc32(unchecked.content, 0, list(arrays.values()), staged))
    for here, tensor in zip(staged, targets, strict=True):
        if getattr(tensor, "device", "cpu") != "cpu":
            _core.copy(source=here, target=tensor)


@contextlib.contextmanager
def _blamed_on(unchecked: Listed | None) -> Iterator[None]:
    """What is wrong with a damaged file is that, whatever else it seems to be."""
    try:
        yield
    except CheckpointError:
        if unchecked is not None:
            unchecked.check()
        raise


def exists(directory: Path) -> bool:
    """Whether a checkpoint was ever completed there; a kill during the first leaves a directory."""
    if not directory.is_dir():
        return False
    # Someone may have deleted the manifest, to load what they changed themselves.
    manifest = any(content is not None for content in manifests(directory))
    return manifest or (directory / "config.json").exists()


def _load(
    directory: Path,
    wanted: ModelConfig | None,
    verify: bool | Literal["later"],
    fresh: Collection[str],
    drop: Collection[str],
) -> Checkpoint:
    opened: dict[Path, Listed] = {}
    later = ["model.safetensors"] if verify == "later" else []
    current = current_files(directory, bool(verify), opened, later)
    contents = {path: file.content for path, file in opened.items()}
    if current is None:
        files = {path.name: path for path in directory.iterdir()}
        weights = weight_files(directory)
    else:
        files = current
        weights = [files.get("model.safetensors", directory / "model.safetensors")]
    config, family, format = read_config(
        files.get("config.json", directory / "config.json"), files.get("generation_config.json")
    )
    config = wanted or config
    unchecked = opened.get(weights[0]) if later else None
    with _blamed_on(unchecked):
        parameters = read_state(
            directory, weights, config, family, format=format, fresh=fresh, drop=drop,
            contents=contents,
        )  # fmt: skip
    state = _read_training_state(files, contents) if _STATE in files else None
    return Checkpoint(config, format, parameters, state, files, unchecked)


def _state_files(state: TrainState) -> dict[str, FileContent]:
    values = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    moments = {name: np.asarray(array) for name, array in values.pop("moments").items()}
    for name, array in moments.items():
        if array.dtype != np.float32:
            raise CheckpointError(f"moments: {name}: expected float32, got {array.dtype}")
    sources = [Source(name, a.shape, partial(np.asarray, a)) for name, a in moments.items()]
    try:
        text = json.dumps(values, indent=2, default=_plain)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the training state cannot be saved: {error}") from error
    return {
        _MOMENTS: lambda file: write_tensors(file, sources),
        _STATE: lambda file: file.write(text.encode()),
    }


def _plain(value: Any) -> Any:
    """Turn NumPy's scalars and read-only mappings into what JSON has."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"expected numbers, strings, lists and dicts, got a {type(value).__name__}")


def _read_training_state(files: Mapping[str, Path], contents: Mapping[Path, Content]) -> TrainState:
    path = files[_STATE]
    values = read_json(path)
    known = {f.name for f in dataclasses.fields(TrainState)} - {"moments"}
    if values.keys() != known:
        difference = ", ".join(sorted(values.keys() ^ known))
        raise CheckpointError(f"{path}: its keys are not those of a training state: {difference}")
    if _MOMENTS not in files:
        raise CheckpointError(f"{path}: {_MOMENTS}, which belongs to it, is missing")
    moments = SafetensorsFile(files[_MOMENTS], contents.get(files[_MOMENTS]))
    return TrainState(moments={name: moments.float32(name) for name in moments.entries}, **values)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """Load the tokenizer of a checkpoint; None if it has none.

    Raises:
        DataError: its files are damaged.
    """
    if not checkpoint.files.keys() & {"tokenizer.json", "vocab.json"}:
        return None
    from llmcore.tokenizer.tokenizer import TOKENIZER_FILES, Tokenizer

    files = {name: checkpoint.files[name] for name in TOKENIZER_FILES if name in checkpoint.files}
    if all(path.name == name for name, path in files.items()):
        return Tokenizer.load(next(iter(files.values())).parent)
    import shutil
    import tempfile

    # A save was interrupted in the middle of its renames; the tokenizer wants the final names.
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            shutil.copyfile(path, Path(folder, name))
        return Tokenizer.load(folder)


def _tokenizer_files(tokenizer: SavesItself) -> dict[str, FileContent]:
    import tempfile

    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save(folder)
            contents = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    except OSError as error:
        raise CheckpointError(f"the tokenizer cannot be saved: {reason(error)}") from error
    return {
        name: partial(_write_bytes, content=content) for name, content in sorted(contents.items())
    }


def _write_bytes(file: ChecksumWriter, content: bytes) -> None:
    file.write(content)
