"""The causal objective, and what a Batch accepts and refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.errors import DataError, DTypeError, ShapeError, TokenIndexError
from llmcore.objectives import Batch, CausalLM, as_ids


@given(rows=st.integers(1, 5), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_causal_predicts_the_next_id(rows: int, width: int, seed: int) -> None:
    ids = np.random.default_rng(seed).integers(0, 100, (rows, width))
    batch = CausalLM()(ids)
    assert batch.dec_ids is not None
    np.testing.assert_array_equal(batch.dec_ids, ids[:, :-1])
    np.testing.assert_array_equal(batch.targets, ids[:, 1:].ravel())
    np.testing.assert_array_equal(batch.weights, 1)
    assert batch.rows is None
    assert batch.dec_lengths is None
    assert batch.enc_ids is None
    assert batch.num_targets == batch.tokens == rows * (width - 1)


@given(data=st.data(), rows=st.integers(1, 5), width=st.integers(2, 9))
def test_causal_scores_only_real_targets(data: st.DataObject, rows: int, width: int) -> None:
    lengths = data.draw(st.lists(st.integers(2, width), min_size=rows, max_size=rows))
    ids = np.random.default_rng(rows).integers(0, 100, (rows, width))
    batch = CausalLM(label_smoothing=0.1)(ids, lengths)
    expected = [
        (b * (width - 1) + t, ids[b, t + 1])
        for b, length in enumerate(lengths)
        for t in range(length - 1)
    ]
    assert batch.rows is not None
    assert batch.dec_lengths is not None
    assert list(zip(batch.rows, batch.targets, strict=True)) == expected
    assert batch.dec_lengths.tolist() == [length - 1 for length in lengths]
    assert batch.tokens == batch.num_targets == sum(lengths) - rows
    assert batch.label_smoothing == 0.1


def test_full_lengths_give_the_same_targets_as_none() -> None:
    ids = np.arange(12).reshape(3, 4)
    ragged, full = CausalLM()(ids, [4, 4, 4]), CausalLM()(ids)
    assert ragged.rows is not None
    np.testing.assert_array_equal(ragged.rows, np.arange(9))
    np.testing.assert_array_equal(ragged.targets, full.targets)


class WithArray:
    """What a Tensor looks like from here."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
        return np.asarray(self._value, dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda ids: ids,
        lambda ids: np.array(ids, np.uint8),
        lambda ids: np.array(ids, np.int64),
        lambda ids: np.asfortranarray(np.array(ids, np.int32)),
        lambda ids: np.array(ids, np.uint16)[:, :],
        WithArray,
    ],
)
def test_ids_of_any_kind_become_contiguous_int32(make: Any) -> None:
    batch = CausalLM()(make([[1, 2, 3], [4, 5, 6]]))
    for field in (batch.dec_ids, batch.targets):
        assert field is not None
        assert field.dtype == np.int32
        assert field.flags.c_contiguous
    assert batch.targets.tolist() == [2, 3, 5, 6]


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "message"),
    [
        ([[1]], None, ShapeError, r"\[B, T \+ 1\] with T at least 1, got \[1, 1\]"),
        ([1, 2], None, ShapeError, r"ids must have 2 axes, got shape \[2\]"),
        ([[1, 2], [3]], None, ShapeError, "rows of equal length; pad them and give lengths"),
        ([[1.0, 2.0]], None, DTypeError, "must hold integers, got float64"),
        ([[1, -2]], None, TokenIndexError, "must not be negative, got -2"),
        ([[1, 2**31]], None, TokenIndexError, "must fit in 32 bits, got 2147483648"),
        ([[1, 2]], [2, 2], ShapeError, r"one entry for each row of ids, \[1\], got \[2\]"),
        ([[1, 2], [3, 4]], [2, 1], DataError, "from 2 to 2, got 1 in row 1"),
        ([[1, 2]], [3], DataError, "from 2 to 2, got 3 in row 0"),
        ([[1, 2]], [1.5], DTypeError, "lengths must hold integers"),
        (np.zeros((0, 3), int), None, ShapeError, "at least one row and one column"),
    ],
)
def test_causal_refuses(ids: Any, lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CausalLM()(ids, lengths)


IDS = np.arange(6).reshape(2, 3)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ShapeError, "give dec_ids, enc_ids, or both"),
        ({"dec_ids": IDS}, ShapeError, "a target for each of the 6 positions, got 2"),
        ({"dec_ids": IDS, "rows": [1]}, ShapeError, r"one entry for each target, \[2\], got \[1\]"),
        ({"dec_ids": IDS, "rows": [1, 6]}, DataError, r"below B\*T = 6, got 6"),
        ({"dec_ids": IDS, "rows": [1, 1]}, DataError, "ascending order without repeats"),
        ({"dec_ids": IDS, "rows": [3, 2]}, DataError, "ascending order without repeats"),
        ({"dec_ids": IDS, "rows": [-1, 2]}, DataError, "rows must not be negative"),
        (
            {"dec_ids": IDS, "rows": [0, 1], "weights": [1.0]},
            ShapeError,
            r"weights must have one entry for each target, \[2\], got \[1\]",
        ),
        (
            {"dec_ids": IDS, "rows": [0, 1], "weights": [1.0, np.nan]},
            DataError,
            "finite and not negative",
        ),
        ({"dec_ids": IDS, "rows": [0, 1], "dec_lengths": [3, 0]}, DataError, "got 0 in row 1"),
        (
            {"dec_ids": IDS, "rows": [0, 1], "enc_lengths": [3, 3]},
            ShapeError,
            "enc_lengths is given without enc_ids",
        ),
        (
            {"dec_ids": IDS, "rows": [0, 1], "prefix_lengths": [4, 0]},
            DataError,
            "prefix_lengths must be from 0 to 3, got 4 in row 0",
        ),
        (
            {"dec_ids": IDS, "enc_ids": [[1]], "rows": [0, 1]},
            ShapeError,
            "same number of rows, got 2 and 1",
        ),
        (
            {"enc_ids": IDS, "rows": [0, 1], "types": [[0, 1]]},
            ShapeError,
            r"shape of the ids, \[2, 3\], got \[1, 2\]",
        ),
        ({"dec_ids": IDS, "rows": [0, 1], "label_smoothing": 1.0}, DataError, "below 1, got 1.0"),
    ],
)
def test_batch_refuses(fields: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Batch(targets=[7, 8], **fields)  # type: ignore[arg-type]


def test_rows_index_the_decoder_when_there_are_two_stacks() -> None:
    batch = Batch(
        enc_ids=np.ones((2, 9), int),  # type: ignore[arg-type]
        enc_lengths=[9, 4],  # type: ignore[arg-type]
        dec_ids=IDS,  # type: ignore[arg-type]
        dec_lengths=[3, 1],  # type: ignore[arg-type]
        rows=[0, 5],  # type: ignore[arg-type]
        targets=[1, 2],  # type: ignore[arg-type]
        weights=[0.5, 2],  # type: ignore[arg-type]
    )
    assert batch.tokens == 9 + 4 + 3 + 1
    assert batch.num_targets == 2.5
    assert batch.weights.dtype == np.float32


def test_nothing_to_predict_is_a_batch_of_weight_zero() -> None:
    batch = Batch(enc_ids=IDS, rows=[], targets=[])  # type: ignore[arg-type]
    assert batch.num_targets == 0.0
    assert batch.rows is not None
    assert batch.rows.dtype == np.int32


def test_num_targets_adds_many_weights_exactly() -> None:
    # 2^24 + 1 is not a float32: summed in single precision the last one would be lost.
    count = 2**24 // 4096
    weights = np.full(count + 1, 4096.0, np.float32)
    weights[-1] = 1.0
    batch = Batch(
        dec_ids=np.zeros((1, count + 1), np.int32),
        targets=np.zeros(count + 1, np.int32),
        weights=weights,
    )
    assert batch.num_targets == 2**24 + 1


def test_a_batch_cannot_be_changed() -> None:
    batch = CausalLM()([[1, 2]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.targets = batch.targets  # type: ignore[misc]


def test_as_ids_does_not_copy_what_is_right_already() -> None:
    ids = np.zeros((2, 3), np.int32)
    assert as_ids(ids, "ids", ndim=2) is ids
