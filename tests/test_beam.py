"""Beam search against the whole tree, against plain NumPy and against transformers."""

from __future__ import annotations

import itertools
import zlib

import numpy as np
import pytest

from llmcore import _core
from reference import beam as reference

VOCAB = 23


def options(**values):
    made = _core.GenerationOptions()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def begin(prompt, vocab=VOCAB, most_new_tokens=1000, **values):
    return _core.BeamSearch(
        options=options(**values), prompt=prompt, vocab_size=vocab, most_new_tokens=most_new_tokens
    )


def advance(searches, rows, logits):
    """One step from the logits of all beams; rows[i] holds the texts of search i's beams."""
    tensor = _core.as_tensor(np.array(logits, np.float32))
    _core.advance_beams(searches=searches, logits=tensor)
    assert np.array_equal(tensor.numpy(), np.float32(logits), equal_nan=True)
    return [
        [[*texts[parent], token] for parent, token in zip(each.parents, each.tokens, strict=True)]
        for each, texts in zip(searches, rows, strict=True)
    ]


def search(next_logits, prompts, **values):
    """The results of searches that go on side by side."""
    searches, rows = [begin(prompt, **values) for prompt in prompts], [[p] for p in prompts]
    while not all(each.done for each in searches):
        assert [each.beams for each in searches] == [len(texts) for texts in rows]
        logits = [next_logits(text) for texts in rows for text in texts]
        rows = advance(searches, rows, logits)
    return [each.best() for each in searches]


def random_model(seed, vocab=VOCAB, scale=2.0, likelier=(), by=0.0):
    """Logits that depend on every id so far."""

    def next_logits(ids):
        hashed = zlib.crc32(np.asarray(ids, np.int32).tobytes())
        logits = np.random.default_rng([seed, hashed]).standard_normal(vocab) * scale
        logits[list(likelier)] += by
        return logits.astype(np.float32)

    return next_logits


def assert_same(got, want):
    assert [each.ids for each in got] == [list(each.ids) for each in want]
    for ours, theirs in zip(got, want, strict=True):
        # Sums of a dozen log-probabilities rounded to float32.
        np.testing.assert_allclose(ours.score, theirs.score, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.total, theirs.total, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            ours.log_probabilities, theirs.log_probabilities, rtol=1e-6, atol=1e-6
        )


# ---------------------------------------------------------------------------- the whole tree

PENALTIES = [0.0, 0.6, 1.0, 2.0, -0.5]


def whole_tree(next_logits, prompt, tokens, stop, depth, penalty):
    """(score, ids) of every sequence over `tokens` that ends in `stop` or is `depth` long."""
    found = []
    for length in range(1, depth + 1):
        for ids in itertools.product(tokens, repeat=length):
            if stop in ids[:-1] or (length < depth and ids[-1] != stop):
                continue
            total = sum(
                reference.log_softmax(next_logits([*prompt, *ids[:i]]))[ids[i]]
                for i in range(length)
            )
            found.append((total / length**penalty, list(ids)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize(("branches", "depth"), [(2, 5), (3, 4), (5, 3)])
def test_beams_as_wide_as_the_tree_find_every_sequence(penalty, early_stopping, branches, depth):
    tokens = list(range(0, 2 * branches, 2))
    random = random_model(branches, 400)

    def next_logits(ids):
        logits = np.full(400, -np.inf, np.float32)
        logits[tokens] = random(ids)[tokens]
        return logits

    want = whole_tree(next_logits, [7, 1], tokens, tokens[1], depth, penalty)
    got = search(
        next_logits, [[7, 1]], vocab=400, num_beams=len(want), num_return_sequences=len(want),
        max_new_tokens=depth, stop_ids=[tokens[1]], length_penalty=penalty,
        early_stopping=early_stopping,
    )[0]  # fmt: skip
    assert [each.ids for each in got] == [ids for _, ids in want]
    np.testing.assert_allclose([each.score for each in got], [s for s, _ in want], rtol=1e-6)
    assert {each.stopped for each in got} == {True, False}
    for each in got:
        assert each.stopped == (each.ids[-1] == tokens[1])


# ---------------------------------------------------------------------------- plain NumPy

SEARCHES = [
    {}, {"num_beams": 1}, {"num_beams": VOCAB}, {"stop_ids": []}, {"stop_ids": [3, 4, 5, 6]},
    {"max_new_tokens": 1}, {"early_stopping": True}, {"early_stopping": "never"},
    {"early_stopping": True, "length_penalty": 2.0},
    {"early_stopping": "never", "length_penalty": 2.0},
    {"early_stopping": "never", "length_penalty": -1.0},
    {"early_stopping": "never", "length_penalty": -0.1, "num_beams": 2},
    {"length_penalty": 0.0}, {"length_penalty": 0.6}, {"length_penalty": -0.5},
    {"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 2, "num_beams": 7},
    {"forced_ids": [9]}, {"forced_ids": [9, 8, 9], "no_repeat_ngram_size": 1},
    {"forced_eos_id": 3}, {"forced_eos_id": 8, "length_penalty": 3.0},
    {"banned_ids": [3, 8]}, {"banned_ids": list(range(3, VOCAB)), "stop_ids": [0]},
    {"min_new_tokens": 4}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8},
    {"presence_penalty": 0.7, "frequency_penalty": -0.2},
    {"num_beam_groups": 2, "diversity_penalty": 0.5},
    {"num_beam_groups": 4, "diversity_penalty": 2.0, "early_stopping": True},
    {"num_beams": 9, "num_beam_groups": 3, "diversity_penalty": 1.0, "early_stopping": "never"},
    {"num_beam_groups": 4, "diversity_penalty": 1.0, "forced_ids": [2], "forced_eos_id": 3},
    {
        "num_beam_groups": 2, "diversity_penalty": 0.3, "banned_ids": list(range(3, VOCAB)),
        "stop_ids": [0],
    },
]  # fmt: skip


@pytest.mark.parametrize("values", SEARCHES, ids=str)
def test_search_is_the_references(values):
    values = {"num_beams": 4, "max_new_tokens": 9, "stop_ids": [3, 4]} | values
    values["num_return_sequences"] = values["num_beams"]
    lengths = set()
    for seed in range(25):
        # From stop ids that hardly come to stop ids that come at once.
        model = random_model(seed, likelier=values["stop_ids"], by=seed / 5 - 2)
        got = search(model, [[5, 9, 5, 2]], **values)[0]
        assert_same(got, reference.beam_search(model, [5, 9, 5, 2], **values))
        lengths |= {len(each.ids) for each in got}
    assert len(lengths) > 1 or values["max_new_tokens"] == 1 or not values["stop_ids"]


@pytest.mark.parametrize("groups", [1, 2])
def test_wide_vocabulary(groups):
    """Where almost everything fails the first comparison, and where nothing does.

    Rows grow from step to step, so that the same tokens in another order have another score.
    """
    values = {
        "num_beams": 8, "num_return_sequences": 8, "max_new_tokens": 3, "num_beam_groups": groups,
        "diversity_penalty": float(groups > 1), "stop_ids": [1],
    }  # fmt: skip
    rising, falling = np.linspace(-9, 9, 2003), np.linspace(9, -9, 2003)
    for logits in (rising, falling, np.concatenate([rising[::2], falling[::2]])):
        row = logits.astype(np.float32)

        def model(ids, row=row):
            return np.roll(row, sum(ids)) * np.float32(1.17) ** len(ids)

        got = search(model, [[1]], vocab=len(row), **values)
        want = reference.beam_search(model, [1], **values)
        assert_same(got[0], want)


def test_one_beam_without_stop_ids_is_greedy():
    model, ids = random_model(1), [4]
    for _ in range(12):
        ids.append(int(np.argmax(model(ids))))
    assert search(model, [[4]], max_new_tokens=12)[0][0].ids == ids[1:]


def test_positions_limit_the_length():
    values = {"num_beams": 3, "forced_eos_id": 3, "stop_ids": [3], "early_stopping": "never"}
    model = random_model(0)
    limited = search(model, [[1, 2]], most_new_tokens=6, max_new_tokens=50, **values)
    shorter = search(model, [[1, 2]], max_new_tokens=6, **values)
    assert limited[0][0].ids == shorter[0][0].ids
    assert len(limited[0][0].ids) == 6
    assert limited[0][0].ids[-1] == 3


def test_ties_go_to_the_lower_beam_and_the_lower_id():
    made, rows = begin([0], 5, num_beams=3, max_new_tokens=3), [[[0]]]
    rows = advance([made], rows, np.zeros((len(rows[0]), 5)))
    assert (made.parents, made.tokens) == ([0, 0, 0], [0, 1, 2])
    rows = advance([made], rows, np.zeros((len(rows[0]), 5)))
    assert (made.parents, made.tokens) == ([0, 0, 0], [0, 1, 2])
    advance([made], rows, [[1, 0, 1, 0, 0]] * 3)
    assert [each.ids for each in made.best()] == [[0, 0, 0]]


def test_a_beam_that_nothing_may_follow_ends():
    """Beams whose logits are all -inf die; the others go on, fewer of them."""

    def next_logits(ids):
        logits = np.full(5, -np.inf)
        if ids[-1] != 2:
            logits[[2, 3]] = [0.5, 0]
        return logits

    made, rows = begin([0], 5, num_beams=4, max_new_tokens=3, num_return_sequences=4), [[[0]]]
    rows = advance([made], rows, [next_logits(text) for text in rows[0]])
    assert rows == [[[0, 2], [0, 3]]]
    rows = advance([made], rows, [next_logits(text) for text in rows[0]])
    assert rows == [[[0, 3, 2], [0, 3, 3]]]
    advance([made], rows, [next_logits(text) for text in rows[0]])
    assert [each.ids for each in made.best()] == [[3, 3, 2], [3, 3, 3]]


# ---------------------------------------------------------------------------- side by side


def test_a_search_depends_on_neither_batch_nor_threads(threads):
    values = {
        "num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 12, "stop_ids": [2],
        "early_stopping": True, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "vocab": 501,
    }  # fmt: skip
    prompts = [[i, 7 * i, 3] for i in range(9)]
    model = random_model(5, 501, likelier=[2], by=4)
    alone = [search(model, [prompt], **values)[0] for prompt in prompts]
    assert len({len(each[0].ids) for each in alone}) > 2
    for count in (1, 2, 3, 8):
        threads(count)
        for got, want in zip(search(model, prompts, **values), alone, strict=True):
            assert [(h.ids, h.score, h.total, h.log_probabilities) for h in got] == [
                (h.ids, h.score, h.total, h.log_probabilities) for h in want
            ]


def test_searches_that_are_done_are_passed_over():
    made = begin([1], max_new_tokens=1)
    advance([made], [[[1]]], np.zeros((1, VOCAB)))
    assert made.done
    assert made.beams == 0
    assert made.parents == made.tokens == []
    best = made.best()[0].ids
    _core.advance_beams(searches=[made], logits=_core.empty([0, VOCAB], "float32"))
    _core.advance_beams(searches=[], logits=_core.empty([0, VOCAB], "float32"))
    assert made.best()[0].ids == best


# ---------------------------------------------------------------------------- diversity


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_the_first_group_searches_as_if_alone(groups):
    values = {"max_new_tokens": 8, "stop_ids": [3], "num_return_sequences": 6, "num_beams": 6}
    for seed in range(10):
        model = random_model(seed, likelier=[3], by=2)
        both = search(model, [[1]], num_beam_groups=groups, diversity_penalty=1.5, **values)[0]
        width = 6 // groups
        alone = search(
            model, [[1]], **values | {"num_beams": width, "num_return_sequences": width}
        )[0]
        assert {tuple(each.ids) for each in alone} <= {tuple(each.ids) for each in both}


def test_a_great_penalty_keeps_groups_apart():
    """No two groups go on with the same token at the same step."""
    made = begin([1], num_beams=6, num_beam_groups=3, diversity_penalty=100.0, max_new_tokens=6)
    rows, model = [[[1]]], random_model(3)
    for _ in range(5):
        rows = advance([made], rows, [model(text) for text in rows[0]])
        groups = [set(made.tokens[i : i + 2]) for i in (0, 2, 4)]
        assert sum(map(len, groups)) == len(set.union(*groups))


def test_diversity_raises_the_number_of_distinct_tokens():
    def distinct(**values):
        values |= {"num_beams": 6, "num_return_sequences": 6, "max_new_tokens": 8}
        count = 0
        for seed in range(20):
            found = search(random_model(seed), [[1]], **values)[0]
            count += len({token for each in found for token in each.ids})
        return count

    weak, middle, strong = (
        distinct(num_beam_groups=3, diversity_penalty=penalty) for penalty in (0.1, 1.0, 10.0)
    )
    assert weak < middle < strong
    assert strong > distinct()


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"num_beams": 24}, "num_beams must be at most the vocabulary's size V = 23, got 24"),
        ({"num_beams": 2, "do_sample": True}, "num_beams = 2 does not sample; set do_sample to"),
        ({"num_beam_groups": 0}, "num_beam_groups must be at least 1, got 0"),
        (
            {"num_beams": 4, "num_beam_groups": 3, "diversity_penalty": 1.0},
            "num_beam_groups must divide num_beams = 4 evenly, got 3",
        ),
        ({"diversity_penalty": -1.0}, "diversity_penalty must be at least 0 and finite, got -1"),
        ({"diversity_penalty": np.nan}, "diversity_penalty must be at least 0 and finite, got nan"),
        ({"num_beams": 4, "diversity_penalty": 1.0}, "need each other, got 1 and 1"),
        ({"num_beams": 4, "num_beam_groups": 2}, "need each other, got 2 and 0"),
        ({"length_penalty": np.inf}, "length_penalty must be finite, got inf"),
        ({"num_return_sequences": 0}, "num_return_sequences must be at least 1, got 0"),
        (
            {"num_beams": 4, "num_return_sequences": 5},
            "num_return_sequences must be at most num_beams = 4, got 5",
        ),
        ({"most_new_tokens": 0}, "positions must allow at least 1 new token, got 0"),
    ],
)
def test_bad_options_are_named(values, message):
    with pytest.raises(ValueError, match=r"^generate: .*") as raised:
        begin([1], **values)
    assert message in str(raised.value)


@pytest.mark.parametrize("value", ["always", None, 2])
def test_early_stopping_has_three_values(value):
    with pytest.raises(ValueError, match=f"must be False, True or 'never', got {value!r}"):
        options(early_stopping=value)
    for good in (False, True, "never"):
        assert options(early_stopping=good).early_stopping == good


@pytest.mark.parametrize("value", [23, -2])
def test_forced_eos_id_outside_the_vocabulary(value):
    with pytest.raises(
        IndexError, match=f"forced_eos_id = {value} is outside the vocabulary of 23"
    ):
        begin([1], forced_eos_id=value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 3])
def test_damaged_logits_are_told(bad, place):
    logits = np.zeros((2, 5), np.float32)
    logits[1, place] = bad
    made = [begin([1], 5), begin([2], 5)]
    with pytest.raises(ValueError, match="logits of sequence 1 hold NaN or infinity"):
        _core.advance_beams(searches=made, logits=_core.as_tensor(logits))


@pytest.mark.parametrize("lowest", [False, True])
def test_nothing_left_to_choose(lowest):
    values = {} if lowest else {"banned_ids": [0, 1, 2]}
    logits = np.full((1, 3), -np.inf if lowest else 0.0, np.float32)
    with pytest.raises(ValueError, match=r"nothing may follow any beam of sequence 0.*banned_ids"):
        _core.advance_beams(
            searches=[begin([1], 3, num_beams=2, **values)], logits=_core.as_tensor(logits)
        )


def test_logits_of_another_shape():
    made = begin([1])
    for shape in ([1, VOCAB + 1], [2, VOCAB]):
        with pytest.raises(ValueError, match=r"logits must have shape \[beams, V\] = \[1, 23\]"):
            _core.advance_beams(searches=[made], logits=_core.empty(shape, "float32"))


# ---------------------------------------------------------------------------- transformers

EOS, PAD, BOS = 2, 1, 0


@pytest.fixture
def torch():
    """PyTorch on one thread, which is the fastest for models this small."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield torch
    torch.set_num_threads(threads)


def tiny(torch, family):
    """A random model of the family, and what goes before its text."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(zlib.crc32(family.encode()))
    ids = {"eos_token_id": EOS, "pad_token_id": PAD, "bos_token_id": BOS, "vocab_size": 61}
    seq2seq = {
        "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
        "max_position_embeddings": 64, "decoder_start_token_id": PAD, "init_std": 0.6,
        "forced_eos_token_id": None,
    }  # fmt: skip
    if family == "gpt2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.6, **ids
        )
        return transformers.GPT2LMHeadModel(config).eval(), [[5, 6, 7], [40, 5, 40]]
    if family == "t5":
        config = transformers.T5Config(
            d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, initializer_factor=3.0,
            decoder_start_token_id=PAD, **ids,
        )  # fmt: skip
        return transformers.T5ForConditionalGeneration(config).eval(), [[PAD], [PAD]]
    if family == "bart":
        config = transformers.BartConfig(**seq2seq, **ids)
        return transformers.BartForConditionalGeneration(config).eval(), [[PAD], [PAD]]
    config = transformers.MarianConfig(**seq2seq, **ids)
    return transformers.MarianMTModel(config).eval(), [[PAD], [PAD]]


# As transformers calls it, as we do, and both.
SETTINGS = [
    ({}, {}, {"length_penalty": 0.6}),
    ({}, {}, {"length_penalty": 1.0}),
    ({}, {}, {"length_penalty": 2.0}),
    ({}, {}, {"length_penalty": -1.0}),
    ({}, {}, {"length_penalty": 1.0, "no_repeat_ngram_size": 2}),
    ({}, {}, {"length_penalty": 0.6, "min_new_tokens": 5}),
    ({}, {}, {"length_penalty": 1.0, "repetition_penalty": 1.4}),
    ({}, {}, {"length_penalty": 1.0, "num_beams": 7}),
    ({"suppress_tokens": [9, 8]}, {"banned_ids": [9, 8]}, {"length_penalty": 2.0}),
    ({"forced_eos_token_id": EOS}, {"forced_eos_id": EOS}, {"length_penalty": 2.0}),
    ({"eos_token_id": [EOS, 11, 12]}, {"stop_ids": [EOS, 11, 12]}, {"length_penalty": 1.0}),
]


def assert_same_as_transformers(torch, model, prompts, source, theirs, ours):
    """Both search for all prompts; ours is given the model's logits."""
    given = {"input_ids": torch.tensor(prompts if source is None else source)}
    want = model.generate(
        **given, attention_mask=torch.ones_like(given["input_ids"]), do_sample=False,
        return_dict_in_generate=True, output_scores=True, **theirs,
    )  # fmt: skip
    searches, rows = [begin(prompt, 61, **ours) for prompt in prompts], [[p] for p in prompts]
    while not all(each.done for each in searches):
        ids = torch.tensor([text for texts in rows for text in texts])
        read = {"input_ids": ids}
        if source is not None:
            repeated = [source[i] for i, texts in enumerate(rows) for _ in texts]
            read = {"input_ids": torch.tensor(repeated), "decoder_input_ids": ids}
        rows = advance(searches, rows, model(**read).logits[:, -1].numpy())

    got = [each for made in searches for each in made.best()]
    texts = [prompt + h.ids for prompt, s in zip(prompts, searches, strict=True) for h in s.best()]
    width = want.sequences.shape[1]
    assert [text + [PAD] * (width - len(text)) for text in texts] == want.sequences.tolist()
    # transformers adds up in float32, of logits that it computes with a cache.
    np.testing.assert_allclose([each.score for each in got], want.sequences_scores, rtol=1e-5)
    return [len(each.ids) for each in got]


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("family", ["gpt2", "t5", "bart", "marian"])
def test_search_is_that_of_transformers(torch, family, early_stopping):
    model, prompts = tiny(torch, family)
    source = [[5, 6, 7, 8, 2], [9, 30, 9, 12, 2]] if model.config.is_encoder_decoder else None
    bias = torch.zeros(61)
    model.get_output_embeddings().register_forward_hook(
        lambda _, __, logits: 2 * logits / logits.std(-1, keepdim=True) + bias
    )
    lengths = set()
    for case, (theirs, ours, both) in enumerate(SETTINGS):
        values = {
            "num_beams": 4, "num_return_sequences": 1 + case % 4, "max_new_tokens": 12,
            "early_stopping": early_stopping,
        }  # fmt: skip
        values |= both
        for bias[EOS] in (1.0, 5.0):  # texts that end late, and texts that end at once
            lengths |= set(
                assert_same_as_transformers(
                    torch, model, prompts, source,
                    values | theirs, {"stop_ids": [EOS]} | values | ours,
                )
            )  # fmt: skip
    assert len(lengths) > 3


def test_forced_beginnings_are_those_of_transformers(torch):
    """BART's way: the first and the last token are given."""
    model, prompts = tiny(torch, "bart")
    both = {
        "num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 9, "length_penalty": 2.0,
        "no_repeat_ngram_size": 3,
    }  # fmt: skip
    assert_same_as_transformers(
        torch, model, prompts, [[5, 6, 7, 8, 2], [9, 30, 9, 12, 2]],
        both | {"forced_bos_token_id": 17, "forced_eos_token_id": EOS},
        both | {"forced_ids": [17], "forced_eos_id": EOS, "stop_ids": [EOS]},
    )  # fmt: skip
