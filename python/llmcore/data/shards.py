"""The files of a tokenized data set: flat shards of ids and the index that describes them.

A data set is a directory. `train-00000.bin`, … and `val-00000.bin`, … hold ids, little-endian
uint16 or uint32, end to end; `<split>-documents.bin` the place of each document's first token,
little-endian uint64; `tokenizer.json` what the ids mean; `index.json` the counts and checksums.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from llmcore.atomic import sync_directory, write_synced
from llmcore.errors import DataError

#: Tokens of a shard, at most: 256 MiB of 16-bit ids.
SHARD_TOKENS = 1 << 27

IdArray = NDArray[np.integer[Any]]

_INDEX = "index.json"
_FORMAT = "llmcore-shards"
_VERSION = 1


def has_index(directory: Path) -> bool:
    """Return whether `directory` holds a data set."""
    return (directory / _INDEX).exists()


def load_index(directory: Path) -> dict[str, Any]:
    """Read and check the index of the data set in `directory`.

    Raises:
        DataError: There is none, or it is not one of ours.
    """
    path = directory / _INDEX
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"{directory} holds no tokenized data set (there is no {_INDEX}); "
            "make one with `llmcore tokenize`"
        ) from None
    except NotADirectoryError:
        raise DataError(
            f"{directory} is a file, not a tokenized data set; make one of it with "
            "`llmcore tokenize`"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); tokenize again") from None
    if not isinstance(index, dict) or index.get("format") != _FORMAT:
        raise DataError(f"{path}: not the index of a tokenized data set")
    if index.get("version") != _VERSION:
        raise DataError(
            f"{path}: format version {index.get('version')!r} is not {_VERSION}, the one this "
            "release reads; tokenize again"
        )
    return index


def write_index(directory: Path, **facts: Any) -> None:
    """Write the index that `load_index` reads."""
    index = {"format": _FORMAT, "version": _VERSION, **facts}
    write_synced(directory / _INDEX, (json.dumps(index, indent=1) + "\n").encode())


def map_file(directory: Path, entry: dict[str, Any], dtype: np.dtype[Any], verify: bool) -> IdArray:
    """Map a file of `entry["tokens"]` numbers, read-only.

    Raises:
        DataError: It is missing, of another size than its index says, or (if `verify`) its
            checksum differs.
    """
    path = directory / entry["file"]
    expected = entry["tokens"] * dtype.itemsize
    try:
        size = path.stat().st_size
        if size != expected:
            what = "truncated" if size < expected else "too long"
            raise DataError(
                f"{path}: {what}: expected {expected} bytes, got {size}; "
                "copy it again, or tokenize again"
            )
        ids: IdArray = np.asarray(np.memmap(path, dtype, mode="r"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if verify and zlib.crc32(ids.data) != entry["crc32"]:
        raise DataError(
            f"{path}: corrupted: its checksum differs; copy it again, or tokenize again"
        )
    return ids


@contextlib.contextmanager
def staging(directory: Path) -> Iterator[Path]:
    """Yield a directory inside `directory` to write to, and remove it in the end.

    What a killed process left of its own is removed too; only one at a time may write.

    Raises:
        DataError: For any `OSError` on the way: no permission, a full disk.
    """
    existed = directory.exists()
    stage = directory / f".writing-{os.getpid()}"
    for left in directory.glob(".writing-*"):
        shutil.rmtree(left, ignore_errors=True)
    try:
        stage.mkdir(parents=True)
        yield stage
    except OSError as error:
        raise DataError(f"{directory}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):  # not empty: the data set is there
                directory.rmdir()


def publish(stage: Path, directory: Path) -> None:
    """Move the complete files of `stage` into `directory`, the index last.

    A data set that was there goes: the shards its index names are removed. A crash between two of
    the moves is found by `load_index` or `map_file`.
    """
    stale: set[str] = set()
    if has_index(directory):
        with contextlib.suppress(DataError):
            for split in load_index(directory)["splits"].values():
                entries = (*split["shards"], split["document_starts"])
                stale |= {Path(entry["file"]).name for entry in entries}
        (directory / _INDEX).unlink()
    names = sorted(path.name for path in stage.iterdir())
    for name in sorted(names, key=lambda name: name == _INDEX):
        (stage / name).replace(directory / name)
    for name in stale.difference(names):
        (directory / name).unlink(missing_ok=True)
    sync_directory(directory)


class SplitWriter:
    """Writes the ids of one split into shards, and counts. A context: it closes its file."""

    def __init__(self, directory: Path, name: str, dtype: np.dtype[Any], limit: int) -> None:
        self.tokens = 0
        self._directory = directory
        self._name = name
        self._dtype = dtype
        self._limit = limit
        self._shards: list[dict[str, Any]] = []
        self._stream: BinaryIO | None = None
        self._max_id = -1
        self._document_starts = array("Q")

    def write(self, ids: IdArray, *, new_document: bool) -> None:
        """Append ids, in shards of exactly the limit but for the last."""
        if new_document:
            self._document_starts.append(self.tokens)
        if len(ids):
            self._max_id = max(self._max_id, int(ids.max()))
        self.tokens += len(ids)
        while len(ids):
            if self._stream is None:
                self._begin()
            assert self._stream is not None
            shard = self._shards[-1]
            part, ids = np.split(ids, [self._limit - shard["tokens"]])
            self._stream.write(part.tobytes())
            shard["tokens"] += len(part)
            shard["crc32"] = zlib.crc32(part.tobytes(), shard["crc32"])
            if shard["tokens"] == self._limit:
                self._end()

    def _begin(self) -> None:
        file = f"{self._name}-{len(self._shards):05}.bin"
        self._shards.append({"file": file, "tokens": 0, "crc32": 0})
        self._stream = (self._directory / file).open("wb")

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream = None

    def finish(self) -> dict[str, Any]:
        """Complete the files and return their entry in the index."""
        self._end()
        starts = np.array(self._document_starts, "<u8")
        file = f"{self._name}-documents.bin"
        write_synced(self._directory / file, starts.tobytes())
        return {
            "tokens": self.tokens,
            "max_id": self._max_id,
            "shards": self._shards,
            "document_starts": {
                "file": file,
                "tokens": len(starts),
                "crc32": zlib.crc32(starts.tobytes()),
            },
        }

    def __enter__(self) -> SplitWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._stream is not None:  # unfinished: the staging directory is about to go
            self._stream.close()
