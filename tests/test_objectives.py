"""Objectives of a decoder by itself, and what a Batch accepts and refuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chi_square import assert_likely
from llmcore.errors import ConfigError, DataError, DTypeError, ShapeError, TokenIndexError
from llmcore.objectives import Batch, CausalLM, CompletionLM, PrefixLM, ReversedLM, as_ids


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
        (
            [[1, 2**31]],
            None,
            TokenIndexError,
            r"ids\[0, 1\] = 2147483648 is outside the range of 32 bits",
        ),
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


def assert_same(one: Batch, other: Batch) -> None:
    for field in dataclasses.fields(Batch):
        left, right = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(left, right, err_msg=field.name)


def ragged(rows: int, width: int, seed: int) -> Any:
    """Ids from 1 on with zeros after the lengths, and the lengths."""
    rng = np.random.default_rng(seed)
    ids, lengths = rng.integers(1, 100, (rows, width)), rng.integers(2, width + 1, rows)
    return ids * (np.arange(width) < lengths[:, None]), lengths


@given(rows=st.integers(1, 5), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_reversed_is_causal_on_the_text_turned_round(rows: int, width: int, seed: int) -> None:
    ids, lengths = ragged(rows, width, seed)
    turned = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        turned[row, :length] = ids[row, :length][::-1]
    objective, causal = ReversedLM(label_smoothing=0.1), CausalLM(label_smoothing=0.1)
    assert_same(objective(ids, lengths), causal(turned, lengths))
    assert_same(objective(ids), causal(ids[:, ::-1]))


@given(data=st.data(), rows=st.integers(1, 5), width=st.integers(2, 9))
def test_prefix_scores_what_follows_the_prefix(data: st.DataObject, rows: int, width: int) -> None:
    ids, lengths = ragged(rows, width, seed=rows)
    prefix = [data.draw(st.integers(0, int(length) - 1)) for length in lengths]
    batch = PrefixLM(label_smoothing=0.1)(ids, lengths, prefix_lengths=prefix)
    assert list(zip(batch.rows, batch.targets, strict=True)) == [
        (b * (width - 1) + t, ids[b, t + 1])
        for b, length in enumerate(lengths)
        for t in range(max(prefix[b] - 1, 0), length - 1)
    ]
    np.testing.assert_array_equal(batch.dec_ids, CausalLM()(ids, lengths).dec_ids)
    np.testing.assert_array_equal(batch.prefix_lengths, prefix)
    np.testing.assert_array_equal(batch.dec_lengths, lengths - 1)
    assert batch.label_smoothing == 0.1


def test_no_prefix_scores_what_causal_scores() -> None:
    ids, lengths = ragged(4, 9, seed=0)
    batch = PrefixLM()(ids, lengths, prefix_lengths=[0] * 4)
    assert_same(dataclasses.replace(batch, prefix_lengths=None), CausalLM()(ids, lengths))


def test_prefix_lengths_are_drawn_evenly() -> None:
    ids = np.ones((9000, 11), int)
    batch = PrefixLM(seed=4)(ids)
    assert_likely(np.bincount(batch.prefix_lengths)[1:], np.full(9, 1 / 9))
    some = PrefixLM(seed=4)(ids[:2], [11, 6], samples=[77, 5])
    np.testing.assert_array_equal(some.prefix_lengths[:1], batch.prefix_lengths[77:78])
    for other in (PrefixLM(seed=5)(ids), PrefixLM(seed=4)(ids, epoch=1)):
        assert not np.array_equal(other.prefix_lengths, batch.prefix_lengths)
    short = PrefixLM()(ids, np.full(9000, 4))
    assert_likely(np.bincount(short.prefix_lengths)[1:], [0.5, 0.5])
    assert set(PrefixLM()(ids, np.full(9000, 2)).prefix_lengths) == {1}


def test_completions_alone_are_scored() -> None:
    batch = CompletionLM(label_smoothing=0.1)([[1, 2, 3], [4], (5, 6)], [[7], [8, 9, 10], [11, 12]])
    assert batch.dec_ids.tolist() == [[1, 2, 3], [4, 8, 9], [5, 6, 11]]
    assert batch.dec_lengths.tolist() == [3, 3, 3]
    assert batch.rows.tolist() == [2, 3, 4, 5, 7, 8]
    assert batch.targets.tolist() == [7, 8, 9, 10, 11, 12]
    assert batch.label_smoothing == 0.1
    assert batch.prefix_lengths is None


@given(data=st.data(), rows=st.integers(1, 5), seed=st.integers(0, 9))
def test_each_completion_by_itself(data: st.DataObject, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = data.draw(st.lists(st.tuples(*[st.integers(1, 6)] * 2), min_size=rows, max_size=rows))
    prompts, completions = (
        [rng.integers(1, 99, size[i]).tolist() for size in sizes] for i in (0, 1)
    )
    together = CompletionLM()(prompts, completions)
    width, done = together.dec_ids.shape[1], 0
    for index, pair in enumerate(zip(prompts, completions, strict=True)):
        alone = CompletionLM()(*([column] for column in pair))
        whole = [*pair[0], *pair[1]]
        assert alone.dec_ids.tolist() == [whole[:-1]]
        assert together.dec_ids[index].tolist() == whole[:-1] + [0] * (width - len(whole) + 1)
        scored = slice(done, done + len(pair[1]))
        np.testing.assert_array_equal(together.rows[scored], alone.rows + index * width)
        np.testing.assert_array_equal(together.targets[scored], pair[1])
        done = scored.stop
    assert done == len(together.rows)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ReversedLM()([[1]]), ShapeError, r"ReversedLM: ids must be \[B, T \+ 1\]"),
        (lambda: ReversedLM()([[1, 2]], [1]), DataError, "ReversedLM: lengths must be from 2 to 2"),
        (lambda: PrefixLM(seed=-1), ConfigError, "PrefixLM: seed must be a whole number"),
        (lambda: PrefixLM()([[1]]), ShapeError, r"PrefixLM: ids must be \[B, T \+ 1\]"),
        (
            lambda: PrefixLM()([[1, 2, 3]], prefix_lengths=[3]),
            DataError,
            "prefix_lengths must be from 0 to 2, got 3 in row 0",
        ),
        (
            lambda: PrefixLM()([[1, 2, 3]], [2], prefix_lengths=[2]),
            DataError,
            "leave an id to predict: at most 1 in row 0, got 2",
        ),
        (
            lambda: PrefixLM()([[1, 2, 3]], prefix_lengths=[1, 1]),
            ShapeError,
            r"prefix_lengths must have one entry for each row of ids, \[1\], got \[2\]",
        ),
        (
            lambda: PrefixLM()([[1, 2]], samples=[1, 2]),
            ShapeError,
            "PrefixLM: samples must have one entry for each row",
        ),
        (
            lambda: CompletionLM()([[1], []], [[1], [2]]),
            DataError,
            "prompts, row 1 must have at least 1 id, got 0",
        ),
        (
            lambda: CompletionLM()([[1]], [[]]),
            DataError,
            "completions, row 0 must have at least 1 id, got 0",
        ),
        (
            lambda: CompletionLM()([[1]], [[1], [2]]),
            ShapeError,
            "same number of rows, got 1 and 2",
        ),
        (lambda: CompletionLM()([1], [[1]]), ShapeError, "prompts must be a list of lists of ids"),
        (lambda: CompletionLM()([], []), ShapeError, "prompts must have at least one row"),
        (lambda: CompletionLM()("ab", "cd"), ShapeError, "prompts must be a list of lists of ids"),
        (
            lambda: CompletionLM()(["ab"], ["c"]),
            ShapeError,
            "lists of ids, got one of 'ab'",
        ),
        (lambda: CompletionLM()([[1.5]], [[1]]), DTypeError, "prompts, row 0 must hold integers"),
        (
            lambda: CompletionLM()([[1], [-1]], [[1], [2]]),
            TokenIndexError,
            "prompts, row 1 must not be negative, got -1",
        ),
    ],
)
def test_objectives_refuse(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


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
        ({"dec_ids": IDS, "rows": [0, 1], "head": "label"}, DataError, "or 'labels', got 'label'"),
        ({"enc_ids": [[1], [2]], "head": "labels"}, ShapeError, "'labels' needs rows"),
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
