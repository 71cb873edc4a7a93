"""Data sets of examples: pairs of texts and labelled texts, as ragged columns of token ids."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llmcore.data.sampling import Sample, check_sizes
from llmcore.data.shards import load_index
from llmcore.data.tokens import TokenDataset, digest
from llmcore.draws import mix
from llmcore.errors import DataError, DTypeError, ShapeError

if TYPE_CHECKING:
    import os

    from llmcore.tokenizer import Tokenizer

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

#: The column that holds segments, not ids.
TYPES = "types"


class ExampleDataset:
    """Examples, each of one or two texts and perhaps a label.

    What an objective is given, in this order, are the columns of ids and then the labels:
    "source" and "target" for `Seq2Seq` and `CompletionLM`, "text" and the labels for
    `Classification`.

    Attributes:
        name: What errors call these data.
        columns: Name to ids, each example a document; those of "types" are segments.
        labels: [N] int32, or None.
        label_names: What the labels are called, in the order of their numbers, or ().

    Example:
        >>> pairs = ExampleDataset.from_pairs([[4, 5], [6]], [[7], [8, 9, 1]])
        >>> len(pairs), pairs.longest
        (2, {'source': 2, 'target': 3})
        >>> labelled = ExampleDataset.from_labels([[4, 5], [6]], ["good", "bad"])
        >>> labelled.labels.tolist(), labelled.label_names
        ([1, 0], ('bad', 'good'))
    """

    def __init__(
        self,
        columns: Mapping[str, TokenDataset],
        labels: Int32Array | None = None,
        *,
        name: str = "the data set",
        label_names: Sequence[str] = (),
        rows: Int64Array | None = None,
    ) -> None:
        """Join columns of the same number of documents; use `from_pairs`, … or `open` instead.

        Args:
            columns: See the attribute.
            labels: One for each document.
            name: See the attribute.
            label_names: See the attribute.
            rows: [N] documents that are the examples; all of them if None.
        """
        self.name = name
        self.columns = dict(columns)
        self.label_names = tuple(label_names)
        # Where each text begins, and where the last one ends.
        self._borders = {
            column: np.append(ids.document_starts, len(ids)) for column, ids in self.columns.items()
        }
        count = len(next(iter(self._borders.values()))) - 1
        self._rows = np.arange(count) if rows is None else rows
        self._all_labels = labels
        self.labels: Int32Array | None = None if labels is None else labels[self._rows]

    @classmethod
    def from_pairs(
        cls, sources: Sequence[ArrayLike], targets: Sequence[ArrayLike], *, name: str = "the pairs"
    ) -> ExampleDataset:
        """Make a data set of pairs: source and translation, prompt and completion.

        Args:
            sources: N lists or arrays of ids, none empty.
            targets: As many.
            name: What errors call these data.

        Raises:
            DataError: They are not as many, or one is empty.
            DTypeError, ShapeError: They are not lists of lists of integers.
        """
        columns = {"source": _column(sources, f"{name}: sources")}
        columns["target"] = _column(targets, f"{name}: targets")
        _check_as_many(name, sources=len(sources), targets=len(targets))
        return cls(columns, name=name)

    @classmethod
    def from_labels(
        cls,
        texts: Sequence[ArrayLike],
        labels: Sequence[int] | Sequence[str] | NDArray[Any],
        *,
        types: Sequence[ArrayLike] | None = None,
        label_names: Sequence[str] = (),
        name: str = "the labelled texts",
    ) -> ExampleDataset:
        """Make a data set of labelled texts.

        Args:
            texts: N lists or arrays of ids, none empty.
            labels: One for each: whole numbers from 0 on, or names.
            types: Segments of the texts' ids, shaped as they are; None for none.
            label_names: The names in the order of their numbers; those of `labels`, sorted, if not
                given.
            name: What errors call these data.

        Raises:
            DataError: They are not as many, a text is empty, or a label is unknown.
            DTypeError, ShapeError: `texts` are not lists of lists of integers.
        """
        columns = {"text": _column(texts, f"{name}: texts")}
        if types is not None:
            columns[TYPES] = _column(types, f"{name}: types")
            _check_as_many(name, texts=len(texts), types=len(types))
            if not np.array_equal(
                columns["text"].document_starts, columns[TYPES].document_starts
            ) or len(columns["text"]) != len(columns[TYPES]):
                raise ShapeError(f"{name}: each text must have as many types as ids")
        _check_as_many(name, texts=len(texts), labels=len(labels))
        names = list(label_names) or label_names_of(labels, name)
        numbers = [label_number(label, names, f"{name}, {i}") for i, label in enumerate(labels)]
        return cls(columns, np.asarray(numbers, np.int32), name=name, label_names=names)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], split: str = "train", *, verify: bool = True
    ) -> ExampleDataset:
        """Map what `llmcore.data.example_tokenizing.tokenize_examples` wrote.

        Raises:
            DataError: As `TokenDataset.open`; or the directory does not hold examples.
        """
        directory = Path(path)
        index = load_index(directory)
        if not holds_examples(index):
            raise DataError(f"{directory} holds a sequence of tokens, not examples")
        names = index["columns"]
        if f"{split}-{names[0]}" not in index["splits"]:
            raise DataError(f"{directory}: there is no split {split!r}")
        columns = {
            column: TokenDataset.open(directory, f"{split}-{column}", verify=verify)
            for column in names
        }
        labels = columns.pop("label", None)
        return cls(
            columns,
            None if labels is None else labels.read(0, len(labels)),
            name=f"{directory} ({split})",
            label_names=index["label_names"],
        )

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._rows)

    def __repr__(self) -> str:
        return f"ExampleDataset({self.name!r}, examples={len(self)})"

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer kept beside the files; None for ids given in memory."""
        return next(iter(self.columns.values())).tokenizer

    @property
    def num_labels(self) -> int:
        """How many labels there are; 0 without labels."""
        if self._all_labels is None:
            return 0
        return len(self.label_names) or int(self._all_labels.max(initial=-1)) + 1

    @cached_property
    def lengths(self) -> Int64Array:
        """[N, columns] int64, the ids of each example in each column but that of types."""
        found = [
            np.diff(borders)[self._rows]
            for column, borders in self._borders.items()
            if column != TYPES
        ]
        return np.stack(found, axis=1)

    @property
    def longest(self) -> dict[str, int]:
        """The ids of the longest text of each column."""
        names = [column for column in self.columns if column != TYPES]
        return dict(zip(names, self.lengths.max(axis=0, initial=0).tolist(), strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """A short string that differs, in all likelihood, between different data."""
        facts: list[Any] = [list(self.label_names), zlib.crc32(self._rows.tobytes())]
        for column, ids in self.columns.items():
            facts += [column, ids.fingerprint, zlib.crc32(ids.document_starts.tobytes())]
        if self.labels is not None:
            facts.append(zlib.crc32(self.labels.tobytes()))
        return digest(facts)

    def check_vocab(self, vocab_size: int) -> None:
        """Raise `DataError` unless every id is within a vocabulary of `vocab_size`."""
        for column, ids in self.columns.items():
            if column != TYPES:
                ids.check_vocab(vocab_size)

    def take(self, examples: Int64Array, epoch: int = 0) -> Sample:
        """Return the examples with these numbers, [n], as an objective takes them."""
        rows = {name: self._texts(name, self._rows[examples]) for name in self.columns}
        types = rows.pop(TYPES, None)
        labels = () if self.labels is None else (self.labels[examples],)
        return Sample((*rows.values(), *labels), examples, epoch, types)

    def _texts(self, column: str, documents: Int64Array) -> list[Int32Array]:
        ids, borders = self.columns[column], self._borders[column]
        bounds = zip(borders[documents].tolist(), borders[documents + 1].tolist(), strict=True)
        return [ids.read(start, stop) for start, stop in bounds]

    def by_length(self, examples: Int64Array) -> Int64Array:
        """Return the examples with these numbers from the shortest to the longest."""
        lengths = self.lengths[examples]
        # The last key counts most.
        order = np.lexsort([*lengths.T, lengths.max(axis=1)])
        return examples[order]

    def split(self, val_fraction: float) -> tuple[ExampleDataset, ExampleDataset]:
        """Return two data sets that share memory: most examples, and the share set aside.

        What is set aside comes from everywhere in the data, which may be sorted by their labels.

        Raises:
            DataError: The fraction is not above 0 and below 1, or one side would be empty.
        """
        if not 0.0 < val_fraction < 1.0:
            raise DataError(f"val_fraction must be above 0 and below 1, got {val_fraction}")
        aside = set_aside(np.arange(len(self)), val_fraction)
        if aside.all() or not aside.any():
            raise DataError(
                f"{self.name} has {len(self)} examples, too few to set {val_fraction:.0%} aside"
            )
        return self._part(~aside, "train"), self._part(aside, "val")

    def _part(self, chosen: NDArray[np.bool_], split: str) -> ExampleDataset:
        return ExampleDataset(
            self.columns,
            self._all_labels,
            name=f"{self.name} ({split})",
            label_names=self.label_names,
            rows=self._rows[chosen],
        )

    def eval_batches(self, batch_size: int, max_batches: int | None = None) -> Iterator[Sample]:
        """Yield the same batches every time, for evaluation: samples of epoch 0.

        With fewer batches than all examples take, these are spread evenly over the data. A batch
        holds examples of similar length.

        Raises:
            DataError: There are no examples, or the batch size is not positive.
        """
        check_sizes(1, batch_size)
        total = len(self)
        if total == 0:
            raise DataError(f"{self.name} has no examples")
        count = total if max_batches is None else min(total, max_batches * batch_size)
        examples = self.by_length(np.arange(count, dtype=np.int64) * total // count)
        for first in range(0, count, batch_size):
            yield self.take(examples[first : first + batch_size])


def set_aside(examples: Int64Array, fraction: float) -> NDArray[np.bool_]:
    """Return whether the examples with these numbers, [n], are for validation.

    Of each run of 1 / `fraction` examples it is one, at a place that varies without a pattern: data
    that alternate between labels, say, keep the balance of these.

    Example:
        >>> aside = set_aside(np.arange(100), 0.25)
        >>> int(aside.sum()), np.flatnonzero(aside)[:5].tolist()
        (25, [0, 5, 10, 12, 16])
    """

    def first_of(run: NDArray[np.float64]) -> NDArray[np.float64]:
        """The least i with floor(i · fraction) = run, however the division was rounded."""
        guess = np.ceil(run / fraction)
        guess -= np.floor((guess - 1) * fraction) >= run
        return guess + (np.floor(guess * fraction) < run)

    run = np.floor(examples * fraction)
    first, end = first_of(run), first_of(run + 1)
    chosen = first + mix(run.astype(np.uint64)) % (end - first).astype(np.uint64)
    aside: NDArray[np.bool_] = examples == chosen
    return aside


def holds_examples(index: Mapping[str, Any]) -> bool:
    """Whether the index of a tokenized data set is one of examples."""
    return "columns" in index


def label_names_of(labels: Any, what: str) -> list[str]:
    """Return the names among `labels` in order; none where labels are numbers.

    Raises:
        DataError: Some are names and some are numbers.
    """
    kinds = {isinstance(label, str) for label in labels}
    if len(kinds) > 1:
        raise DataError(f"{what}: labels must be all names or all whole numbers, got both")
    return sorted(set(labels)) if kinds == {True} else []


def label_number(label: Any, names: Sequence[str], place: str) -> int:
    """Return the number of a label.

    Raises:
        DataError: It is not a label; `place` says where.

    Example:
        >>> label_number("good", ["bad", "good"], "reviews.tsv:3")
        1
    """
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        known = f"the labels are {', '.join(map(repr, names))}" if names else "labels are numbers"
        raise DataError(f"{place}: unknown label {label!r}; {known}")
    whole = isinstance(label, (int, np.integer)) and not isinstance(label, bool)
    if not whole or not 0 <= label < (len(names) or 2**31):
        below = f" to {len(names) - 1}" if names else " on"
        raise DataError(f"{place}: a label must be a whole number from 0{below}, got {label!r}")
    return int(label)


def _column(rows: Sequence[ArrayLike], what: str) -> TokenDataset:
    """Lay rows of ids end to end."""
    arrays = []
    for index, row in enumerate(rows):
        try:
            array = np.asarray(row)
        except ValueError:
            raise ShapeError(f"{what}: row {index} must be one list of ids") from None
        if array.ndim != 1:
            raise ShapeError(f"{what} must be a list of lists of ids, got {array.ndim} axes in one")
        if array.size == 0:
            raise DataError(f"{what}: row {index} is empty; leave the example out")
        if array.dtype.kind not in "iu":
            raise DTypeError(f"{what} must hold integers, got {array.dtype} in row {index}")
        arrays.append(array)
    lengths = [array.size for array in arrays]
    starts = np.cumsum([0, *lengths])[:-1].astype(np.int64)
    flat = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
    return TokenDataset([flat], name=what, document_starts=starts)


def _check_as_many(name: str, **counts: int) -> None:
    if len(set(counts.values())) > 1:
        one, other = counts
        raise DataError(
            f"{name}: there must be as many {one} as {other}, got {counts[one]} and {counts[other]}"
        )
