"""Reading and writing of safetensors files: streamed, checked, and precise about what is wrong.

The format is eight bytes of header length, a JSON header, and the raw data of every tensor
(https://huggingface.co/docs/safetensors). It is handled here rather than by the `safetensors`
library for three reasons: a checkpoint is written tensor by tensor, checksummed in the same pass,
without a second copy in memory; bfloat16, which NumPy lacks, is read; and a file that is not what
it should be is told apart (truncated, a git-lfs pointer, an HTML page). The tests hold both
implementations equal.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmcore.atomic import ChecksumWriter, Content, reason
from llmcore.errors import CheckpointError
from llmcore.identify import what_it_is

Array = NDArray[Any]
Shape = tuple[int, ...]

# Names in the format -> NumPy's, little-endian. bfloat16 is read as the upper half of a float32.
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "|i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "|u1",
    "BOOL": "|b1",
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # the limit of the reference implementation


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: its format dtype, shape, and byte range in the file."""

    dtype: str
    shape: Shape
    begin: int
    end: int

    @property
    def is_float(self) -> bool:
        """Whether `SafetensorsFile.floats` reads it."""
        return self.dtype in _FLOATS


@dataclass(frozen=True)
class Source:
    """One tensor to be written; `array()` is called only when its turn comes.

    bfloat16 is given as its bits in uint16.
    """

    name: str
    shape: Shape
    array: Callable[[], Array]
    dtype: str = "F32"


class SafetensorsFile:
    """A safetensors file, opened for reading; the header is checked whole, data is mapped.

    Args:
        path: The file.
        content: Its content, where it is mapped already.

    Raises:
        CheckpointError: saying what the file is instead, or where it breaks the format.
    """

    def __init__(self, path: str | os.PathLike[str], content: Content | None = None) -> None:
        self.path = Path(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.entries = _read_header(file, size, self.path)
            whole = np.memmap(self.path, mode="r") if content is None else content
            self._bytes: Array = np.frombuffer(whole, np.uint8)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {reason(error)}") from error

    def float32(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32: a read-only view of the file, or a widened copy.

        float16 and bfloat16 widen exactly; float64 is rounded.

        Raises:
            CheckpointError: for a tensor of whole numbers.
        """
        return widened(self.floats(name))

    def floats(self, name: str) -> Array:
        """Return a tensor as `widened` takes it: as stored, but for float64, which is rounded.

        Raises:
            CheckpointError: for a tensor of whole numbers.
        """
        entry = self.entries[name]
        if not entry.is_float:
            raise CheckpointError(
                f"{self.path}: {name}: expected one of {', '.join(_FLOATS)}, got {entry.dtype}"
            )
        raw = self.raw(name)
        return raw.astype(np.float32) if entry.dtype == "F64" else raw

    def raw(self, name: str) -> Array:
        """Return a tensor as stored, a read-only view; bfloat16 comes as its bits in uint16."""
        entry = self.entries[name]
        data = self._bytes[entry.begin : entry.end]
        dtype = np.dtype(_DTYPES[entry.dtype])
        if data.ctypes.data % dtype.itemsize:
            data = data.copy()  # another writer's header need not keep the data aligned
        return data.view(dtype).reshape(entry.shape)


def widened(array: Array) -> NDArray[np.float32]:
    """Return floats of a file as float32; those in uint16 are the bits of bfloat16.

    Example:
        >>> widened(np.array([0x3F80, 0xC000], np.uint16)).tolist()
        [1.0, -2.0]
    """
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _read_header(file: BinaryIO, size: int, path: Path) -> dict[str, Entry]:
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) < 8 or length > min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{path}: {what_it_is(path, head + file.read(1024), size)}")
    header = parse_json(file.read(length), path, what="its safetensors header")
    header.pop("__metadata__", None)
    start, data_size = 8 + length, size - 8 - length
    entries = {name: _entry(name, value, start, path) for name, value in header.items()}
    position = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise CheckpointError(f"{path}: corrupt: {name} overlaps its neighbour or leaves a gap")
        position = entry.end
    expected = position - start
    if expected > data_size:
        raise CheckpointError(
            f"{path}: truncated: its header promises {expected} bytes of data, "
            f"{data_size} are there; copy or download it again"
        )
    if expected < data_size:
        raise CheckpointError(
            f"{path}: corrupt: {data_size - expected} bytes follow the last tensor"
        )
    return entries


def _entry(name: str, value: Any, start: int, path: Path) -> Entry:
    def natural(numbers: Any) -> bool:
        return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)

    if not isinstance(value, dict) or not name.isprintable():
        raise CheckpointError(f"{path}: corrupt: the header has a broken entry {name!r}")
    fields: dict[str, Any] = {"dtype": None, "shape": None, "data_offsets": None, **value}
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: {name}: unknown dtype {dtype!r}; known: {', '.join(_DTYPES)}"
        )
    if not natural(shape) or not natural(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{path}: corrupt: {name} has no valid shape or data_offsets")
    if len(shape) > 8 or max(shape, default=0) >= 2**40:
        raise CheckpointError(f"{path}: corrupt: {name} has the impossible shape {shape}")
    begin, end = offsets
    expected = math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: corrupt: {name} of shape {shape} and dtype {dtype} needs {expected} bytes, "
            f"its data_offsets span {end - begin}"
        )
    return Entry(dtype, tuple(shape), start + begin, start + end)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        CheckpointError: if it is missing, something else, or malformed.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
    if not data.lstrip().startswith(b"{"):
        raise CheckpointError(f"{path}: {what_it_is(path, data[:1024], len(data))}")
    return parse_json(data, path)


def parse_json(data: bytes, path: Path, what: str = "it") -> dict[str, Any]:
    """Parse a JSON object in which no key occurs twice.

    Raises:
        CheckpointError: naming `path` and the place of the mistake.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) != len(pairs):
            raise ValueError("a key occurs twice")
        return values

    try:
        values = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {what} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: {what} is a JSON {type(values).__name__}, not an object")
    return values


def write_tensors(file: ChecksumWriter, sources: Sequence[Source]) -> None:
    """Write a whole safetensors file, one tensor in memory at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the format
    position = 0
    for source in sources:
        end = position + np.dtype(_DTYPES[source.dtype]).itemsize * math.prod(source.shape)
        entry = {"dtype": source.dtype, "shape": source.shape, "data_offsets": [position, end]}
        header[source.name] = entry
        position = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)  # the data starts on a cache line
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for source in sources:
        array = np.ascontiguousarray(source.array(), dtype=_DTYPES[source.dtype])
        if array.shape != source.shape:
            raise CheckpointError(
                f"{source.name}: expected shape {source.shape}, got {array.shape}"
            )
        file.write(array.reshape(-1).view(np.uint8).data)
