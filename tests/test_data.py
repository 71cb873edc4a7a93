"""Data sets and sampling: determinism, coverage, cursors, bad input."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcore.data import sampling
from llmcore.data.tokens import BlockSampler, TokenDataset, check_ids, shakespeare
from llmcore.errors import DataError, DTypeError, ShapeError
from llmcore.tokenizer import Tokenizer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

CHAR = Tokenizer.train([shakespeare()], kind="char")


def dataset(size: int, parts: int = 1) -> TokenDataset:
    """The ids 0 … size - 1, so that an id says where it comes from."""
    return TokenDataset([part.astype(np.uint16) for part in np.array_split(np.arange(size), parts)])


# -- the text shipped ---------------------------------------------------------------------------


def test_shakespeare_is_the_text_of_nanogpt() -> None:
    text = shakespeare()
    assert len(text) == 1_115_394
    assert len(set(text)) == 65
    original = SHARED / "tinyshakespeare" / "input.txt"
    if original.exists():
        assert text.encode() == original.read_bytes()


# -- TokenDataset -------------------------------------------------------------------------------


@given(
    size=st.integers(1, 60),
    parts=st.integers(1, 5),
    start=st.integers(0, 60),
    length=st.integers(0, 30),
)
def test_reading_across_parts(size: int, parts: int, start: int, length: int) -> None:
    start = min(start, size)
    data = dataset(size, parts)
    assert len(data) == size
    np.testing.assert_array_equal(
        data.read(start, start + length), np.arange(size)[start:][:length]
    )


def test_gather_across_parts() -> None:
    starts = np.array([0, 31, 5, 12, 12])
    for parts in (1, 2, 7, 37):
        gathered = dataset(37, parts).gather(starts, 6)
        assert gathered.dtype == np.int32
        assert gathered.flags.c_contiguous
        np.testing.assert_array_equal(gathered, starts[:, None] + np.arange(6))


def test_from_ids_takes_one_axis_of_integers() -> None:
    with pytest.raises(ShapeError, match=r"one-dimensional, got shape \[1, 2\]"):
        TokenDataset.from_ids([[1, 2]])
    with pytest.raises(DTypeError, match="ids must be integers, got float64"):
        TokenDataset.from_ids([1.0])


def test_from_ids_does_not_copy() -> None:
    ids = np.zeros(10, np.uint16)
    data = TokenDataset.from_ids(ids)
    ids[3] = 7
    assert data.read(3, 4).tolist() == [7]


@pytest.mark.parametrize("parts", [1, 3])
def test_split_is_in_order(parts: int) -> None:
    train, val = dataset(25, parts).split(0.1)
    assert train.read(0, 99).tolist() == list(range(22))
    assert val.read(0, 99).tolist() == [22, 23, 24]
    with pytest.raises(DataError, match="has 1 tokens, too few to set 10% aside"):
        TokenDataset.from_ids([3]).split(0.1)
    with pytest.raises(DataError, match="above 0 and below 1, got 0"):
        train.split(0)


def test_split_is_where_nanogpt_splits() -> None:
    text = shakespeare()
    train, val = TokenDataset.from_ids(CHAR.encode(text)).split(0.1)
    assert len(train) == 1_003_854
    assert len(val) == 111_540


def test_ids_beyond_the_vocabulary_are_named() -> None:
    check_ids([0, 4], 5)
    check_ids([], 5)
    with pytest.raises(DataError, match="ids: id 5 at position 2 is outside the vocabulary of 5"):
        check_ids(np.array([[0, 1], [5, 9]]), 5)
    with pytest.raises(DataError, match="id -1 at position 0"):
        check_ids([-1], 5)
    data = dataset(10, 2)
    data.check_vocab(10)
    with pytest.raises(DataError, match="from token 5: id 8 at position 3"):
        data.check_vocab(8)


def test_fingerprint_tells_data_apart() -> None:
    base = np.arange(100)
    changed = base.copy()
    changed[50] += 1
    prints = [TokenDataset.from_ids(ids).fingerprint for ids in (base, changed, base[:-1])]
    assert len(set(prints)) == 3
    assert TokenDataset.from_ids(base.astype(np.uint16)).fingerprint == prints[0]
    assert dataset(100, 3).fingerprint == prints[0]


# -- evaluation ---------------------------------------------------------------------------------


@given(size=st.integers(2, 80), block=st.integers(1, 9), batch=st.integers(1, 5))
def test_evaluation_predicts_every_token_but_the_first_once(
    size: int, block: int, batch: int
) -> None:
    targets: list[int] = []
    for sample in dataset(size, 3).eval_batches(block, batch):
        ids, lengths = sample.columns
        assert (sample.samples * block).tolist() == ids[:, 0].tolist()
        assert sample.epoch == 0
        assert ids.shape[1] == block + 1
        assert ids.dtype == np.int32
        real = [block + 1] * len(ids) if lengths is None else lengths.tolist()
        for row, length in zip(ids.tolist(), real, strict=True):
            assert row[:length] == list(range(row[0], row[0] + length))
            assert row[length:] == [0] * (block + 1 - length)
            targets += row[1:length]
    assert targets == list(range(1, size))


def test_evaluation_on_some_batches_is_spread_over_the_data_and_repeatable() -> None:
    data = dataset(1001)
    first = [batch.columns[0][:, 0].tolist() for batch in data.eval_batches(10, 2, max_batches=5)]
    assert first == [[0, 100], [200, 300], [400, 500], [600, 700], [800, 900]]
    assert [batch.columns[0][:, 0].tolist() for batch in data.eval_batches(10, 2, 5)] == first
    assert sum(len(batch.samples) for batch in data.eval_batches(10, 3, 1000)) == 100


@given(size=st.integers(2, 80), block=st.integers(2, 9))
def test_evaluation_without_lookahead_reads_every_token_once(size: int, block: int) -> None:
    seen: list[int] = []
    for sample in dataset(size).eval_batches(block, 4, lookahead=0):
        ids, lengths = sample.columns
        assert ids.shape[1] == block
        for row, length in zip(
            ids, [block] * len(ids) if lengths is None else lengths, strict=True
        ):
            seen += row[:length].tolist()
    # A lone token at the end, from which nothing could be predicted, is left out.
    assert seen == list(range(size if size % block != 1 else size - 1))


def test_evaluation_needs_two_tokens() -> None:
    with pytest.raises(DataError, match="has 1 tokens; evaluation needs at least 2"):
        next(dataset(1).eval_batches(4, 2))
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        next(dataset(9).eval_batches(4, 0))


# -- sampling -----------------------------------------------------------------------------------


@given(
    size=st.integers(2, 90),
    block=st.integers(1, 9),
    batch=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
    mode=st.sampled_from(["random", "epoch"]),
)
def test_batches_are_runs_of_the_data(
    size: int, block: int, batch: int, seed: int, mode: Any
) -> None:
    block = min(block, size - 1)
    sampler = BlockSampler(dataset(size), block, batch, seed, mode=mode)
    for _ in range(3):
        ids = sampler.next_batch()
        assert ids.shape == (batch, block + 1)
        assert ids.dtype == np.int32
        assert ids.flags.c_contiguous
        np.testing.assert_array_equal(ids - ids[:, :1], np.tile(np.arange(block + 1), (batch, 1)))


@given(
    size=st.integers(5, 60),
    batch=st.integers(1, 9),
    mode=st.sampled_from(["random", "epoch"]),
    lookahead=st.integers(0, 1),
    frame=st.sampled_from([None, (101, 102)]),
)
def test_no_two_blocks_share_epoch_and_number(
    size: int, batch: int, mode: Any, lookahead: int, frame: Any
) -> None:
    """So that no mask is drawn twice, and the same block has the same number in every epoch."""
    data, width = dataset(size), 3 + lookahead + (2 if frame else 0)
    block = width - lookahead
    sampler = BlockSampler(data, block, batch, 5, mode=mode, lookahead=lookahead, frame=frame)
    blocks = (size - lookahead) // 3
    seen = set()
    for step in range(12):
        (ids,), samples, epoch, _ = sampler.next_sample()
        assert ids.shape == (batch, width)
        if frame:
            assert ids[:, 0].tolist() == [101] * batch
            assert ids[:, -1].tolist() == [102] * batch
            ids = ids[:, 1:-1]
        np.testing.assert_array_equal(
            ids - ids[:, :1], np.tile(np.arange(ids.shape[1]), (batch, 1))
        )
        if mode == "random":
            assert samples.tolist() == list(range(step * batch, step * batch + batch))
        else:
            assert (3 * (samples % blocks)).tolist() == ids[:, 0].tolist()
        pairs = {(epoch, number) for number in samples.tolist()}
        assert len(pairs) == batch
        assert not pairs & seen
        seen |= pairs


def test_a_frame_goes_round_what_is_real() -> None:
    whole, short = dataset(10).eval_batches(6, 2, lookahead=0, frame=(7, 8))
    assert whole.columns[0].tolist() == [[7, 0, 1, 2, 3, 8], [7, 4, 5, 6, 7, 8]]
    assert whole.columns[1] is None
    assert short.columns[0].tolist() == [[7, 8, 9, 8, 0, 0]]
    assert short.columns[1].tolist() == [4]
    with pytest.raises(DataError, match="block_size must be more than the 2 tokens around"):
        BlockSampler(dataset(9), 2, 1, frame=(7, 8))


@settings(max_examples=30)
@given(blocks=st.integers(1, 70), batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_an_epoch_draws_every_block_once(blocks: int, batch: int, seed: int) -> None:
    sampler = BlockSampler(dataset(blocks * 3 + 2), 3, batch, seed, mode="epoch")
    drawn = []
    while len(drawn) < 2 * blocks:
        drawn += sampler.next_batch()[:, 0].tolist()
    places = list(range(0, 3 * blocks, 3))
    assert sorted(drawn[:blocks]) == places
    assert sorted(drawn[blocks : 2 * blocks]) == places


def test_the_order_changes_with_epoch_and_seed() -> None:
    def order(seed: int) -> list[int]:
        sampler = BlockSampler(dataset(1001), 10, 100, seed, mode="epoch")
        return [*sampler.next_batch()[:, 0].tolist(), *sampler.next_batch()[:, 0].tolist()]

    orders = {tuple(order(seed)[part : part + 100]) for seed in range(5) for part in (0, 100)}
    assert len(orders) == 10


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 123_457])
def test_permutation_is_one(size: int) -> None:
    places = np.arange(size)
    permuted = sampling._Permutation(size, seed=3, epoch=5)(places)
    np.testing.assert_array_equal(np.sort(permuted), places)


def test_permutation_is_without_memory() -> None:
    # A trillion blocks: only possible if nothing of that size is ever made.
    permutation = sampling._Permutation(10**12 + 39, seed=1, epoch=0)
    values = permutation(np.arange(1000) + 10**11)
    assert len(set(values.tolist())) == 1000
    assert values.min() >= 0
    assert values.max() < 10**12 + 39
    assert abs(values.mean() / 10**12 - 0.5) < 5 / np.sqrt(12 * 1000)


def test_permutations_are_uniform() -> None:
    # Each of the 12 places of each element over many epochs: chi-square, 121 degrees of freedom.
    trials, size = 2400, 12
    counts = np.zeros((size, size))
    for epoch in range(trials):
        order = sampling._Permutation(size, seed=11, epoch=epoch)(np.arange(size))
        counts[np.arange(size), order] += 1
    expected = trials / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_random_places_are_uniform_and_reach_both_ends() -> None:
    sampler = BlockSampler(dataset(23), 3, 1000, seed=7)
    counts: collections.Counter[int] = collections.Counter()
    for _ in range(20):
        counts.update(sampler.next_batch()[:, 0].tolist())
    assert sorted(counts) == list(range(20))
    chi_square = sum((count - 1000) ** 2 / 1000 for count in counts.values())
    assert abs(chi_square - 19) < 5 * np.sqrt(2 * 19)


def test_random_places_never_change_between_releases() -> None:
    # A run that is resumed must meet the batches it was on the way to, on any NumPy.
    sampler = BlockSampler(TokenDataset.from_ids(np.arange(50_000)), 4, 3, seed=1234)
    assert [sampler.next_batch()[:, 0].tolist() for _ in range(2)] == GOLDEN_RANDOM
    sampler = BlockSampler(dataset(1000), 4, 5, seed=1234, mode="epoch")
    assert (sampler.next_batch()[:, 0] // 4).tolist() == GOLDEN_EPOCH


GOLDEN_RANDOM = [[46996, 6678, 25590], [17891, 34618, 5267]]
GOLDEN_EPOCH = [232, 1, 119, 36, 76]


@pytest.mark.parametrize("mode", ["random", "epoch"])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resuming_continues_with_the_same_batches(mode: Any, stop: int) -> None:
    def sampler() -> BlockSampler:
        return BlockSampler(dataset(100), 8, 5, seed=3, mode=mode)

    whole = sampler()
    expected = [whole.next_batch() for _ in range(12)]
    before = sampler()
    for _ in range(stop):
        before.next_batch()
    state = json.loads(json.dumps(before.state_dict()))
    after = sampler()
    after.load_state_dict(state)
    for batch in expected[stop:]:
        np.testing.assert_array_equal(after.next_batch(), batch)


def test_resuming_on_something_else_is_refused() -> None:
    state = BlockSampler(dataset(100), 8, 5, seed=3).state_dict()
    other = BlockSampler(dataset(101), 9, 5, seed=3)
    with pytest.raises(DataError, match=r"cannot resume .*dataset was .*block_size was 8 and is 9"):
        other.load_state_dict(state)
    with pytest.raises(DataError, match="seed was 3 and is 4"):
        BlockSampler(dataset(100), 8, 5, seed=4).load_state_dict(state)
    with pytest.raises(DataError, match="cannot resume"):
        other.load_state_dict({})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, 64, 2), "has 8 tokens, but a block of 64 needs 65; give more text or a smaller"),
        ((8, 8, 2), "a block of 8 needs 9"),
        ((0, 1, 2), "has 0 tokens"),
        ((8, 0, 2), "block_size must be at least 1, got 0"),
        ((8, 2, 0), "batch_size must be at least 1, got 0"),
        ((8, 2, 2, -1), r"seed must be from 0 to 2\*\*64 - 1, got -1"),
    ],
)
def test_sampler_refuses(arguments: tuple[int, ...], message: str) -> None:
    size, *rest = arguments
    with pytest.raises(DataError, match=message):
        BlockSampler(dataset(size), *rest)


def test_sampler_refuses_modes_that_are_not() -> None:
    with pytest.raises(DataError, match="mode must be 'random' or 'epoch', got 'ordered'"):
        BlockSampler(dataset(9), 2, 2, mode="ordered")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shuffle=False needs mode='epoch'"):
        BlockSampler(dataset(9), 2, 2, shuffle=False)
