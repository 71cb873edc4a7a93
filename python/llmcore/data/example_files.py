"""Reading examples from files: parallel text, TSV and JSONL, each plain or compressed by gzip."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from llmcore.data.documents import invalid_utf8, parse_record, text_in, value_in
from llmcore.errors import DataError

#: What examples are: a source and its target, a prompt and its completion, a text and its label.
ExampleKind = Literal["pairs", "completions", "labels"]

#: The fields of a JSON record that make an example of each kind, the usual ones first.
_USUAL_FIELDS: Mapping[ExampleKind, tuple[tuple[str, ...], ...]] = {
    "pairs": (("source", "target"), ("prompt", "completion"), ("messages",)),
    "completions": (("prompt", "completion"), ("source", "target"), ("messages",)),
    "labels": (("text", "text_pair", "label"), ("text", "label")),
}


@dataclass(frozen=True)
class Example:
    """One example as a file has it.

    Attributes:
        texts: Source and target, prompt and completion, or the one or two texts of a label.
        label: The label, or None.
        place: Where it comes from, for errors: "pairs.tsv:12".
    """

    texts: tuple[str, ...]
    label: str | int | None
    place: str


class ExampleFiles:
    r"""The examples of a file, or of two parallel ones; can be gone through any number of times.

    By the name of the file, less a ".gz" for one that is compressed:

    * With `target`, line n of the one belongs to line n of the other.
    * `.jsonl` or `.ndjson`: a JSON object a line, with the fields "source" and "target", "prompt"
      and "completion", or "messages" (a list of {"role", "content"}: each turn of the assistant is
      the completion of an example, what comes before it, as `chat_prompt` writes it, the prompt);
      for labels "text", perhaps "text_pair", and "label", a whole number or a name.
    * Anything else is TSV: texts, and for labels the label last, between tabs. There is no quoting.
      With `fields` the first line names the columns; without, it is an example.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp(), "reviews.tsv")
        >>> _ = file.write_text("well done\tgood\nnever again\tbad\n")
        >>> [(example.texts, example.label) for example in ExampleFiles(file, kind="labels")]
        [(('well done',), 'good'), (('never again',), 'bad')]
    """

    def __init__(
        self,
        path: Path,
        target: Path | None = None,
        *,
        kind: ExampleKind,
        fields: Sequence[str] = (),
    ) -> None:
        """Name the files; they are read by iterating.

        Args:
            path: The file, or the one with the sources.
            target: The file with the targets.
            kind: What the examples are.
            fields: Names of the fields or columns, in the order of the example's parts: the texts,
                then the label.

        Raises:
            DataError: A file is missing, or the fields do not fit the kind.
        """
        for file in (path, target):
            if file is not None and not file.is_file():
                what = "is a directory; name a file" if file.is_dir() else "there is no such file"
                raise DataError(f"{file}: {what}")
        if target is not None and kind == "labels":
            raise DataError(
                f"labels are in the file of their texts (TSV or JSONL), not in another: {target}"
            )
        if target is not None and fields:
            raise DataError(f"{path} and {target} are read line by line and have no fields")
        expected = (2, 3) if kind == "labels" else (1, 2)
        if fields and len(fields) not in expected:
            parts = "text,label or text,text_pair,label" if kind == "labels" else "source,target"
            raise DataError(f"fields must name {parts}, got {','.join(fields)}")
        self.path = path
        self.target = target
        self.kind: ExampleKind = kind
        self.fields = tuple(fields)

    def __str__(self) -> str:
        return str(self.path) if self.target is None else f"{self.path} and {self.target}"

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples.

        Raises:
            DataError: Naming the file, the line and what is wrong with it.
        """
        names = {"pairs": ("source", "target"), "completions": ("prompt", "completion")}.get(
            self.kind, ("text", "text_pair")
        )
        empty = True
        for example in self._read():
            for name, text in zip(names, example.texts, strict=False):
                if not text.strip():
                    raise DataError(f"{example.place}: the {name} is empty; leave the example out")
            yield example
            empty = False
        if empty:
            raise DataError(f"there are no examples in {self}")

    def texts(self) -> Iterator[str]:
        """Yield every text, for training a tokenizer."""
        return itertools.chain.from_iterable(example.texts for example in self)

    def _read(self) -> Iterator[Example]:
        if self.target is not None:
            return self._read_parallel(self.target)
        return self._read_json() if is_jsonl(self.path) else self._read_columns()

    def _read_parallel(self, target: Path) -> Iterator[Example]:
        lines = itertools.zip_longest(read_lines(self.path), read_lines(target))
        for number, (one, other) in enumerate(lines, start=1):
            if one is None or other is None:
                few, many = number - 1, number + sum(1 for _ in lines)
                ours, theirs = (few, many) if one is None else (many, few)
                raise DataError(
                    f"{self.path} has {ours} lines and {target} has {theirs}: line n of the one"
                    " must belong to line n of the other"
                )
            yield Example((one, other), None, f"{self.path}:{number}")

    def _read_columns(self) -> Iterator[Example]:
        header: list[str] | None = None
        for number, line in enumerate(read_lines(self.path), start=1):
            place = f"{self.path}:{number}"
            cells = line.split("\t")
            if self.fields and header is None:
                header = cells
                continue
            if header is not None:
                if len(cells) != len(header):
                    raise DataError(
                        f"{place}: expected {len(header)} columns as the first line has, got"
                        f" {len(cells)}"
                    )
                record = dict(zip(header, cells, strict=True))
                cells = [value_in(record, field, place) for field in self.fields]
            elif len(cells) not in ((2, 3) if self.kind == "labels" else (2,)):
                parts = "a text and a label" if self.kind == "labels" else "two texts"
                raise DataError(
                    f"{place}: expected {parts} with a tab between, got {len(cells)} columns; name"
                    " columns of the first line with fields"
                )
            if self.kind != "labels":
                yield Example(tuple(cells), None, place)
                continue
            label = cells[-1].strip()
            yield Example(tuple(cells[:-1]), int(label) if label.isdecimal() else label, place)

    def _read_json(self) -> Iterator[Example]:
        fields = self.fields
        for number, line in enumerate(read_lines(self.path), start=1):
            place = f"{self.path}:{number}"
            if not line.strip():
                continue
            record = parse_record(line.strip(), place)
            if not fields:
                usual = _USUAL_FIELDS[self.kind]
                fields = next((names for names in usual if record.keys() >= set(names)), usual[-1])
                if fields == ("messages",) and "messages" not in record:
                    fields = usual[0]
            if self.kind == "labels":
                texts = tuple(text_in(record, field, place) for field in fields[:-1])
                yield Example(texts, _label(value_in(record, fields[-1], place), place), place)
            elif len(fields) == 1:
                for prompt, completion in chat_turns(value_in(record, fields[0], place), place):
                    yield Example((prompt, completion), None, place)
            else:
                texts = tuple(text_in(record, field, place) for field in fields)
                yield Example(texts, None, place)


def _label(value: Any, place: str) -> str | int:
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return value
    raise DataError(f"{place}: a label must be a whole number or a name, got {value!r}")


def kind_of_file(path: Path, target: Path | None) -> ExampleKind | None:
    """Return what examples a file holds as far as one can tell, or None where it is plain text.

    Two parallel files hold pairs; of JSON the fields of the first record tell.
    """
    if target is not None:
        return "pairs"
    if not is_jsonl(path) or not path.is_file():
        return None
    first = next((line for line in read_lines(path) if line.strip()), "{}")
    record = parse_record(first.strip(), f"{path}:1")
    for kind, fields in (
        ("labels", ("text", "label")),
        ("pairs", ("source", "target")),
        ("completions", ("prompt", "completion")),
        ("completions", ("messages",)),
    ):
        if record.keys() >= set(fields):
            return cast(ExampleKind, kind)
    return None


def is_jsonl(path: Path) -> bool:
    """Whether a file is JSONL by its name."""
    return path.name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson"))


def read_lines(file: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, decompressed if it ends in ".gz", without their ends.

    Raises:
        DataError: Naming the file, and the line of what is not UTF-8.
    """
    try:
        packed = file.suffix.lower() == ".gz"
        with gzip.open(file, "rb") if packed else file.open("rb") as stream:
            for number, line in enumerate(cast(BinaryIO, stream), start=1):
                try:
                    text = line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise invalid_utf8(f"{file}:{number}", error.start, error) from None
                if number == 1:
                    text = text.removeprefix("\ufeff")
                yield text.removesuffix("\n").removesuffix("\r")
    except (EOFError, zlib.error) as error:
        raise DataError(f"{file}: truncated or damaged: {error}; copy it again") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


# -- conversations ------------------------------------------------------------------------------


def chat_prompt(messages: Sequence[Mapping[str, str]]) -> str:
    r"""Write a conversation as the prompt of the assistant's next turn.

    Each turn is its role between "<|" and "|>" and its content, on lines of their own; the last
    line is the role of the turn that is wanted.

    Example:
        >>> chat_prompt([{"role": "user", "content": "Hello?"}])
        '<|user|>\nHello?\n<|assistant|>\n'
    """
    turns = "".join(f"<|{turn['role']}|>\n{turn['content']}\n" for turn in messages)
    return f"{turns}<|assistant|>\n"


def chat_turns(messages: Any, place: str) -> Iterator[tuple[str, str]]:
    """Yield a (prompt, completion) for each turn of the assistant in a conversation.

    Raises:
        DataError: It is not a list of {"role", "content"}, or the assistant has no turn.
    """
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise DataError(f'{place}: messages must be a list of {{"role", "content"}}')
    turns = [
        {name: text_in(turn, name, place) for name in ("role", "content")} for turn in messages
    ]
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not answers:
        raise DataError(f'{place}: no message has the role "assistant", so there is none to learn')
    for index in answers:
        yield chat_prompt(turns[:index]), turns[index]["content"]
