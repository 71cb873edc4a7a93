"""Span corruption: the text can be put together again, and the cuts are even and reproducible."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chi_square import assert_likely
from llmcore.errors import ConfigError, DataError, ShapeError, TokenIndexError
from llmcore.objectives import Batch, SpanCorruption

SENTINELS = range(999, 899, -1)
EOS, START = 1, 0


def corruption(**settings: Any) -> SpanCorruption:
    return SpanCorruption(
        SENTINELS, **{"eos_id": EOS, "decoder_start_id": START, "seed": 3, **settings}
    )


def texts_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """What the encoder reads and the decoder writes, row by row."""
    width = batch.dec_ids.shape[1]
    written = {int(row): int(target) for row, target in zip(batch.rows, batch.targets, strict=True)}
    texts = []
    for index, (read, length) in enumerate(zip(batch.enc_ids, batch.enc_lengths, strict=True)):
        places = range(index * width, index * width + batch.dec_lengths[index])
        texts.append((read[:length].tolist(), [written[place] for place in places]))
    assert len(written) == sum(len(target) for _, target in texts)
    return texts


def spans_of(target: list[int]) -> list[list[int]]:
    """The spans the decoder writes, in the order of their sentinels."""
    assert target[-1] == EOS
    spans: list[list[int]] = []
    for index in target[:-1]:
        if index == SENTINELS[len(spans)]:
            spans.append([])
        else:
            spans[-1].append(index)
    return spans


@given(
    data=st.data(),
    width=st.integers(2, 60),
    density=st.floats(0.01, 0.99),
    mean_length=st.floats(1, 8),
)
def test_the_text_can_be_put_together_again(
    data: st.DataObject, width: int, density: float, mean_length: float
) -> None:
    lengths = data.draw(st.lists(st.integers(2, width), min_size=1, max_size=4))
    ids = np.random.default_rng(width).integers(2, 800, (len(lengths), width))
    batch = corruption(density=density, mean_length=mean_length)(ids, lengths)
    for row, length, (read, written) in zip(ids, lengths, texts_of(batch), strict=True):
        spans = spans_of(written)
        noise = min(max(round(length * density), 1), length - 1)
        count = min(max(round(noise / mean_length), 1), noise, length - noise)
        assert len(spans) == count
        assert sum(map(len, spans)) == noise
        assert all(spans)
        assert read[-1] == EOS
        for sentinel, span in zip(SENTINELS, spans, strict=False):
            place = read.index(sentinel)
            assert place > 0
            assert read[place - 1] < SENTINELS[-1]  # spans never touch, and text comes first
            read[place : place + 1] = [*span]
        assert read[:-1] == row[:length].tolist()


def test_the_decoder_reads_what_it_has_written() -> None:
    ids = np.random.default_rng(0).integers(2, 800, (5, 64))
    batch = corruption(label_smoothing=0.1)(ids, [64, 64, 9, 30, 2])
    for index, (_, written) in enumerate(texts_of(batch)):
        length = batch.dec_lengths[index]
        assert batch.dec_ids[index, :length].tolist() == [START, *written[:-1]]
        assert not batch.dec_ids[index, length:].any()
    assert batch.label_smoothing == 0.1
    assert batch.num_targets == batch.dec_lengths.sum()


def test_full_lengths_give_the_same_batch_as_none() -> None:
    ids = np.random.default_rng(0).integers(2, 800, (5, 64))
    one, other = corruption()(ids), corruption()(ids, [64] * 5)
    for field in ("enc_ids", "enc_lengths", "dec_ids", "dec_lengths", "rows", "targets"):
        np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_every_way_to_cut_is_as_likely() -> None:
    # 9 tokens, 4 of noise in 2 spans: 3 ways to cut the noise, 4 to cut the text.
    ids = np.tile(np.arange(100, 109), (6000, 1))
    batch = corruption(density=4 / 9, mean_length=2.0)(ids)
    ways = [tuple(map(tuple, spans_of(written))) for _, written in texts_of(batch)]
    possible = set()
    for kept, noise in itertools.product(range(1, 5), range(1, 4)):
        text = list(range(100, 109))
        possible.add((tuple(text[kept : kept + noise]), tuple(text[noise + 5 :])))
    counts = [ways.count(way) for way in possible]
    assert sum(counts) == len(ways)
    assert_likely(counts, np.full(12, 1 / 12))


@given(order=st.permutations(range(5)), more=st.integers(0, 4), epoch=st.integers(0, 2))
def test_a_row_depends_on_its_sample_alone(order: list[int], more: int, epoch: int) -> None:
    ids = np.random.default_rng(1).integers(2, 800, (5, 40))
    lengths = np.array([40, 7, 39, 40, 20])
    order = order[:3]
    whole = texts_of(corruption()(ids, lengths, epoch=epoch))
    padded = np.pad(ids[order], [(0, 0), (0, more)])
    part = texts_of(corruption()(padded, lengths[order], samples=order, epoch=epoch))
    assert part == [whole[index] for index in order]


def test_epochs_seeds_and_samples_differ() -> None:
    ids = np.random.default_rng(1).integers(2, 800, (4, 60))
    first = texts_of(corruption()(ids))
    assert first == texts_of(corruption()(ids, samples=np.arange(4)))
    assert first != texts_of(corruption()(ids, epoch=1))
    assert first != texts_of(corruption()(ids, samples=np.arange(4) + 4))
    assert first != texts_of(corruption(seed=4)(ids))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sentinel_ids": 32099}, "sentinel_ids must be a list of at least one id, got 32099"),
        ({"sentinel_ids": []}, r"sentinel_ids must be a list of at least one id, got \[\]"),
        ({"sentinel_ids": [-1]}, "sentinel_ids must be an id, got -1"),
        ({"eos_id": None}, "eos_id must be an id, got None"),
        ({"decoder_start_id": "x"}, "decoder_start_id must be an id, got 'x'"),
        ({"seed": 0.5}, "SpanCorruption: seed must be a whole number"),
        ({"density": 1.0}, "density must be a number between 0 and 1, got 1.0"),
        ({"mean_length": 0.5}, "mean_length must be a number of at least 1, got 0.5"),
    ],
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    usual = {"sentinel_ids": SENTINELS, "eos_id": EOS, "decoder_start_id": START}
    with pytest.raises(ConfigError, match=message):
        SpanCorruption(**{**usual, **settings})


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "message"),
    [
        ([[5]], None, DataError, "lengths must be from 2 to 1, got 1 in row 0"),
        ([[5, 6]], [1], DataError, "lengths must be from 2 to 2, got 1 in row 0"),
        ([[5, 6]], [2, 2], ShapeError, r"one entry for each row of ids, \[1\], got \[2\]"),
        ([[5, -6]], None, TokenIndexError, "must not be negative"),
        (np.zeros((0, 4), int), None, ShapeError, "at least one row and one column"),
    ],
)
def test_arguments_refused(ids: Any, lengths: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        corruption()(ids, lengths)


def test_more_spans_than_sentinels() -> None:
    few = SpanCorruption([9, 8], eos_id=EOS, decoder_start_id=START)
    few(np.full((2, 40), 5))
    with pytest.raises(DataError, match="row 1 has 5 spans, but there are only 2 sentinel_ids"):
        few(np.full((2, 100), 5), [40, 100])
