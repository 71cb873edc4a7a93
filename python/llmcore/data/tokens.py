"""Token data sets: ids in memory or mapped from shards, and fixed batches for evaluation."""

from __future__ import annotations

import bisect
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore.data.sampling import BlockSampler, Sample, check_sizes, framed, positions_within
from llmcore.data.shards import load_index, map_file
from llmcore.data.tokenizing import tokenize_files
from llmcore.errors import DataError, DTypeError, ShapeError

if TYPE_CHECKING:
    import os

    from llmcore.tokenizer import Tokenizer

__all__ = ["BlockSampler", "TokenDataset", "check_ids", "shakespeare", "tokenize_files"]

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

# Ids read at a time where a whole data set is gone through.
_CHUNK = 1 << 20


def shakespeare() -> str:
    """Return the text of the demonstration run: 1.1 MB of Shakespeare's plays, public domain.

    The collection is that of Karpathy's char-rnn.

    Example:
        >>> len(shakespeare()), shakespeare()[:14]
        (1115394, 'First Citizen:')
    """
    import gzip

    path = Path(__file__).parent / "datasets" / "tinyshakespeare.txt.gz"
    return gzip.decompress(path.read_bytes()).decode("ascii")


def check_ids(ids: ArrayLike, vocab_size: int, what: str = "ids") -> None:
    """Raise unless every id is within a vocabulary of `vocab_size`.

    Raises:
        DataError: Naming the first id out of range, its position and what to do.

    Example:
        >>> check_ids([1, 2], vocab_size=3)
    """
    array = np.asarray(ids)
    if array.size == 0 or (int(array.min()) >= 0 and int(array.max()) < vocab_size):
        return
    flat = array.reshape(-1)
    place = int(np.flatnonzero((flat < 0) | (flat >= vocab_size))[0])
    raise DataError(
        f"{what}: id {flat[place]} at position {place} is outside the vocabulary of {vocab_size}; "
        "use the tokenizer the model was made for, or a larger vocab_size"
    )


class TokenDataset:
    """A long sequence of token ids, in memory or mapped from shards, with document boundaries.

    Example:
        >>> data = TokenDataset.from_ids([4, 5, 6, 7, 8])
        >>> len(data), data.read(1, 3).tolist()
        (5, [5, 6])
        >>> train, val = data.split(0.2)
        >>> len(train), len(val)
        (4, 1)
    """

    def __init__(
        self,
        parts: Sequence[NDArray[np.integer[Any]]],
        *,
        name: str = "the data set",
        document_starts: Int64Array | None = None,
        directory: Path | None = None,
        fingerprint: str | None = None,
        max_id: int | None = None,
    ) -> None:
        """Join `parts`, one-dimensional integer arrays; use `from_ids` or `open` instead."""
        self.name = name
        self._parts = [np.asarray(part) for part in parts if len(part)]
        self._starts = np.cumsum([0] + [len(part) for part in self._parts]).tolist()
        self._document_starts = document_starts
        self._directory = directory
        self._known_fingerprint = fingerprint
        self._known_max_id = max_id

    @classmethod
    def from_ids(cls, ids: ArrayLike, *, name: str = "the data set") -> TokenDataset:
        """Wrap ids that are in memory (or a `numpy.memmap`: nothing is copied).

        Args:
            ids: [N] integers of any type.
            name: What errors call these data.

        Raises:
            ShapeError: `ids` is not one-dimensional.
            DTypeError: `ids` does not hold integers.
        """
        try:
            array = np.asarray(ids)
        except ValueError:
            raise ShapeError(f"{name}: ids must be one-dimensional, got ragged lists") from None
        if array.ndim != 1:
            raise ShapeError(f"{name}: ids must be one-dimensional, got shape {list(array.shape)}")
        if array.size and array.dtype.kind not in "iu":
            raise DTypeError(f"{name}: ids must be integers, got {array.dtype}")
        return cls([array], name=name)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], split: str = "train", *, verify: bool = True
    ) -> TokenDataset:
        """Map the shards that `tokenize_files` wrote.

        Args:
            path: The directory with `index.json`.
            split: "train", or "val" where there is one.
            verify: Read every shard once and compare its checksum (about a second per GB).
                Sizes are compared in any case.

        Raises:
            DataError: The directory, its index or a shard is missing, truncated or corrupted.
        """
        directory = Path(path)
        index = load_index(directory)
        try:
            return cls._of_index(directory, index, split, verify)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{directory}: its index.json is incomplete ({error!r}); tokenize again"
            ) from None

    @classmethod
    def _of_index(
        cls, directory: Path, index: dict[str, Any], split: str, verify: bool
    ) -> TokenDataset:
        splits = index["splits"]
        if split not in splits:
            raise DataError(
                f"{directory}: there is no split {split!r}; it has {', '.join(map(repr, splits))}"
            )
        entry = splits[split]
        dtype = np.dtype(index["dtype"]).newbyteorder("<")
        parts = [map_file(directory, shard, dtype, verify) for shard in entry["shards"]]
        documents = map_file(directory, entry["document_starts"], np.dtype("<u8"), verify)
        checksums = [shard["crc32"] for shard in entry["shards"]]
        return cls(
            parts,
            name=f"{directory} ({split})",
            document_starts=documents.astype(np.int64),
            directory=directory,
            fingerprint=digest([index["dtype"], entry["tokens"], checksums]),
            max_id=entry["max_id"],
        )

    @staticmethod
    def splits(path: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the names of the splits in a directory of shards: "train", and maybe "val"."""
        return tuple(load_index(Path(path)).get("splits", ()))

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._starts[-1])

    def __repr__(self) -> str:
        return f"TokenDataset({self.name!r}, tokens={len(self)})"

    @property
    def document_starts(self) -> Int64Array:
        """[D] int64, where each document begins; one document where nothing else is known."""
        if self._document_starts is None:
            return np.zeros(min(len(self), 1), np.int64)
        return self._document_starts

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer kept beside the shards; None for ids given in memory."""
        if self._directory is None:
            return None
        from llmcore.tokenizer import Tokenizer

        return Tokenizer.load(self._directory)

    @cached_property
    def fingerprint(self) -> str:
        """A short string that differs, in all likelihood, between different data."""
        if self._known_fingerprint is not None:
            return self._known_fingerprint
        checksum = 0
        for start in range(0, len(self), _CHUNK):
            checksum = zlib.crc32(self.read(start, start + _CHUNK).data, checksum)
        return digest([len(self), checksum])

    def check_vocab(self, vocab_size: int) -> None:
        """Raise `DataError` unless every id is within a vocabulary of `vocab_size`."""
        if self._known_max_id is not None and self._known_max_id < vocab_size:
            return
        for part, start in zip(self._parts, self._starts, strict=False):
            what = self.name if start == 0 else f"{self.name}, from token {start}"
            check_ids(part, vocab_size, what)

    def read(self, start: int, stop: int) -> Int32Array:
        """Return the ids from `start` to `stop` (cut at the end, as a slice is), [n] int32."""
        stop = min(stop, len(self))
        out = np.empty(max(stop - start, 0), np.int32)
        self._read_into(start, out)
        return out

    def gather(self, starts: Int64Array, length: int) -> Int32Array:
        """Return the runs of `length` ids that begin at `starts` [n], as [n, length] int32."""
        out = np.empty((len(starts), length), np.int32)
        for row, start in zip(out, starts.tolist(), strict=True):
            self._read_into(start, row)
        return out

    def _read_into(self, start: int, out: Int32Array) -> None:
        """Fill `out` with the ids from `start` on, across shard borders."""
        done = 0
        part = bisect.bisect_right(self._starts, start) - 1
        while done < len(out):
            offset = start + done - self._starts[part]
            ids = self._parts[part][offset : offset + len(out) - done]
            out[done : done + len(ids)] = ids
            done += len(ids)
            part += 1

    def split(self, val_fraction: float) -> tuple[TokenDataset, TokenDataset]:
        """Return the first `1 - val_fraction` of the tokens and the rest, sharing memory.

        The border is at token `int(n · (1 - val_fraction))`, nanoGPT's rule.

        Raises:
            DataError: The fraction is not above 0 and below 1, or one side would be empty.
        """
        if not 0.0 < val_fraction < 1.0:
            raise DataError(f"val_fraction must be above 0 and below 1, got {val_fraction}")
        border = int(len(self) * (1.0 - val_fraction))
        if border in (0, len(self)):
            raise DataError(
                f"{self.name} has {len(self)} tokens, too few to set {val_fraction:.0%} aside"
            )
        return self._slice(0, border, "train"), self._slice(border, len(self), "val")

    def _slice(self, start: int, stop: int, split: str) -> TokenDataset:
        parts = [
            part[max(start - first, 0) : max(stop - first, 0)]
            for part, first in zip(self._parts, self._starts, strict=False)
        ]
        documents = self.document_starts
        inside = documents[(documents > start) & (documents < stop)] - start
        return TokenDataset(
            parts,
            name=f"{self.name} ({split})",
            document_starts=np.concatenate([np.zeros(1, np.int64), inside]),
            directory=self._directory,
        )

    def num_blocks(self, block_size: int) -> int:
        """Return how many blocks of `block_size` positions there are, a last short one included.

        A last one of a single id is not: there is nothing that could be predicted from it.
        """
        return max(0, -(-(len(self) - 1) // block_size))

    def eval_batches(
        self,
        block_size: int,
        batch_size: int,
        max_batches: int | None = None,
        *,
        lookahead: int = 1,
        frame: tuple[int, int] | None = None,
    ) -> Iterator[Sample]:
        """Yield the same batches every time, for evaluation.

        The data are cut into consecutive blocks, so with a lookahead of 1 each token but the first
        is predicted once. With fewer batches than that takes, the blocks are spread evenly over the
        data.

        Args:
            block_size: T, positions of a block.
            batch_size: B, blocks in a batch; the last batch may have fewer.
            max_batches: At most so many batches; None for all.
            lookahead: Ids a block has beyond its T positions, as in `BlockSampler`.
            frame: The ids a block begins and ends with, as in `BlockSampler`.

        Yields:
            Samples of epoch 0 with the columns `(ids, lengths)`: [b, T + lookahead] int32, and
            None, or [b] int32 where a row is shorter because the data end there (padded with
            zeros): what an objective takes.

        Raises:
            DataError: There are fewer than two tokens, or a size is not positive.
        """
        check_sizes(block_size, batch_size)
        stride = positions_within(block_size, frame)
        total = self.num_blocks(stride)
        if total == 0:
            raise DataError(f"{self.name} has {len(self)} tokens; evaluation needs at least 2")
        width = stride + lookahead
        count = total if max_batches is None else min(total, max_batches * batch_size)
        blocks = np.arange(count, dtype=np.int64) * total // max(count, 1)
        for first in range(0, count, batch_size):
            samples = blocks[first : first + batch_size]
            starts = samples * stride
            lengths = np.minimum(len(self) - starts, width).astype(np.int32)
            if lengths[-1] == width:  # only the last block can be short
                ids = self.gather(starts, width)
                yield Sample((framed(ids, frame), None), samples, 0)
                continue
            ids = np.zeros((len(starts), width), np.int32)
            ids[:-1] = self.gather(starts[:-1], width)
            ids[-1, : lengths[-1]] = self.read(int(starts[-1]), len(self))
            real = lengths + np.int32(0 if frame is None else len(frame))
            yield Sample((framed(ids, frame, lengths), real), samples, 0)


def digest(facts: list[Any]) -> str:
    """Return 16 hexadecimal digits that stand for `facts`."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
