"""From text files to token shards: reading, parallel tokenizing, splitting into train and val."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmcore.data.documents import (
    PIECE_CHARACTERS,
    PathLike,
    Piece,
    Utf8Errors,
    list_files,
    read_documents,
)
from llmcore.data.shards import (
    SHARD_TOKENS,
    IdArray,
    SplitWriter,
    has_index,
    publish,
    staging,
    write_index,
)
from llmcore.errors import DataError, LlmcoreError

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

#: Called as work proceeds with documents, bytes of input and tokens done so far.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class TokenizeResult:
    """What `tokenize_files` wrote.

    Attributes:
        directory: Where the shards and `index.json` are.
        documents: Number of documents read; empty ones do not count.
        bytes: Bytes of input they take.
        tokens: Tokens of each split, end-of-text tokens included.
    """

    directory: Path
    documents: int
    bytes: int
    tokens: dict[str, int]


def tokenize_files(
    inputs: PathLike | Iterable[PathLike],
    tokenizer: Tokenizer,
    out_dir: PathLike,
    *,
    workers: int = 1,
    text_field: str = "text",
    val_fraction: float = 0.0,
    split_by: Literal["order", "hash"] = "order",
    end_of_text: bool | None = None,
    errors: Utf8Errors = "strict",
    shard_tokens: int = SHARD_TOKENS,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TokenizeResult:
    """Tokenize text, JSONL and Parquet files into memory-mapped shards for `TokenDataset.open`.

    `out_dir` gets `train-00000.bin`, … (and `val-…`): ids as little-endian uint16, or uint32 for a
    vocabulary above 65,536; `…-documents.bin`: the place of each document's first token, uint64;
    the tokenizer; and last `index.json` with counts and checksums. The files are byte-identical
    for any number of workers. They appear under their names only when all are complete: whatever
    fails before, a full disk included, leaves `out_dir` as it was.

    Args:
        inputs: A file or several; see `llmcore.data.documents.read_documents` for the formats.
        tokenizer: Gives the ids; a copy is saved beside them.
        out_dir: Created if missing.
        workers: Processes that tokenize; 1 does it in this one. More need the calling script to
            be importable (an `if __name__ == "__main__":` guard), as `multiprocessing` does.
        text_field: Key or column with the text, in JSONL and Parquet.
        val_fraction: Share set aside as split "val", from 0 (none) to below 1.
        split_by: "order": the last share of the input bytes, at a whole document except in a text
            file, which is cut where the share begins (nanoGPT's rule). "hash": documents chosen by
            a hash of their text, so that equal documents are on the same side.
        end_of_text: Put the tokenizer's end-of-text token (`eos_id`, else `sep_id`) after each
            document; None: if it has one. Where a text file is cut for validation there is none.
        errors: Invalid UTF-8: "strict" raises, "replace" reads U+FFFD in its place.
        shard_tokens: Tokens of a shard, at most.
        overwrite: Replace the data set that `out_dir` holds.
        progress: Called with (documents, bytes, tokens) done so far, from this process.

    Returns:
        The counts of what was written.

    Raises:
        DataError: An input cannot be read (naming file and place), holds no text, `out_dir` holds
            a data set already, a split is empty, or an option is out of range.

    Example:
        >>> import tempfile, pathlib
        >>> from llmcore.tokenizer import Tokenizer
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.txt").write_text("to be or not to be")
        >>> tokenizer = Tokenizer.train(["to be or not"], kind="char")
        >>> tokenize_files(folder / "a.txt", tokenizer, folder / "out").tokens
        {'train': 18}
    """
    files = list_files(inputs)
    directory = Path(out_dir)
    _check_options(workers, val_fraction, split_by, shard_tokens)
    if has_index(directory) and not overwrite:
        raise DataError(
            f"{directory} holds a data set already; choose another, or overwrite it (--overwrite)"
        )
    eos = _end_of_text_id(tokenizer, end_of_text)
    names = ["train", "val"] if val_fraction > 0 else ["train"]
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with staging(directory) as stage, contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(SplitWriter(stage, name, dtype, shard_tokens))
            for name in names
        }
        documents = done = 0
        pieces = _assign(files, val_fraction, split_by, text_field=text_field, errors=errors)
        for batch, ids, lengths in _encode_all(pieces, tokenizer, eos, dtype, workers):
            start = 0
            for (piece, split), length in zip(batch, lengths, strict=True):
                writers[split].write(ids[start : start + length], new_document=piece.first)
                start += length
                documents += piece.last
                done += piece.read
            if progress is not None:
                progress(documents, done, sum(writer.tokens for writer in writers.values()))
        tokens = {name: writer.tokens for name, writer in writers.items()}
        if 0 in tokens.values():
            raise DataError(_nothing_in(tokens, files, val_fraction))
        tokenizer.save(stage)
        write_index(
            stage,
            dtype=dtype.name,
            vocab_size=tokenizer.vocab_size,
            end_of_text_id=eos,
            documents=documents,
            splits={name: writer.finish() for name, writer in writers.items()},
        )
        publish(stage, directory)
    return TokenizeResult(directory, documents, done, tokens)


def _check_options(workers: int, val_fraction: float, split_by: str, shard_tokens: int) -> None:
    if workers < 1:
        raise DataError(f"workers must be at least 1, got {workers}")
    if not 0.0 <= val_fraction < 1.0:
        raise DataError(f"val_fraction must be from 0 to below 1, got {val_fraction}")
    if split_by not in ("order", "hash"):
        raise DataError(f"split_by must be 'order' or 'hash', got {split_by!r}")
    if shard_tokens < 1:
        raise DataError(f"shard_tokens must be at least 1, got {shard_tokens}")


def _end_of_text_id(tokenizer: Tokenizer, wanted: bool | None) -> int | None:
    """Return the id to put after each document, or None for none."""
    if wanted is False:
        return None
    eos = tokenizer.sep_id if tokenizer.eos_id is None else tokenizer.eos_id
    if eos is None and wanted:
        raise DataError(
            "end_of_text needs a tokenizer with an end-of-text token; train it with "
            "special_tokens=['<|endoftext|>']"
        )
    return eos


def _nothing_in(tokens: dict[str, int], files: list[Path], val_fraction: float) -> str:
    """Say why a split is empty."""
    if not any(tokens.values()):
        return f"there is no text in {', '.join(map(str, files))}"
    empty = next(name for name, count in tokens.items() if count == 0)
    return (
        f"{', '.join(map(str, files))}: too little text, or too few documents, to set "
        f"{val_fraction:.0%} aside for validation: the split {empty!r} would be empty; "
        "give more, or another fraction"
    )


def _assign(
    files: list[Path], val_fraction: float, split_by: str, *, text_field: str, errors: Utf8Errors
) -> Iterator[tuple[Piece, str]]:
    """Yield every piece of the files in order, with the split it belongs to."""
    sizes = [file.stat().st_size for file in files]
    in_order = val_fraction > 0 and split_by == "order"
    # Bytes of the inputs, end to end, that are training data.
    border = int(sum(sizes) * (1.0 - val_fraction)) if in_order else sum(sizes)
    before = 0
    split = "train"
    for file, size in zip(files, sizes, strict=True):
        for piece in read_documents(
            file, text_field=text_field, errors=errors, border=border - before
        ):
            if piece.first:
                if in_order:
                    split = "train" if before + piece.offset < border else "val"
                elif val_fraction > 0:
                    split = "val" if _hash(piece.text) < val_fraction else "train"
            yield piece, split
        before += size


def _hash(text: str) -> float:
    """Return a number in [0, 1) that depends on the text (of a long document, its first piece)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


Batch = list[tuple[Piece, str]]


def _batches(pieces: Iterator[tuple[Piece, str]]) -> Iterator[Batch]:
    """Group pieces into work for one call; the groups do not depend on who does the work."""
    batch: Batch = []
    characters = 0
    for piece, split in pieces:
        batch.append((piece, split))
        characters += len(piece.text)
        if characters >= PIECE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode_all(
    pieces: Iterator[tuple[Piece, str]],
    tokenizer: Tokenizer,
    eos: int | None,
    dtype: np.dtype[Any],
    workers: int,
) -> Iterator[tuple[Batch, IdArray, list[int]]]:
    """Yield each batch with its ids, end to end, and the number of ids of each piece, in order."""
    if workers > 1:
        yield from _encode_in_processes(pieces, tokenizer, eos, dtype, workers)
        return
    for batch in _batches(pieces):
        with _naming_the_place(batch, tokenizer):
            ids, lengths = _encode(tokenizer, *_work(batch), eos, dtype)
        yield batch, ids, lengths


def _encode_in_processes(
    pieces: Iterator[tuple[Piece, str]],
    tokenizer: Tokenizer,
    eos: int | None,
    dtype: np.dtype[Any],
    workers: int,
) -> Iterator[tuple[Batch, IdArray, list[int]]]:
    # Imported here: only this needs them, and they take a tenth of the time to import llmcore.
    import multiprocessing
    from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor

    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(tokenizer, eos, dtype),
    )
    waiting: deque[tuple[Batch, Future[tuple[IdArray, list[int]]]]] = deque()

    def oldest() -> tuple[Batch, IdArray, list[int]]:
        batch, future = waiting.popleft()
        with _naming_the_place(batch, tokenizer):
            ids, lengths = future.result()
        return batch, ids, lengths

    try:
        for batch in _batches(pieces):
            texts, ends = _work(batch)
            with _interrupts_held():  # submitting starts the processes
                waiting.append((batch, pool.submit(_encode_in_worker, texts, ends)))
            if len(waiting) > 2 * workers:
                yield oldest()
        while waiting:
            yield oldest()
    except BrokenExecutor as error:
        raise LlmcoreError(
            "a tokenizer process ended unexpectedly: out of memory, or the calling script lacks "
            'its `if __name__ == "__main__":` guard; workers=1 needs neither'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C from the processes started here, from their first moment on.

    It is for this process, which stops them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(batch: Batch) -> tuple[list[str], list[bool]]:
    """Return the texts of a batch, and after which of them a document ends."""
    return [piece.text for piece, _ in batch], [piece.last for piece, _ in batch]


def _encode(
    tokenizer: Tokenizer,
    texts: list[str],
    ends: list[bool],
    eos: int | None,
    dtype: np.dtype[Any],
) -> tuple[IdArray, list[int]]:
    rows = tokenizer.encode_batch(texts, add_special_tokens=False)
    if eos is not None:
        for row, end in zip(rows, ends, strict=True):
            if end:
                row.append(eos)
    lengths = [len(row) for row in rows]
    flat = itertools.chain.from_iterable(rows)
    return np.fromiter(flat, dtype, count=sum(lengths)), lengths


_in_worker: tuple[Tokenizer, int | None, np.dtype[Any]]


def _start_worker(tokenizer: Tokenizer, eos: int | None, dtype: np.dtype[Any]) -> None:
    global _in_worker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process is what was asked for
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which stops us
    _in_worker = tokenizer, eos, dtype


def _encode_in_worker(texts: list[str], ends: list[bool]) -> tuple[IdArray, list[int]]:
    tokenizer, eos, dtype = _in_worker
    return _encode(tokenizer, texts, ends, eos, dtype)


@contextlib.contextmanager
def _naming_the_place(batch: Batch, tokenizer: Tokenizer) -> Iterator[None]:
    """Turn a `DataError` about some text of a batch into one that says where that text is."""
    try:
        yield
    except DataError:
        for piece, _ in batch:
            try:
                tokenizer.encode(piece.text, add_special_tokens=False)
            except DataError as error:
                raise DataError(f"{piece.place}: {error}") from None
        raise
