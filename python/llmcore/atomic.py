"""Replacing a file, or several of a directory at once, so that a crash at any moment loses nothing.

One file is written beside its place and renamed (`write_atomically`).

A set of files (`write_files`) becomes current by one rename as well. Each file is first written
beside its place as `.NAME.saving` and flushed to the disk. Then a manifest with the size and
checksum of all of them is renamed to `checkpoint.pending.json`: from here on the new set is the
truth, before, the old one is.
Last, the files are renamed to their places and the manifest to `checkpoint.json`.

A reader that finds a pending manifest takes a file from `.NAME.saving` where that still exists. The
next writer finishes the renames first. Other files in the directory are never touched. There may be
one writer at a time, and any number of readers.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from llmcore import _core
from llmcore.errors import CheckpointError
from llmcore.identify import is_recognised, what_it_is

MANIFEST = "checkpoint.json"
PENDING = "checkpoint.pending.json"

_CHUNK = 1 << 22  # bytes written and checksummed at a time: the second pass finds them in cache


#: The bytes of a file, mapped where there are any.
Content = mmap.mmap | bytes


@dataclass(frozen=True)
class Listed:
    """A file of the size that its manifest says; `expected` is its CRC-32 there."""

    path: Path
    content: Content
    expected: int

    def check(self, crc32: int | None = None) -> None:
        """Compare the checksum with the manifest's; without one, compute it.

        Raises:
            CheckpointError: they differ.
        """
        actual = _core.crc32(self.content) if crc32 is None else crc32
        if actual != self.expected:
            what = f"expected checksum {self.expected:08x}, got {actual:08x}"
            raise _damaged(self.path, self.content[:1024], len(self.content), what)


class ChecksumWriter:
    """A new file that is flushed to the disk on closing and knows its CRC-32.

    CRC-32 finds every burst of errors up to 32 bits and all but 1 in 2^32 of other accidents, at
    over 10 GB/s, which hides behind the disk; SHA-256 would take longer than the writing and guard
    only against an adversary, who could replace the manifest as well.
    """

    def __init__(self, path: Path) -> None:
        self.size = self.crc32 = 0
        self._file = open(path, "wb")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> ChecksumWriter:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if error_type is None:
                self._file.flush()
                os.fsync(self._file.fileno())

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        for start in range(0, len(view), _CHUNK):
            chunk = view[start : start + _CHUNK]
            self.crc32 = _core.crc32(chunk, self.crc32)
            self.size += self._file.write(chunk)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk.

    Raises:
        OSError: naming `path`.
    """
    try:
        with ChecksumWriter(path) as file:
            file.write(content)
    except OSError as error:  # that of a write names no file
        raise OSError(error.errno, reason(error), str(path)) from None


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, now or after a crash, finds the old content or the new one.

    Raises:
        OSError: naming `path`, which is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_synced(temporary, content)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


#: Writes the whole content of one file.
FileContent = Callable[[ChecksumWriter], None]


def write_files(directory: str | os.PathLike[str], files: Mapping[str, FileContent]) -> None:
    """Replace the set of files in a directory, all of them or none.

    Files of the set that is replaced and not of this one are removed.

    Args:
        directory: Made if need be.
        files: File name to the function that writes it.

    Raises:
        CheckpointError: if the disk refuses; the old set is then still in place, whole.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_files(folder, {"a.txt": lambda file: file.write(b"hello")})
        ...     print(current_files(Path(folder))["a.txt"].read_text())
        hello
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        finish(directory)
        try:
            listing = {}
            for name, write in files.items():
                with ChecksumWriter(_staged(directory, name)) as file:
                    write(file)
                listing[name] = {"size": file.size, "crc32": f"{file.crc32:08x}"}
            with ChecksumWriter(_staged(directory, PENDING)) as file:
                file.write(json.dumps({"format": 1, "files": listing}, indent=2).encode())
            sync_directory(directory)
            os.replace(_staged(directory, PENDING), directory / PENDING)
        except BaseException:
            if not (directory / PENDING).exists():
                with contextlib.suppress(OSError):
                    _remove_staged(directory)  # a full disk gets its room back
            raise
        sync_directory(directory)
        finish(directory)
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot be saved: {reason(error)}; what was saved there before is kept"
        ) from error


def finish(directory: Path) -> None:
    """Carry an interrupted replacement to its end, forward if it was committed, else back."""
    listing = _read_manifest(directory / PENDING)
    if listing is None:
        _remove_staged(directory)
        return
    for name in listing:
        with contextlib.suppress(FileNotFoundError):  # renamed before the interruption
            os.replace(_staged(directory, name), directory / name)
    old: Mapping[str, object] = {}
    with contextlib.suppress(CheckpointError):  # a broken old manifest must not stop a new one
        old = _read_manifest(directory / MANIFEST) or old
    for name in old.keys() - listing.keys():
        (directory / name).unlink(missing_ok=True)
    sync_directory(directory)
    os.replace(directory / PENDING, directory / MANIFEST)
    # Durable before the next writer stages files, which must not be taken for those of this set.
    sync_directory(directory)


def current_files(
    directory: Path,
    verify: bool = True,
    opened: dict[Path, Listed] | None = None,
    later: Collection[str] = (),
) -> dict[str, Path] | None:
    """Return where each file of the current set is, or None where there is no manifest.

    Args:
        directory: Written by `write_files`, or by anyone.
        verify: Compare every size and checksum with the manifest.
        opened: Takes every file that was compared, so that what is read is what was checked, and
            no page is mapped twice.
        later: Names of files of which only the size is compared; the caller calls `Listed.check`.

    Raises:
        CheckpointError: naming a file that is missing, truncated or changed.
    """
    listing = _read_manifest(directory / PENDING)
    pending = listing is not None
    if listing is None:
        listing = _read_manifest(directory / MANIFEST)
    if listing is None:
        return None
    paths = {}
    for name, expected in listing.items():
        staged = _staged(directory, name)
        path = paths[name] = staged if pending and staged.exists() else directory / name
        if verify:
            file = _open(path, *expected)
            if name not in later:
                file.check()
            if opened is not None:
                opened[path] = file
    return paths


def manifests(directory: Path) -> tuple[bytes | None, bytes | None]:
    """Return the manifest and the pending one, as bytes.

    They change with every commit. Their inodes and times do not tell: both are used again soon.
    """

    def content(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except OSError:
            return None

    # The pending one first: were it last, a set could be committed and finished between the two
    # looks, and neither would show it.
    pending = content(directory / PENDING)
    return content(directory / MANIFEST), pending


def _open(path: Path, size: int, crc32: int) -> Listed:
    content: Content = b""
    try:
        with open(path, "rb") as file:
            actual_size = os.fstat(file.fileno()).st_size
            if actual_size != size:
                what = f"expected {size} bytes, got {actual_size}"
                cause = "truncated" if actual_size < size else "corrupt"
                raise _damaged(path, file.read(1024), actual_size, what, cause)
            if size > 0:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing, though {MANIFEST} beside it lists it; copy the checkpoint again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
    return Listed(path, content, crc32)


def _damaged(
    path: Path, head: bytes, size: int, what: str, cause: str = "corrupt"
) -> CheckpointError:
    if is_recognised(head, path):
        return CheckpointError(f"{path}: {what_it_is(path, head, size)}")
    return CheckpointError(
        f"{path}: {cause}, or changed since it was saved: {what}; copy it again, "
        f"or, if you changed it yourself, delete {MANIFEST} beside it"
    )


def _read_manifest(path: Path) -> dict[str, tuple[int, int]] | None:
    """Read file name -> (size, CRC-32), or None if there is no manifest."""
    try:
        files = json.loads(path.read_bytes())["files"]
        listing = {name: (int(of["size"]), int(of["crc32"], 16)) for name, of in files.items()}
        if not all(map(is_file_name, listing)):
            raise ValueError("it names a file elsewhere")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not a manifest of llmcore ({error}); delete it to load unchecked"
        ) from error
    return listing


def is_file_name(name: object) -> bool:
    """Whether a value read from a file is the name of a file, not a path to somewhere else."""
    return isinstance(name, str) and name.isprintable() and Path(name).name == name != ""


def _staged(directory: Path, name: str) -> Path:
    return directory / f".{name}.saving"


def _remove_staged(directory: Path) -> None:
    for path in directory.glob(".*.saving"):
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, where the system can do that."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError) -> str:
    """Return the operating system's words for an error, without repeating the path."""
    return error.strerror or str(error)
