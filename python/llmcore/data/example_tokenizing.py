"""From files of examples to columns of token ids: framing, cutting, and what is kept on disk."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmcore.data.example_files import Example, ExampleFiles, ExampleKind
from llmcore.data.examples import TYPES, label_names_of, label_number, set_aside
from llmcore.data.shards import SHARD_TOKENS, SplitWriter, publish, staging, write_index
from llmcore.errors import DataError

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer

Rows = list[list[int]]

#: Examples encoded at a time.
_CHUNK = 1024


@dataclass(frozen=True)
class TokenizedExamples:
    """What `tokenize_examples` wrote.

    Attributes:
        examples: number of examples of each split.
        cut: texts that were longer than the limit and have lost their end (a prompt, its
            beginning).
    """

    examples: dict[str, int]
    cut: int


class ExampleEncoder:
    """Turns the texts of examples into ids, with the special tokens a model expects around them.

    * Pairs: what the tokenizer puts around each text, and at its end the end-of-text token. So
      sources are to be encoded for a trained model, too: `encode_source`.
    * Completions: the prompt as it is, so that a model can be given it by itself; the completion
      ends with the end-of-text token.
    * Labels: what the tokenizer puts around a text or a pair of texts.

    Attributes:
        cut: texts cut so far.
    """

    def __init__(
        self, tokenizer: Tokenizer, kind: ExampleKind, *, limit: int | None, types: bool = False
    ) -> None:
        """Prepare to encode.

        Args:
            tokenizer: Gives the ids.
            kind: What the examples are.
            limit: Most ids of a text (of prompt and completion together); None for no limit.
            types: Whether to tell the two texts of a label apart by their types.
        """
        self.cut = 0
        self._tokenizer = tokenizer
        self._kind = kind
        self._limit = limit
        self._types = types and kind == "labels"
        self._end = end_id(tokenizer)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of ids that examples become."""
        if self._kind != "labels":
            return ("source", "target")
        return ("text", TYPES) if self._types else ("text",)

    def encode(self, examples: Sequence[Example]) -> tuple[Rows, ...]:
        """Return the rows of each column."""
        if self._kind == "pairs":
            return tuple(map(self._with_end, self._texts(examples)))
        if self._kind == "completions":
            prompts, completions = self._texts(examples, special=(True, False))
            return self._completions(prompts, completions)
        if any(len(example.texts) > 1 for example in examples):
            return self._text_pairs(examples)
        (texts,) = self._texts(examples)
        rows = [self._shorten(row) for row in texts]
        return (rows, [[0] * len(row) for row in rows]) if self._types else (rows,)

    def _texts(
        self, examples: Sequence[Example], special: tuple[bool, bool] = (True, True)
    ) -> tuple[Rows, ...]:
        columns = zip(*(example.texts for example in examples), strict=True)
        with naming_the_place(examples, self._tokenizer.encode):
            return tuple(
                self._tokenizer.encode_batch(texts, add_special_tokens=add)
                for texts, add in zip(columns, special, strict=False)
            )

    def _with_end(self, rows: Rows) -> Rows:
        return [self._shorten(row) for row in ending_with(rows, self._end)]

    def _completions(self, prompts: Rows, completions: Rows) -> tuple[Rows, Rows]:
        completions = ending_with(completions, self._end)
        limit = self._limit
        if limit is not None:
            for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
                if len(prompt) + len(completion) > limit:
                    self.cut += 1
                    # One id of the prompt must be left to begin from: its end, which matters most.
                    completions[index] = completion[: limit - 1]
                    prompts[index] = prompt[len(completions[index]) - limit :]
        return prompts, completions

    def _text_pairs(self, examples: Sequence[Example]) -> tuple[Rows, ...]:
        # The library's own truncation keeps the tokens around the texts; the tokenizer itself is
        # left as it is, since it is saved.
        backend = type(self._tokenizer.backend).from_str(self._tokenizer.backend.to_str())
        pairs = [(example.texts[0], example.texts[-1]) for example in examples]
        full = backend.encode_batch(pairs)
        found = full
        if self._limit is not None and any(len(row.ids) > self._limit for row in full):
            backend.enable_truncation(self._limit)
            found = backend.encode_batch(pairs)
            self.cut += sum(len(row.ids) > self._limit for row in full)
        ids = [list(row.ids) for row in found]
        return (ids, [list(row.type_ids) for row in found]) if self._types else (ids,)

    def _shorten(self, row: list[int]) -> list[int]:
        """Cut a text that is too long, but for the special token it ends with."""
        if self._limit is None or len(row) <= self._limit:
            return row
        self.cut += 1
        last = row[-1:] if row[-1] == self._end else []
        return [*row[: self._limit - len(last)], *last]


def encode_source(tokenizer: Tokenizer, texts: Sequence[str]) -> Rows:
    """Return the ids of texts as an encoder–decoder reads them: with the end-of-text token."""
    return ending_with(tokenizer.encode_batch(texts), end_id(tokenizer))


def ending_with(rows: Rows, end: int | None) -> Rows:
    """Add `end` to the rows that do not end with it; None adds nothing."""
    return [row if end is None or row[-1:] == [end] else [*row, end] for row in rows]


def end_id(tokenizer: Tokenizer) -> int | None:
    """The token that ends a text, or None: the tokenizer's end-of-text token, or BERT's "[SEP]"."""
    return tokenizer.sep_id if tokenizer.eos_id is None else tokenizer.eos_id


def tokenize_examples(
    files: ExampleFiles,
    tokenizer: Tokenizer,
    out_dir: Path,
    *,
    validation: ExampleFiles | None = None,
    val_fraction: float = 0.0,
    limit: int | None = None,
    types: bool = False,
    label_names: Sequence[str] = (),
) -> TokenizedExamples:
    """Tokenize examples into the files that `llmcore.ExampleDataset.open` maps.

    Each column of each split is kept as a sequence of tokens is (`llmcore.data.shards`), an
    example a document; `index.json` names the columns and the labels.

    Args:
        files: The examples.
        tokenizer: Gives the ids; a copy is saved beside them.
        out_dir: Created if missing; the data set it holds is replaced.
        validation: Examples for the split "val".
        val_fraction: Without those, the share of `files` that is set aside for it.
        limit: See `ExampleEncoder`.
        types: See `ExampleEncoder`.
        label_names: The names of the labels in order; those in `files`, sorted, if not given.

    Raises:
        DataError: A file cannot be read (naming the line), a label is unknown, or a split is empty.
    """
    encoder = ExampleEncoder(tokenizer, files.kind, limit=limit, types=types)
    columns = [*encoder.columns, *(["label"] if files.kind == "labels" else [])]
    names = list(label_names)
    if files.kind == "labels" and not names:
        names = label_names_of([example.label for example in files], str(files))
    splits = {"train": files, "val": validation} if validation else {"train": files}
    if validation is None and val_fraction > 0:
        splits["val"] = files
    dtype = np.dtype("<u2" if max(tokenizer.vocab_size, len(names)) <= 1 << 16 else "<u4")
    with staging(out_dir) as stage, contextlib.ExitStack() as stack:
        writers = {
            f"{split}-{column}": stack.enter_context(
                SplitWriter(stage, f"{split}-{column}", dtype, SHARD_TOKENS)
            )
            for split in splits
            for column in columns
        }
        counts = dict.fromkeys(splits, 0)

        def write(examples: Sequence[Example], split: str) -> None:
            if not examples:
                return
            rows = encoder.encode(examples)
            if files.kind == "labels":
                numbers = [label_number(one.label, names, one.place) for one in examples]
                _check_numbers(numbers, examples, dtype)
                rows = (*rows, [[number] for number in numbers])
            for column, texts in zip(columns, rows, strict=True):
                for example, text in zip(examples, texts, strict=True):
                    if not text:
                        raise DataError(f"{example.place}: the tokenizer makes nothing of its text")
                    ids = np.asarray(text, dtype)
                    writers[f"{split}-{column}"].write(ids, new_document=True)
            counts[split] += len(examples)

        if validation is None and val_fraction > 0:
            done = 0
            for chunk in _chunks(files):
                aside = set_aside(np.arange(done, done + len(chunk)), val_fraction)
                done += len(chunk)
                for split in splits:
                    wanted = aside == (split == "val")
                    write([one for one, fits in zip(chunk, wanted, strict=True) if fits], split)
        else:
            for split, source in splits.items():
                for examples in _chunks(source):
                    write(examples, split)
        if 0 in counts.values():
            raise DataError(
                f"{files} has {sum(counts.values())} examples, too few to set {val_fraction:.0%}"
                " aside for validation"
            )
        tokenizer.save(stage)
        write_index(
            stage,
            dtype=dtype.name,
            vocab_size=tokenizer.vocab_size,
            kind=files.kind,
            columns=columns,
            label_names=names,
            splits={name: writer.finish() for name, writer in writers.items()},
        )
        publish(stage, out_dir)
    return TokenizedExamples(counts, encoder.cut)


def _check_numbers(
    numbers: Sequence[int], examples: Sequence[Example], dtype: np.dtype[np.unsignedinteger]
) -> None:
    most = int(np.iinfo(dtype).max)
    for number, example in zip(numbers, examples, strict=True):
        if number > most:
            raise DataError(f"{example.place}: a label must be at most {most}, got {number}")


def _chunks(examples: Iterable[Example]) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


@contextlib.contextmanager
def naming_the_place(
    examples: Sequence[Example], encode: Callable[[str], object]
) -> Iterator[None]:
    """Turn a `DataError` about a text of some example into one that says where that text is."""
    try:
        yield
    except DataError:
        for example in examples:
            for text in example.texts:
                try:
                    encode(text)
                except DataError as error:
                    raise DataError(f"{example.place}: {error}") from None
        raise
