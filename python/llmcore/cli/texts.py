"""Texts of a command: given as options, or the lines of a file or of standard input, in batches."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from llmcore.cli.common import refuse
from llmcore.errors import DataError, LlmcoreError

Result = TypeVar("Result")

TextOption = Annotated[
    list[str] | None, typer.Option("--text", help="A text; repeatable.", show_default=False)
]
InputOption = Annotated[
    Path | None,
    typer.Option("--input", help="File with a text on each line; standard input if not given."),
]
BatchSizeOption = Annotated[int, typer.Option(help="Texts in one batch.", min=1)]

_STDIN = Path("/dev/stdin")


@dataclass(frozen=True)
class Texts:
    """Texts, read as they are needed.

    Attributes:
        name: of where they come from.
        word: what one of them is called: "line" or "text".
        items: the texts, once.
    """

    name: str
    word: str
    items: Iterable[str]

    def each(
        self,
        batch_size: int,
        work: Callable[[Sequence[str]], Sequence[Result]],
        *,
        blank: Result | None = None,
    ) -> Iterator[tuple[str, Result]]:
        """Put batches of texts to work, and yield each text with its result, in order.

        Args:
            batch_size: texts in a batch.
            work: gives one result for each text.
            blank: the result of texts of nothing but white space, which are then not put to work.

        Raises:
            DataError: there are no texts.
            LlmcoreError: of `work`, saying which text it is about.
        """
        items, done = iter(self.items), 0
        while chunk := list(itertools.islice(items, batch_size)):
            asked = [i for i, text in enumerate(chunk) if blank is None or text.strip()]
            results: dict[int, Result | None] = dict.fromkeys(range(len(chunk)), blank)
            if asked:
                try:
                    found = work([chunk[i] for i in asked])
                except LlmcoreError as error:
                    raise self._placed(error, [done + i + 1 for i in asked]) from error
                results.update(zip(asked, found, strict=True))
            for index, text in enumerate(chunk):
                yield text, results[index]  # type: ignore[misc]  # blank only where wanted
            done += len(chunk)
        if not done:
            raise DataError(f"there is no text in {self.name}")

    def _placed(self, error: LlmcoreError, numbers: Sequence[int]) -> LlmcoreError:
        """The same error about this text of ours, where it was about that item of a list."""

        def name(found: re.Match[str]) -> str:
            return f"{self.name}: {self.word} {numbers[int(found[1])]}"

        text = re.sub(r"(?:\w+: )?(?:texts|prompts|sources)\[(\d+)\]", name, str(error), count=1)
        return type(error)(text)


def read_texts(texts: Sequence[str] | None, file: Path | None) -> Texts:
    """The texts that a command was given.

    Raises:
        click.UsageError: both, an empty text, or nothing where standard input is a terminal.
        DataError: there is no such file.
    """
    from llmcore.data.example_files import read_lines

    if texts:
        if file is not None:
            refuse("--text and --input exclude each other")
        if not all(text.strip() for text in texts):
            refuse("--text must not be empty")
        return Texts("--text", "text", texts)
    if file is None:
        if sys.stdin is None or sys.stdin.isatty():
            refuse("give --text, --input, or text on standard input")
        return Texts("standard input", "line", read_lines(_STDIN))
    if not file.exists():
        raise DataError(f"there is no file {file}")
    return Texts(str(file), "line", read_lines(file))
