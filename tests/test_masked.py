"""Masked language modelling: the draws' distribution, what they depend on, whole words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chi_square import LIKELY, assert_likely, survival
from llmcore.draws import Stream, grid, unit
from llmcore.errors import ConfigError, DataError, DTypeError, ShapeError, TokenIndexError
from llmcore.objectives import MaskedLM, word_starts
from llmcore.tokenizer import Tokenizer

MASK = 3
SPECIAL = (0, 1, 2, 39)


def texts(rows: int, width: int, vocab: int = 1000, seed: int = 0) -> Any:
    """Ids from 5 on: none special."""
    return np.random.default_rng(seed).integers(5, vocab, (rows, width), dtype=np.int32)


def chosen(objective: MaskedLM, ids: Any, **which: Any) -> Any:
    """Which positions are predicted, [B, T]."""
    batch = objective(ids, **which)
    found = np.zeros(np.size(ids), bool)
    found[batch.rows] = True
    return found.reshape(np.shape(ids))


# -- the distribution -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "critical"), [(1, 23.93), (2, 27.63), (7, 40.52), (64, 132.79)]
)
def test_the_test_itself(freedom: int, critical: float) -> None:
    # Critical values of p = 1e-6.
    assert survival(critical, freedom) == pytest.approx(1e-6, rel=0.01)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_likely([1800, 8200], [0.15, 0.85])


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_one_in_seven_is_chosen(seed: int) -> None:
    found = chosen(MaskedLM(MASK, seed=seed), texts(400, 512))
    assert_likely([found.sum(), (~found).sum()], [0.15, 0.85])


@pytest.mark.parametrize("probability", [0.02, 0.4])
def test_the_probability_is_the_one_asked_for(probability: float) -> None:
    found = chosen(MaskedLM(MASK, probability=probability), texts(200, 512))
    assert_likely([found.sum(), (~found).sum()], [probability, 1 - probability])


@pytest.mark.parametrize("axis", [0, 1])
def test_every_position_and_sample_is_chosen_as_often(axis: int) -> None:
    found = chosen(MaskedLM(MASK), texts(500, 500))
    counts = found.sum(axis)
    statistic = float(((counts - 75) ** 2 / (75 * 0.85)).sum())
    assert survival(statistic, 500) > LIKELY
    assert 1 - survival(statistic, 500) > LIKELY  # nor evener than chance


def test_choices_are_independent() -> None:
    ids = texts(400, 256)
    objective = MaskedLM(MASK, seed=5)
    found = chosen(objective, ids)
    pairs = {
        "positions": (found, np.roll(found, 1, axis=1)),
        "samples": (found, np.roll(found, 1, axis=0)),
        "epochs": (found, chosen(objective, ids, epoch=1)),
        "seeds": (found, chosen(MaskedLM(MASK, seed=6), ids)),
        "sample and epoch exchanged": tuple(
            np.concatenate(
                [chosen(objective, ids[:1], samples=[each[i]], epoch=each[1 - i])
                 for each in np.argwhere(np.tri(30, k=-1))]
            )
            for i in (0, 1)
        ),
    }  # fmt: skip
    for one, other in pairs.values():
        counts = np.bincount((2 * one + other).ravel(), minlength=4)
        assert_likely(counts, [0.85 * 0.85, 0.85 * 0.15, 0.15 * 0.85, 0.15 * 0.15])


def test_eighty_ten_ten() -> None:
    vocab = 1000
    ids = texts(600, 512, vocab)
    batch = MaskedLM(MASK, vocab_size=vocab, special_ids=[0, 1, 2])(ids)
    hidden = batch.enc_ids.ravel()[batch.rows]
    masked = hidden == MASK
    kept = hidden == batch.targets
    by_chance = 0.1 / (vocab - 4)  # a random token may be the one that was there
    assert_likely(
        [masked.sum(), kept.sum(), (~masked & ~kept).sum()], [0.8, 0.1 + by_chance, 0.1 - by_chance]
    )
    np.testing.assert_array_equal(
        np.delete(batch.enc_ids.ravel(), batch.rows), np.delete(ids.ravel(), batch.rows)
    )
    np.testing.assert_array_equal(batch.targets, ids.ravel()[batch.rows])


def test_random_tokens_are_even_over_the_vocabulary() -> None:
    vocab = 40
    ids = np.full((200, 2000), 7)
    objective = MaskedLM(MASK, vocab_size=vocab, special_ids=SPECIAL, probability=1.0)
    hidden = objective(ids).enc_ids
    counts = np.bincount(hidden[(hidden != MASK) & (hidden != 7)], minlength=vocab)
    allowed = [index for index in range(vocab) if index not in {*SPECIAL, MASK, 7}]
    assert counts.sum() == counts[allowed].sum()
    assert_likely(counts[allowed], np.full(len(allowed), 1 / len(allowed)))


def test_without_a_vocabulary_a_row_makes_up_no_larger_id() -> None:
    ids = np.stack([np.full(3000, 9), np.arange(3000) % 30 + 5])
    hidden = MaskedLM(MASK, special_ids=[0, 1], probability=1.0)(ids).enc_ids
    for row, largest in zip(hidden, (9, 34), strict=True):
        counts = np.bincount(row[row != MASK], minlength=largest + 1)
        assert not counts[[0, 1]].any()
        assert (np.delete(counts, [0, 1, MASK]) > 0).all()
        assert len(counts) == largest + 1


def test_draws_are_even() -> None:
    draws = unit(grid(Stream.MASK, 3, 2, np.arange(300), 300))
    assert draws.min() >= 0
    assert draws.max() < 1
    assert_likely(np.histogram(draws, 64, (0, 1))[0], np.full(64, 1 / 64))
    bits = grid(Stream.MASK, 3, 2, np.arange(300), 300)
    for bit in range(64):
        ones = int((bits >> np.uint64(bit) & np.uint64(1)).sum())
        assert_likely([ones, bits.size - ones], [0.5, 0.5])


# -- what the draws depend on ---------------------------------------------------------------------


@given(data=st.data(), rows=st.integers(1, 6), more=st.integers(0, 5), epoch=st.integers(0, 3))
def test_a_row_depends_on_its_sample_alone(
    data: st.DataObject, rows: int, more: int, epoch: int
) -> None:
    width, all_rows = 20, 6
    ids = texts(all_rows, width, 60)
    lengths = np.array([20, 3, 11, 20, 1, 7])
    starts = np.random.default_rng(1).random(60) < 0.6
    order = data.draw(st.permutations(range(all_rows)))[:rows]
    padded = np.pad(ids[order], [(0, 0), (0, more)], constant_values=4)
    for objective in (
        MaskedLM(MASK, seed=9, special_ids=[6, 7]),
        MaskedLM(MASK, seed=9, word_starts=starts),
        MaskedLM(MASK, seed=9, vocab_size=60, stack="decoder"),
    ):
        whole = objective(ids, lengths, epoch=epoch)
        part = objective(padded, lengths[order], samples=order, epoch=epoch)
        found = {
            (row // width, row % width): target
            for row, target in zip(whole.rows, whole.targets, strict=True)
            if row // width in order
        }
        assert found == {
            (order[row // (width + more)], row % (width + more)): target
            for row, target in zip(part.rows, part.targets, strict=True)
        }
        stack = "enc_ids" if objective.stack == "encoder" else "dec_ids"
        for index, row in enumerate(order):
            np.testing.assert_array_equal(
                getattr(part, stack)[index, : lengths[row]],
                getattr(whole, stack)[row, : lengths[row]],
            )


def test_epochs_and_seeds_differ_and_evaluation_is_frozen() -> None:
    ids = texts(4, 64)
    first = MaskedLM(MASK, seed=1)(ids)
    again = MaskedLM(MASK, seed=1)(ids, samples=[0, 1, 2, 3], epoch=0)
    np.testing.assert_array_equal(first.enc_ids, again.enc_ids)
    np.testing.assert_array_equal(first.rows, again.rows)
    for other in (
        MaskedLM(MASK, seed=1)(ids, epoch=1),
        MaskedLM(MASK, seed=2)(ids),
        MaskedLM(MASK, seed=1)(ids, samples=[4, 5, 6, 7]),
    ):
        assert not np.array_equal(first.rows, other.rows)


def test_the_largest_seed_epoch_and_sample() -> None:
    objective = MaskedLM(MASK, seed=2**64 - 1)
    batch = objective(texts(1, 50), samples=[2**63 - 1], epoch=2**64 - 1)
    assert batch.num_targets > 0


# -- which tokens ---------------------------------------------------------------------------------


@given(rows=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 20))
def test_only_real_tokens_that_are_not_special_and_one_in_each_row(
    rows: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 12, (rows, width))
    lengths = rng.integers(1, width + 1, rows)
    special = np.isin(ids, [0, 1, 2, MASK]) | (np.arange(width) >= lengths[:, None])
    batch = MaskedLM(MASK, special_ids=[0, 1, 2], seed=seed)(ids, lengths)
    found = np.zeros((rows, width), bool)
    found.ravel()[batch.rows] = True
    assert not found[special].any()
    np.testing.assert_array_equal(found.any(1), ~special.all(1))
    np.testing.assert_array_equal(batch.enc_ids[~found], ids[~found])
    np.testing.assert_array_equal(batch.enc_lengths, lengths)


def test_on_a_decoder_every_position_sees_every_other() -> None:
    ids = texts(2, 6)
    batch = MaskedLM(MASK, stack="decoder")(ids)
    assert batch.enc_ids is None
    assert batch.prefix_lengths.tolist() == [6, 6]
    batch = MaskedLM(MASK, stack="decoder")(ids, [6, 2])
    assert batch.prefix_lengths.tolist() == batch.dec_lengths.tolist() == [6, 2]


# -- whole words ----------------------------------------------------------------------------------


def test_words_are_chosen_whole() -> None:
    vocab = 100
    starts = np.arange(vocab) < 50
    ids = texts(300, 400, vocab)
    ids[:, ::40] = 0  # special: no word goes on beyond it
    objective = MaskedLM(MASK, special_ids=[0], word_starts=starts)
    found = chosen(objective, ids)
    begins = starts[ids] | (np.roll(ids, 1, axis=1) == 0)
    begins[:, 0] = True
    words = np.cumsum(begins)[(ids != 0).ravel()]
    picked = found[ids != 0]
    _, first, sizes = np.unique(words, return_index=True, return_counts=True)
    np.testing.assert_array_equal(np.repeat(picked[first], sizes), picked)
    assert sizes.max() > 3
    assert_likely(np.bincount(picked[first].astype(int)), [0.85, 0.15])
    # Each token of a chosen word becomes what it does by itself.
    batch = objective(ids)
    assert_likely(np.bincount(batch.enc_ids.ravel()[batch.rows] == MASK), [0.2, 0.8])


CORPUS = ["the lowest newest widest low newer wider", "lower news, wide and newish; the end"] * 20


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
def test_word_starts_of_each_kind_of_vocabulary(kind: Any) -> None:
    size = {"wordpiece": 45, "bpe": 275, "unigram": 40}[kind]
    tokenizer = Tokenizer.train(CORPUS, kind=kind, vocab_size=size)
    starts = word_starts(tokenizer)
    assert starts.shape == (tokenizer.vocab_size,)
    text = "the lowest newest low"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) > 4  # some words are in pieces
    begins = np.flatnonzero(starts[ids])
    begins = [0, *begins[begins > 0]]
    pieces = [tokenizer.decode(ids[i:j]) for i, j in zip(begins, [*begins[1:], None], strict=True)]
    assert [piece.strip() for piece in pieces] == text.split()
    special = {"wordpiece": "[MASK]", "bpe": "<|endoftext|>", "unigram": "</s>"}[kind]
    assert starts[tokenizer.token_to_id(special)]
    MaskedLM(0, word_starts=starts, special_ids=[1])([ids])


def test_characters_do_not_tell_where_words_begin() -> None:
    with pytest.raises(DataError, match="no token begins with '##', 'Ġ' or '▁'"):
        word_starts(Tokenizer.train(["to be"], kind="char"))


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_id": None}, r"needs the id of a mask token; add one .* mask_id=tokenizer.mask_id"),
        ({"mask_id": -1}, "mask_id must be an id, got -1"),
        ({"mask_id": 50, "vocab_size": 50}, "mask_id 50, outside the vocabulary of 50"),
        ({"vocab_size": 2.5}, "vocab_size must be a whole number, got 2.5"),
        ({"vocab_size": 5, "special_ids": range(5)}, "all 5 ids of the vocabulary are special"),
        ({"special_ids": [None]}, "each of special_ids must be an id, got None"),
        ({"special_ids": 0}, "special_ids must be a list of ids, got 0"),
        ({"seed": -1}, "MaskedLM: seed must be a whole number"),
        ({"probability": 0}, "probability must be above 0 and at most 1, got 0"),
        ({"probability": "much"}, "probability must be above 0 and at most 1, got 'much'"),
        ({"stack": "both"}, "stack must be 'encoder' or 'decoder', got 'both'"),
        ({"word_starts": [0, 1]}, r"word_starts must be \[V\] booleans, got shape \[2\] of int"),
        (
            {"word_starts": [True] * 9, "vocab_size": 8},
            "vocab_size must be the size of word_starts, got 8",
        ),
    ],
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskedLM(**{"mask_id": MASK, **settings})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"ids": [[5, 60]]}, TokenIndexError, "ids must be below vocab_size = 60, got 60"),
        ({"ids": [[5, -6]]}, TokenIndexError, "must not be negative, got -6"),
        ({"ids": [5, 6]}, ShapeError, r"ids must have 2 axes, got shape \[2\]"),
        ({"ids": np.zeros((1, 0), int)}, ShapeError, "at least one row and one column"),
        ({"lengths": [0]}, DataError, "lengths must be from 1 to 2, got 0 in row 0"),
        ({"samples": [1, 2]}, ShapeError, r"samples must have one entry for each row, \[1\]"),
        ({"samples": [-1]}, DataError, "samples must be from 0"),
        ({"samples": [0.5]}, DTypeError, "samples must hold integers, got float64"),
        ({"epoch": -1}, DataError, "epoch must be a whole number from 0"),
        ({"epoch": 0.5}, DataError, "epoch must be a whole number from 0"),
    ],
)
def test_arguments_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MaskedLM(MASK, vocab_size=60)(**{"ids": [[5, 6]], **arguments})
