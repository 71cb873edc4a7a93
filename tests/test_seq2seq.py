"""Objectives on examples: pairs of texts, and texts with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmcore.errors import ConfigError, DataError, DTypeError, ShapeError, TokenIndexError
from llmcore.objectives import Classification, Seq2Seq

SOURCE = [[5, 6, 7], [8]]


def test_with_a_start_the_whole_target_is_predicted() -> None:
    batch = Seq2Seq(label_smoothing=0.1, decoder_start_id=2)(SOURCE, [[10], [11, 12, 13]])
    assert batch.enc_ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.enc_lengths.tolist() == [3, 1]
    assert batch.dec_ids.tolist() == [[2, 0, 0], [2, 11, 12]]
    assert batch.dec_lengths.tolist() == [1, 3]
    assert batch.rows.tolist() == [0, 3, 4, 5]
    assert batch.targets.tolist() == [10, 11, 12, 13]
    assert batch.label_smoothing == 0.1
    assert batch.head == "tokens"
    assert batch.tokens == 4 + 4


def test_without_one_the_target_begins_with_it() -> None:
    batch = Seq2Seq()(SOURCE, [[2, 10], [3, 11, 12]])
    assert batch.dec_ids.tolist() == [[2, 0], [3, 11]]
    assert batch.dec_lengths.tolist() == [1, 2]
    assert batch.rows.tolist() == [0, 2, 3]
    assert batch.targets.tolist() == [10, 11, 12]


def test_the_end_is_added_once() -> None:
    batch = Seq2Seq(decoder_start_id=2, eos_id=1)(SOURCE, [[10, 1], [11]])
    assert batch.dec_ids.tolist() == [[2, 10], [2, 11]]
    assert batch.targets.tolist() == [10, 1, 11, 1]
    batch = Seq2Seq(eos_id=1)(SOURCE, [[2], [2, 1]])
    assert batch.dec_ids.tolist() == [[2], [2]]
    assert batch.targets.tolist() == [1, 1]
    # An empty text has a translation: none but its end.
    assert Seq2Seq(decoder_start_id=2, eos_id=1)([[5]], [[]]).targets.tolist() == [1]


@pytest.mark.parametrize(
    "make", [tuple, np.array, lambda rows: [np.array(row, np.uint16) for row in rows]]
)
def test_rows_of_any_kind(make: Any) -> None:
    rows = [[5, 6], [7, 8]]
    batch = Seq2Seq(decoder_start_id=0)(make(rows), make(rows))
    assert batch.enc_ids.tolist() == rows
    assert batch.targets.tolist() == [5, 6, 7, 8]
    assert batch.enc_ids.dtype == batch.dec_ids.dtype == batch.targets.dtype == np.int32


def test_each_pair_by_itself() -> None:
    rng = np.random.default_rng(0)
    source, target = (
        [rng.integers(1, 99, n).tolist() for n in rng.integers(1, 9, 7)] for _ in range(2)
    )
    objective = Seq2Seq(decoder_start_id=0, eos_id=100)
    together = objective(source, target, samples=np.arange(7), epoch=3)
    width = together.dec_ids.shape[1]
    for index, (read, write) in enumerate(zip(source, target, strict=True)):
        alone = objective([read], [write])
        assert alone.enc_ids.tolist() == [read]
        assert alone.targets.tolist() == [*write, 100]
        mine = together.rows // width == index
        np.testing.assert_array_equal(together.rows[mine] - index * width, alone.rows)
        np.testing.assert_array_equal(together.targets[mine], alone.targets)
        padded = [0] * (width - len(write) - 1)
        assert together.dec_ids[index].tolist() == [0, *write, *padded]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_classification(stack: Any) -> None:
    ids, types = [[1, 5, 6], [1], [1, 7]], [[0, 1, 1], [0], [0, 1]]
    batch = Classification(stack)(ids, [4, 0, 2], types=types)
    prefix = stack[:3]
    assert getattr(batch, f"{prefix}_ids").tolist() == [[1, 5, 6], [1, 0, 0], [1, 7, 0]]
    assert getattr(batch, f"{prefix}_lengths").tolist() == [3, 1, 2]
    assert batch.rows.tolist() == ([0, 3, 6] if stack == "encoder" else [2, 3, 7])
    assert batch.types.tolist() == [[0, 1, 1], [0, 0, 0], [0, 1, 0]]
    assert batch.targets.tolist() == [4, 0, 2]
    assert batch.head == "labels"
    assert Classification(stack)(ids, [4, 0, 2]).types is None


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Seq2Seq(decoder_start_id=-1), ConfigError, "decoder_start_id must be an id or No"),
        (lambda: Seq2Seq(eos_id="</s>"), ConfigError, "eos_id must be an id or None, got '</s>'"),
        (
            lambda: Seq2Seq()([[1], [2]], [[1, 2], [1]]),
            DataError,
            r"target, row 1 must have a start and an id to predict, got \[1\]",
        ),
        (lambda: Seq2Seq(decoder_start_id=0)([[1]], [[]]), DataError, r"predict, got \[0\]"),
        (lambda: Seq2Seq()([[1], []], [[1, 2]] * 2), DataError, "source, row 1 must have at least"),
        (lambda: Seq2Seq()([[1]], [[1, 2]] * 2), ShapeError, "number of rows, got 1 and 2"),
        (lambda: Seq2Seq()([1], [[1, 2]]), ShapeError, "source must be a list of lists of ids"),
        (lambda: Seq2Seq()(None, [[1, 2]]), ShapeError, "source, row 0 must have 1 axis"),
        (
            lambda: Seq2Seq()([[1]], [[1, -2]]),
            TokenIndexError,
            "row 0 must not be negative",
        ),
        (lambda: Seq2Seq(label_smoothing=1)([[1]], [[1, 2]]), DataError, "below 1, got 1"),
        (lambda: Classification("both"), ConfigError, "stack must be 'encoder' or 'decoder'"),
        (lambda: Classification()([[1]], [0, 1]), ShapeError, "ids and labels must have the same"),
        (lambda: Classification()([[1]], [0.5]), DTypeError, "labels must hold integers"),
        (lambda: Classification()([[1]], [-1]), TokenIndexError, "labels must not be negative"),
        (lambda: Classification()([[1], []], [0, 1]), DataError, "ids, row 1 must have at least 1"),
        (
            lambda: Classification()([[1]], [0], types=[[0], [1]]),
            ShapeError,
            "ids and types must have the same number of rows, got 1 and 2",
        ),
        (
            lambda: Classification()([[1], [2, 3]], [0, 0], types=[[0], [1]]),
            DataError,
            "types, row 1 must have as many entries as its ids, 2, got 1",
        ),
    ],
)
def test_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
