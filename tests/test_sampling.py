"""Logits processors and the choice of the next token, against NumPy and against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import _core
from reference import sampling as reference

VOCAB = 97


def options(**values):
    made = _core.GenerationOptions()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def process(logits, ids, prompt_length, **values):
    row = _core.in_place_tensor(logits.copy())
    _core.process_logits(
        options=options(**values), ids=ids, prompt_length=prompt_length, logits=row
    )
    return row.numpy()


def choose(logits, ids=None, prompt_lengths=None, sequences=None, **values):
    batch = len(logits)
    ids = [[0]] * batch if ids is None else ids
    return _core.choose_tokens(
        options=options(**values),
        logits=_core.as_tensor(np.ascontiguousarray(logits, np.float32)),
        ids=ids,
        prompt_lengths=[1] * batch if prompt_lengths is None else prompt_lengths,
        sequences=list(range(batch)) if sequences is None else sequences,
    )


def text(rng, length=60, vocab=VOCAB):
    """Ids with many repetitions."""
    return rng.choice(rng.integers(0, vocab, 12), length).tolist()


PROCESSORS = [
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"presence_penalty": 0.5},
    {"frequency_penalty": -0.2}, {"presence_penalty": 1.0, "frequency_penalty": 0.1},
    {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 61}, {"no_repeat_ngram_size": 60},
    {"min_new_tokens": 31, "stop_ids": [3, 5]}, {"min_new_tokens": 30, "stop_ids": [3, 5]},
    {"banned_ids": [0, 96, 7]}, {"forced_ids": list(range(31))}, {"forced_ids": list(range(30))},
    {"forced_eos_id": 3, "max_new_tokens": 31}, {"forced_eos_id": 3, "max_new_tokens": 32},
    {"forced_eos_id": 0, "max_new_tokens": 31, "forced_ids": list(range(31)), "banned_ids": [0]},
    {"temperature": 0.7, "do_sample": True}, {"temperature": 0.7},
    {
        "repetition_penalty": 1.2, "presence_penalty": 0.3, "no_repeat_ngram_size": 2,
        "banned_ids": [4], "temperature": 1.5, "do_sample": True,
    },
]  # fmt: skip


@pytest.mark.parametrize("values", PROCESSORS, ids=str)
def test_processors(rng, values):
    logits = (rng.standard_normal(VOCAB) * 3).astype(np.float32)
    ids = text(rng)
    got = process(logits, ids, 30, **values)
    want = reference.process_logits(logits.astype(np.float64), ids, 30, **values)
    assert np.array_equal(np.isfinite(got), np.isfinite(want))
    finite = np.isfinite(want)
    # At most four operations, each rounded once.
    assert (
        np.abs(got[finite] - want[finite]).max(initial=0)
        <= 4 * 2.0**-24 * np.abs(want[finite]).max()
    )
    assert np.array_equal(
        logits[finite] != got[finite], logits[finite] != want[finite].astype("f4")
    )


def test_processors_of_the_empty_text(rng):
    logits = rng.standard_normal(VOCAB).astype(np.float32)
    values = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "no_repeat_ngram_size": 2}
    assert np.array_equal(process(logits, [], 0, **values), logits)
    assert np.isinf(process(logits, [], 0, min_new_tokens=1, stop_ids=[2])[2])


def test_ids_beyond_the_logits_are_ignored(rng):
    logits = rng.standard_normal(5).astype(np.float32)
    values = {"repetition_penalty": 2.0, "presence_penalty": 1.0, "no_repeat_ngram_size": 1}
    assert np.array_equal(process(logits, [5, 7, 100], 0, **values), logits)


def transformers_chain(values, prompt_length):
    """The same processors as the transformers library builds and orders them."""
    torch = pytest.importorskip("torch")
    made = pytest.importorskip("transformers.generation.logits_process")
    chain = []
    if "repetition_penalty" in values:
        chain.append(made.RepetitionPenaltyLogitsProcessor(values["repetition_penalty"]))
    if "no_repeat_ngram_size" in values:
        chain.append(made.NoRepeatNGramLogitsProcessor(values["no_repeat_ngram_size"]))
    if "min_new_tokens" in values:
        chain.append(made.MinNewTokensLengthLogitsProcessor(
            prompt_length, values["min_new_tokens"], values["stop_ids"]))  # fmt: skip
    if "forced_eos_id" in values:
        chain.append(made.ForcedEOSTokenLogitsProcessor(
            prompt_length + values["max_new_tokens"], values["forced_eos_id"]))  # fmt: skip
    if "banned_ids" in values:
        chain.append(made.SuppressTokensLogitsProcessor(values["banned_ids"]))
    if "temperature" in values:
        chain.append(made.TemperatureLogitsWarper(values["temperature"]))
    if "top_k" in values:
        chain.append(made.TopKLogitsWarper(values["top_k"]))
    if "top_p" in values:
        chain.append(made.TopPLogitsWarper(values["top_p"]))
    if "min_p" in values:
        chain.append(made.MinPLogitsWarper(values["min_p"]))

    def run(logits, ids):
        scores = torch.from_numpy(logits.copy())[None]
        for processor in chain:
            scores = processor(torch.tensor([ids]), scores)
        return scores[0].numpy()

    return run


OURS_ALONE = {"presence_penalty", "frequency_penalty", "forced_ids"}


@pytest.mark.parametrize(
    "values", [each for each in PROCESSORS if not OURS_ALONE & set(each)], ids=str
)
def test_processors_are_those_of_transformers(rng, values):
    if "temperature" in values and not values.get("do_sample"):
        pytest.skip("ours divides when sampling alone")
    logits = (rng.standard_normal(VOCAB) * 3).astype(np.float32)
    ids = text(rng)
    assert np.array_equal(
        process(logits, ids, 30, **values), transformers_chain(values, 30)(logits, ids)
    )


RESTRICTIONS = [
    {}, {"top_k": 1}, {"top_k": 5}, {"top_k": 1000}, {"top_p": 0.9}, {"top_p": 1e-9},
    {"top_p": 0.3}, {"min_p": 0.1}, {"min_p": 1.0}, {"top_k": 20, "top_p": 0.8},
    {"top_p": 0.95, "min_p": 0.05},
    {"temperature": 0.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 3.0, "top_p": 0.5},
]  # fmt: skip


def reached(logits, draws=4000, **values):
    """The ids that come up in many draws from one row, and how often."""
    ids, _ = choose(np.repeat(logits[None], draws, 0), do_sample=True, **values)
    return np.bincount(ids, minlength=len(logits))


@pytest.mark.parametrize("values", RESTRICTIONS, ids=str)
def test_restrictions_are_those_of_transformers(rng, values):
    logits = (rng.standard_normal(VOCAB) * 2).astype(np.float32)
    allowed = np.isfinite(transformers_chain(values, 1)(logits, [0]))
    z = reference.process_logits(logits.astype(np.float64), [0], 1, do_sample=True, **values)
    assert np.array_equal(reference.kept(z, **values), allowed)
    counts = reached(logits, **values)
    assert not counts[~allowed].any()
    probabilities = np.where(allowed, np.exp(z - z.max()), 0)
    expected = 4000 * probabilities / probabilities.sum()
    # Chi-squared with as many degrees of freedom as likely tokens; 6 standard deviations.
    likely = expected > 5
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic <= likely.sum() + 6 * np.sqrt(2 * likely.sum())


@pytest.mark.parametrize("values", RESTRICTIONS, ids=str)
@pytest.mark.parametrize("vocab", [1, 2, 97, 5003])
def test_choices_are_the_references(rng, values, vocab):
    rows = 40
    logits = (rng.standard_normal((rows, vocab)) * rng.uniform(0, 5, (rows, 1))).astype(np.float32)
    ids = [text(rng, int(rng.integers(1, 40)), vocab) for _ in range(rows)]
    prompts = [int(rng.integers(0, len(each) + 1)) for each in ids]
    sequences = rng.integers(0, 2**63, rows).tolist()
    values = values | {"seed": 2**63 + 12345, "do_sample": True, "repetition_penalty": 1.1}
    got, log_probabilities = choose(logits, ids, prompts, sequences, **values)
    for b in range(rows):
        want, log_probability = reference.choose(
            logits[b].astype(np.float64), ids[b], prompts[b], sequences[b], **values
        )
        assert got[b] == want
        assert log_probabilities[b] == pytest.approx(log_probability, rel=1e-5, abs=1e-5)


def test_ties_go_to_the_lower_id():
    flat = np.zeros((1, 9), np.float32)
    assert choose(flat)[0] == [0]
    flat[0, [4, 6]] = 1
    assert choose(flat)[0] == [4]
    counts = reached(flat[0], top_p=1e-6)
    assert counts[4] == counts.sum()
    assert set(np.flatnonzero(reached(flat[0], top_k=1))) == {4, 6}  # as likely as the k-th
    assert set(np.flatnonzero(reached(np.zeros(8, np.float32), top_p=0.5))) == {0, 1, 2, 3}


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_logits_of_any_size(rng, scale):
    logits = (rng.standard_normal((20, VOCAB)) * scale).astype(np.float32)
    greedy = choose(logits)[0]
    assert greedy == logits.argmax(1).tolist()
    sampled = choose(logits, do_sample=True, top_k=10, top_p=0.9)[0]
    if scale > 1:
        assert sampled == greedy
    for row, token in zip(logits, sampled, strict=True):
        assert row[token] >= np.sort(row)[-10]


def test_log_probability_is_the_models_own(rng):
    logits = rng.standard_normal((3, VOCAB)).astype(np.float32) * 4
    wide = logits.astype(np.float64)
    exact = wide - wide.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    before = logits.copy()
    ids, got = choose(logits, do_sample=True, temperature=0.3, top_k=4, forced_ids=[])
    np.testing.assert_allclose(got, exact[range(3), ids], rtol=1e-6, atol=1e-6)
    assert np.array_equal(before, logits)


def test_a_row_depends_on_neither_batch_nor_threads(rng, threads):
    logits = (rng.standard_normal((33, 501)) * 2).astype(np.float32)
    ids = [text(rng, 9, 501) for _ in range(33)]
    values = {"do_sample": True, "top_p": 0.9, "seed": 7, "repetition_penalty": 1.2}
    prompts, sequences = [3] * 33, list(range(100, 133))
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(choose(logits, ids, prompts, sequences, **values))
    assert all(result == results[0] for result in results)
    for b in (0, 17, 32):
        alone = choose(logits[b : b + 1], ids[b : b + 1], [3], [sequences[b]], **values)
        assert (alone[0][0], alone[1][0]) == (results[0][0][b], results[0][1][b])


def test_seed_sequence_and_position_give_other_numbers(rng):
    logits = np.zeros((1, 10_000), np.float32)
    base = {
        "ids": [[1, 2, 3]],
        "prompt_lengths": [2],
        "sequences": [5],
        "seed": 9,
        "do_sample": True,
    }
    first = choose(logits, **base)
    assert choose(logits, **base) == first
    for change in ({"seed": 10}, {"sequences": [6]}, {"prompt_lengths": [1]}):
        assert choose(logits, **(base | change))[0] != first[0]
    # The prompt's length alone decides nothing: the same position gives the same number.
    assert choose(logits, **(base | {"ids": [[4, 1, 2, 3]], "prompt_lengths": [3]})) == first


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_new_tokens": 0}, ["max_new_tokens", "at least 1"]),
        ({"min_new_tokens": -1}, ["min_new_tokens", "-1"]),
        ({"min_new_tokens": 200}, ["min_new_tokens", "max_new_tokens = 128", "200"]),
        ({"temperature": 0.0}, ["temperature", "above 0", "do_sample=False"]),
        ({"temperature": np.nan}, ["temperature", "nan"]),
        ({"top_k": -1}, ["top_k", "-1"]),
        ({"top_p": 0.0}, ["top_p", "(0, 1]"]),
        ({"top_p": 1.1}, ["top_p", "1.1"]),
        ({"min_p": -0.1}, ["min_p", "[0, 1]"]),
        ({"repetition_penalty": 0.0}, ["repetition_penalty", "above 0"]),
        ({"presence_penalty": np.inf}, ["presence_penalty", "finite"]),
        ({"frequency_penalty": np.nan}, ["frequency_penalty", "finite"]),
        ({"no_repeat_ngram_size": -2}, ["no_repeat_ngram_size", "-2"]),
    ],
)
def test_bad_options_are_named(values, words):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        choose(np.zeros((1, 5)), **values)
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize("name", ["stop_ids", "banned_ids", "forced_ids"])
@pytest.mark.parametrize("bad", [5, -1])
def test_ids_outside_the_vocabulary(name, bad):
    with pytest.raises(IndexError, match=rf"{name}\[1\] = {bad} is outside the vocabulary of 5"):
        choose(np.zeros((1, 5)), **{name: [0, bad]})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_damaged_logits_are_told(bad, place, do_sample):
    logits = np.zeros((2, 5), np.float32)
    logits[1, place] = bad
    with pytest.raises(ValueError, match="logits of sequence 1 hold NaN or infinity"):
        choose(logits, do_sample=do_sample)


def test_nothing_left_to_choose():
    with pytest.raises(ValueError, match=r"nothing may follow sequence 0.*banned_ids"):
        choose(np.zeros((1, 3)), banned_ids=[0, 1, 2])


def test_tokens_the_model_rules_out_are_never_sampled():
    logits = np.full((1, 6), -np.inf, np.float32)
    logits[0, [2, 4]] = 0
    assert set(np.flatnonzero(reached(logits[0]))) == {2, 4}


def test_no_rows():
    assert choose(np.zeros((0, 5))) == ([], [])
