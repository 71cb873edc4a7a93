"""Mixtures: the shares of their parts, what the parts are given, and models that take them all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chi_square import assert_likely
from llmcore import ModelConfig, Transformer
from llmcore.errors import ConfigError, DataError, ShapeError
from llmcore.objectives import (
    Batch,
    CausalLM,
    Classification,
    CompletionLM,
    MaskedLM,
    Mixture,
    PrefixLM,
    ReversedLM,
    Seq2Seq,
)

MASKED = MaskedLM(36, vocab_size=37, stack="decoder")
IDS = np.random.default_rng(0).integers(0, 36, (4, 13))


class Told:
    """A part that says it was called, and keeps what it was given."""

    def __init__(self, name: int, lookahead: int | None = None) -> None:
        self.name = name
        self.calls: list[Any] = []
        if lookahead is not None:
            self.lookahead = lookahead

    def __call__(self, *columns: Any, samples: Any = None, epoch: int = 0, **more: Any) -> Any:
        self.calls.append((columns, samples, epoch, more))
        return self.name


def drawn(mixture: Mixture, count: int, **which: Any) -> Any:
    """The number of the part drawn for each of so many samples."""
    return np.array([mixture([[1]], [[2]], samples=[n], **which) for n in range(count)])


def test_parts_have_their_shares() -> None:
    mixture = Mixture([(Told(0), 3), (Told(1), 1.5), (Told(2), 0.5)], seed=2)
    first = drawn(mixture, 2000)
    assert_likely(np.bincount(first), [0.6, 0.3, 0.1])
    np.testing.assert_array_equal(drawn(mixture, 2000), first)
    assert not np.array_equal(drawn(mixture, 2000, epoch=1), first)
    other = Mixture(mixture.parts, seed=3)
    assert not np.array_equal(drawn(other, 2000), first)
    # The first sample decides, whichever they are.
    assert mixture([[1]] * 2, [[2]] * 2, samples=[7, 0]) == first[7]
    assert mixture([[1]] * 2, [[2]] * 2) == first[0]


def test_a_mixture_in_a_mixture_stands_for_its_parts() -> None:
    inner = Mixture([(Told(0), 10), (Told(1), 30)])
    mixture = Mixture([(inner, 2), (Told(2), 2)])
    assert [weight for _, weight in mixture.parts] == [0.5, 1.5, 2.0]
    assert_likely(np.bincount(drawn(mixture, 2000)), [0.125, 0.375, 0.5])


@pytest.mark.parametrize(("lookahead", "width"), [(0, 12), (1, 13)])
def test_blocks_are_cut_to_what_a_part_reads(lookahead: int, width: int) -> None:
    part = Told(0, lookahead)
    mixture = Mixture([(part, 1e9), (Told(1, lookahead=1), 1e-9)])
    assert mixture.lookahead == 1
    real = [13, 12, 5, 13]
    mixture(IDS, real, samples=[9, 1, 2, 3], epoch=4)
    mixture(IDS, lengths=real)
    mixture(IDS)
    for (ids, lengths), _, _, more in part.calls:
        np.testing.assert_array_equal(ids, IDS[:, :width])
        assert lengths is None or lengths.tolist() == [width, 12, 5, width]
        assert not more
    assert [columns[1] is None for columns, *_ in part.calls] == [False, False, True]
    assert part.calls[0][1:3] == ([9, 1, 2, 3], 4)


def test_joint_training_batches_are_those_of_the_parts() -> None:
    causal = CausalLM()
    mixture = Mixture([(causal, 1), (MASKED, 1)])
    seen = set()
    for n in range(12):
        samples = np.arange(4) + n
        batch = mixture(IDS, samples=samples, epoch=1)
        seen.add(batch.prefix_lengths is None)
        want = (
            causal(IDS)
            if batch.prefix_lengths is None
            else MASKED(IDS[:, :12], samples=samples, epoch=1)
        )
        np.testing.assert_array_equal(batch.dec_ids, want.dec_ids)
        np.testing.assert_array_equal(batch.targets, want.targets)
    assert seen == {True, False}


def test_examples_are_given_as_they_are() -> None:
    mixture = Mixture([(Seq2Seq(decoder_start_id=0), 1), (CompletionLM(), 1)])
    assert not hasattr(mixture, "lookahead")
    kinds = {mixture([[1, 2]], [[3]], samples=[n]).enc_ids is None for n in range(12)}
    assert kinds == {True, False}
    labels = Mixture([(Classification(), 1)])
    assert labels([[1, 2]], [3], types=[[0, 1]]).types.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "at least one objective"),
        (CausalLM(), r"parts must be pairs \(objective, weight\), got CausalLM"),
        ([CausalLM()], "each of parts must be a pair"),
        ([("causal", 1)], "each of parts must be a pair"),
        ([(CausalLM(), 0)], "each weight must be a number above 0, got 0"),
        ([(CausalLM(), float("nan"))], "each weight must be a number above 0, got nan"),
        ([(CausalLM(), "1")], "each weight must be a number above 0, got '1'"),
        ([(Seq2Seq(), 1), (CausalLM(), 1)], "CausalLM reads blocks and Seq2Seq examples"),
    ],
)
def test_parts_refused(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mixture(parts)


def test_arguments_refused() -> None:
    mixture = Mixture([(CausalLM(), 1)])
    with pytest.raises(ConfigError, match="Mixture: seed must be a whole number"):
        Mixture([(CausalLM(), 1)], seed=-1)
    with pytest.raises(DataError, match="Mixture: lengths must be from 1 to 2, got 3 in row 0"):
        mixture([[1, 2]], [3])
    with pytest.raises(ShapeError, match="Mixture: ids must have 2 axes"):
        mixture([1, 2])
    with pytest.raises(ShapeError, match="Mixture: samples must have one entry"):
        mixture([[1, 2]], samples=[])
    with pytest.raises(DataError, match="Mixture: epoch must be a whole number"):
        mixture([[1, 2]], epoch=-1)


TEXTS = [[1, 2, 3, 4, 5], [6, 7]]


@pytest.mark.parametrize(
    "batch",
    [
        CausalLM()(IDS, [13, 2, 7, 13]),
        ReversedLM()(IDS, [13, 2, 7, 13]),
        PrefixLM()(IDS, [13, 2, 7, 13]),
        MASKED(IDS, [13, 2, 7, 13]),
        CompletionLM()(TEXTS, TEXTS),
    ],
    ids=["causal", "reversed", "prefix", "masked", "completion"],
)
def test_a_decoder_takes_the_batches(batch: Batch) -> None:
    sizes = {"vocab_size": 37, "hidden_size": 24, "num_heads": 4, "max_positions": 40}
    model = Transformer(ModelConfig(num_decoder_layers=2, **sizes))
    # Before it has learnt anything it is nearly undecided.
    assert model.loss(batch) == pytest.approx(np.log(37), rel=0.05)
