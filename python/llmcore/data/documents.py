"""Reading documents from text, JSONL and Parquet files, in pieces small enough to tokenize."""

from __future__ import annotations

import codecs
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmcore.errors import DataError

PathLike = str | os.PathLike[str]
Utf8Errors = Literal["strict", "replace"]

#: Characters of a piece, at most: bounds the memory of a tokenizer worker.
PIECE_CHARACTERS = 1 << 18

_READ_BYTES = 1 << 18


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one.

    Attributes:
        text: The characters.
        place: Where it comes from, for errors: "corpus.jsonl:12".
        offset: Where the document begins in its file, in bytes (Parquet: in proportion to rows).
        read: Bytes of the file read for this piece (Parquet: in proportion to rows).
        first: Whether a document begins here.
        last: Whether the document ends here.
    """

    text: str
    place: str
    offset: int
    read: int
    first: bool
    last: bool


def list_files(inputs: PathLike | Iterable[PathLike]) -> list[Path]:
    """Return the input files as paths, each checked to be a file.

    Raises:
        DataError: There are none, or one is missing or a directory.
    """
    items = [inputs] if isinstance(inputs, (str, os.PathLike)) else inputs
    files = [Path(item) for item in items]
    if not files:
        raise DataError("no input files were given")
    for file in files:
        if file.is_dir():
            raise DataError(f"{file} is a directory; name the files in it")
        if not file.exists():
            raise DataError(f"{file}: no such file")
    return files


def read_documents(
    file: Path,
    *,
    text_field: str = "text",
    errors: Utf8Errors = "strict",
    border: int | None = None,
) -> Iterator[Piece]:
    """Yield the documents of `file` in order, long ones in several pieces; empty ones are left out.

    A `.jsonl` or `.ndjson` file holds one document per line, a `.parquet` file one per row; any
    other file is one document of plain text, kept to the byte (but for a byte-order mark).

    Args:
        file: The file to read.
        text_field: The key or column that holds the text.
        errors: What to do with invalid UTF-8: "strict" raises, "replace" puts U+FFFD.
        border: Begin a second document at this byte of a plain text file (moved on to the next
            character), without an end to the first: where training data stop.

    Raises:
        DataError: Naming the file, and the byte offset or line, of what cannot be read.
    """
    suffix = file.suffix.lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            yield from _read_jsonl(file, text_field, errors)
        elif suffix == ".parquet":
            yield from _read_parquet(file, text_field)
        elif suffix == ".json":
            raise DataError(
                f"{file}: a .json file may be anything; rename it to .jsonl if each line is an "
                "object with a text, or to .txt if it is the text itself"
            )
        else:
            yield from _read_text(file, errors, border)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _read_text(file: Path, errors: Utf8Errors, border: int | None) -> Iterator[Piece]:
    size = file.stat().st_size
    cut = size if border is None or not 0 < border < size else _next_character(file, border)
    for start, stop in ((0, cut), (cut, size)):
        texts = _decode(file, start, stop, errors)
        yield from _pieces(texts, str(file), start, stop - start, whole=stop == size)


def _next_character(file: Path, offset: int) -> int:
    """Return `offset`, moved past the continuation bytes of a character that began before it."""
    with file.open("rb") as stream:
        stream.seek(offset)
        following = stream.read(3)
    continuation = 0
    while continuation < len(following) and following[continuation] & 0xC0 == 0x80:
        continuation += 1
    return offset + continuation


def _decode(file: Path, start: int, stop: int, errors: Utf8Errors) -> Iterator[str]:
    """Yield the text of bytes `start` to `stop`, less a byte-order mark at the file's beginning."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    with file.open("rb") as stream:
        stream.seek(start)
        offset = start
        while offset < stop:
            block = stream.read(min(_READ_BYTES, stop - offset))
            if not block:
                break
            pending = len(decoder.getstate()[0])  # bytes of a character cut by the last block
            try:
                text = decoder.decode(block, final=offset + len(block) >= stop)
            except UnicodeDecodeError as error:
                raise invalid_utf8(f"{file}", offset - pending + error.start, error) from None
            yield text.removeprefix("\ufeff") if offset == 0 else text
            offset += len(block)


def invalid_utf8(place: str, offset: int, error: UnicodeDecodeError) -> DataError:
    """Return the error that says which byte at `place` is not UTF-8, and what to do."""
    byte = error.object[error.start]
    cure = 'convert it to UTF-8 (in Python, errors="replace" lets it pass)'
    if offset == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        cure = "it looks like UTF-16: iconv -f UTF-16 -t UTF-8 converts it"
    return DataError(
        f"{place}: invalid UTF-8 at byte {offset} (0x{byte:02x}, {error.reason}); {cure}"
    )


def _read_jsonl(file: Path, text_field: str, errors: Utf8Errors) -> Iterator[Piece]:
    offset = 0
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            place = f"{file}:{number}"
            try:
                decoded = line.decode("utf-8", errors)
            except UnicodeDecodeError as error:
                raise invalid_utf8(place, offset + error.start, error) from None
            decoded = decoded.removeprefix("\ufeff").strip()
            if decoded:
                text = _text_of(decoded, text_field, place)
                yield from _pieces([text], place, offset, len(line))
            offset += len(line)


def _text_of(line: str, text_field: str, place: str) -> str:
    """Return the text of one JSON object."""
    return text_in(parse_record(line, place), text_field, place)


def parse_record(line: str, place: str) -> dict[str, Any]:
    """Return the JSON object in a line; `place` says where it is if it is none.

    Raises:
        DataError: It is something else.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: not valid JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(record).__name__}")
    return record


def value_in(record: Mapping[str, Any], field: str, place: str) -> Any:
    """Return a field of a record.

    Raises:
        DataError: It is not there.
    """
    if field not in record:
        fields = ", ".join(map(repr, record)) or "none"
        raise DataError(f"{place}: there is no field {field!r}; the fields are {fields}")
    return record[field]


def text_in(record: Mapping[str, Any], text_field: str, place: str) -> str:
    """Return a field of a record that must be a text.

    Raises:
        DataError: It is not there, or not a text that can be written as UTF-8.
    """
    text = value_in(record, text_field, place)
    if not isinstance(text, str):
        raise DataError(
            f"{place}: field {text_field!r} must be a string, got {type(text).__name__}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{place}: field {text_field!r} holds half a surrogate pair") from None
    return text


def _read_parquet(file: Path, text_field: str) -> Iterator[Piece]:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{file}: reading Parquet needs pyarrow; install llmcore-engine with its extra "
            "`parquet`"
        ) from None
    try:
        table = parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: not a readable Parquet file: {error}") from None
    columns = table.schema_arrow.names
    if text_field not in columns:
        raise DataError(
            f"{file}: there is no column {text_field!r}; the columns are "
            f"{', '.join(map(repr, columns))}"
        )
    size, rows = file.stat().st_size, max(table.metadata.num_rows, 1)
    row = 0
    for batch in table.iter_batches(batch_size=256, columns=[text_field]):
        for text in batch.column(0).to_pylist():
            place = f"{file}, row {row}"
            if text is not None and not isinstance(text, str):
                raise DataError(
                    f"{place}: column {text_field!r} must hold strings, got {type(text).__name__}"
                )
            offset, end = size * row // rows, size * (row + 1) // rows
            yield from _pieces([text or ""], place, offset, end - offset)
            row += 1


def _pieces(
    texts: Iterable[str], place: str, offset: int, size: int, *, whole: bool = True
) -> Iterator[Piece]:
    """Yield one document, given as consecutive texts, in pieces of bounded length."""
    waiting = ""
    done = 0
    for text in texts:
        waiting += text
        while len(waiting) > PIECE_CHARACTERS:
            border = cut_point(waiting, PIECE_CHARACTERS)
            piece, waiting = waiting[:border], waiting[border:]
            # Characters stand for bytes here; the last piece makes up for the difference.
            read = min(size, border)
            yield Piece(piece, _part(place, done), offset, read, first=done == 0, last=False)
            size -= read
            done += border
    if waiting:
        yield Piece(waiting, _part(place, done), offset, size, first=done == 0, last=whole)


def _part(place: str, done: int) -> str:
    return f"{place}, from character {done}" if done else place


def cut_point(text: str, limit: int) -> int:
    """Return where to cut a long text, at most `limit`, so that its tokens do not change.

    The last single space between two words is best: byte-level BPE, WordPiece, Unigram and
    characters all start a word of their own there. Next best is a single line break, then
    anywhere.

    Example:
        >>> cut_point("to be or not", 7)
        5
    """
    for border, before in ((" ", 0), ("\n", 1)):
        place = text.rfind(border, 1, limit - 1)
        while place > 0:
            if not text[place - 1].isspace() and not text[place + 1].isspace():
                return place + before
            place = text.rfind(border, 1, place)
    return limit


def texts_of(files: Sequence[Path], **options: Any) -> Iterator[str]:
    """Yield the text of every piece of `files`; `options` are those of `read_documents`."""
    for file in files:
        for piece in read_documents(file, **options):
            yield piece.text
