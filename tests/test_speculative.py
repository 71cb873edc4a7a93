"""Speculation: the text that the model writes alone, bit for bit, in fewer passes."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from command import fails, run
from llmcore import ConfigError, Engine, GenerationConfig, RequestCancelled, _core
from llmcore.tensor import write
from llmcore.tokenizer import Tokenizer
from test_engine import WAIT, alone, random_request
from test_generate import PROMPTS, VARIANTS, make, recomputed

DECODERS = [variant for variant in VARIANTS if make(variant).config.kind == "decoder"]
LOOP = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2]


def resembling(model, variant, noise=0.05):
    """A draft that is right now and then: the model, a little off."""
    draft = make(variant)
    rng = np.random.default_rng(5)
    for parameter in draft.parameters().values():
        change = noise * rng.standard_normal(parameter.shape).astype(np.float32)
        write(parameter, parameter.numpy() + change)
    return draft


def forcing(forced, **changes):
    """A text whose every token is known beforehand."""
    settings = {"stop_ids": (), "speculate": "ngram", **changes}
    return GenerationConfig(max_new_tokens=len(forced), forced_prefix=forced, **settings)


def counts(model, prompt, config, **engine):
    """Tokens, guesses and confirmed guesses of a request, and the steps it took."""
    with Engine(model, **engine) as served:
        result = served.submit(prompt, config).result(WAIT)
        stats = served.stats()
    assert stats.accepted_tokens == result.guessed_tokens
    return len(result.ids), stats.guessed_tokens, stats.accepted_tokens, stats.steps


# ---------------------------------------------------------------------------- the same text


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prompts", [PROMPTS, [LOOP, LOOP[:3] * 6, [5]]])
def test_guesses_of_ngrams_change_nothing(variant, prompts, threads):
    model = make(variant)
    config = GenerationConfig(max_new_tokens=24, stop_ids=())
    want = model.generate(prompts, config)
    for count in (1, 2):
        threads(count)
        got = model.generate(prompts, replace(config, speculate="ngram"))
        assert got == want
        assert sum(result.guessed_tokens for result in got) > 0
    assert [result.guessed_tokens for result in want] == [0] * len(prompts)


@pytest.mark.parametrize("variant", DECODERS)
def test_guesses_of_a_draft_model_change_nothing(variant, threads):
    model = make(variant)
    draft = resembling(model, variant)
    config = GenerationConfig(max_new_tokens=24, stop_ids=())
    want = model.generate(PROMPTS, config)
    assert want[0].ids == recomputed(model, PROMPTS[0], 24)
    for count in (1, 2):
        threads(count)
        got = model.generate(PROMPTS, replace(config, speculate="draft"), draft_model=draft)
        assert got == want
        # Right now and then, wrong now and then: both ways are taken.
        assert 0 < sum(result.guessed_tokens for result in got) < 4 * 21


@pytest.mark.parametrize("variant", ["gpt2", "llama", "window", "relative-decoder", "t5"])
def test_an_engine_mixes_requests_that_guess_and_others(variant, rng):
    """Sampling, penalties, n-grams, stops and sliding: each as if it were alone."""
    model = make(variant)
    drafts = variant != "t5"
    draft = resembling(model, variant, 0.02) if drafts else None
    requests = [random_request(rng, speculate=None) for _ in range(40)]
    guessing = [
        (prompt, replace(config, speculate=[None, "ngram", "draft"][i % (2 + drafts)],
                         num_draft_tokens=1 + i % 9, draft_ngram=1 + i % 4))
        for i, (prompt, config) in enumerate(requests)
    ]  # fmt: skip
    with Engine(model, max_batch=5, prompt_tokens=7, draft_model=draft) as engine:
        open_requests = [engine.submit(*request) for request in guessing]
        got = [request.result(WAIT) for request in open_requests]
        assert engine.stats().accepted_tokens > 0
    assert got == alone(model, requests)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.9, "top_p": 0.9},
        {"repetition_penalty": 1.4},
        {"frequency_penalty": 0.5, "presence_penalty": 0.3},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 15, "stop_ids": tuple(range(30))},
        {"banned_ids": (3, 4, 5)},
        {"forced_prefix": (7, 8, 7, 8, 7)},
    ],
)
def test_processors_see_what_they_would_without_guesses(settings):
    """The model as its own draft, by the same options, is always right: nothing it saw differs."""
    model = make()
    config = GenerationConfig(**{"max_new_tokens": 25, "stop_ids": (), **settings})
    want = model.generate(PROMPTS, config)
    got = model.generate(PROMPTS, replace(config, speculate="draft"), draft_model=model)
    assert got == want
    if not config.stop_ids:
        assert [result.guessed_tokens for result in got] == [21] * 4
    assert model.generate(PROMPTS, replace(config, speculate="ngram")) == want


def test_the_model_as_its_own_draft_is_always_right():
    """24 tokens after the prompt's, 8 a pass: 7 guesses, and the one the model itself gives."""
    config = GenerationConfig(max_new_tokens=25, stop_ids=(), speculate="draft")
    model = make()
    assert counts(model, [1, 2], config, draft_model=model) == (25, 21, 21, 4)
    plain = replace(config, speculate=None)
    assert counts(model, [1, 2], plain, draft_model=model) == (25, 0, 0, 25)


# ---------------------------------------------------------------------------- sources of guesses


@pytest.mark.parametrize(
    ("prompt", "forced", "settings", "want"),
    [
        # The first token comes from the prompt's own pass; then 7 guesses are right, and one more.
        (LOOP, [3, 4, 5, 6, 7, 8, 9, 1, 2], {}, (9, 7, 7, 2)),
        # A loop is followed beyond the end of the text.
        ([4, 5, 4], [5, 4, 5, 4, 5, 4, 5, 4, 5], {}, (9, 7, 7, 2)),
        ([6, 6], [6] * 9, {}, (9, 7, 7, 2)),
        # The longest run decides, and of equal ones the last.
        ([1, 2, 3, 4, 5, 9, 2, 3, 8, 1, 2], [3, 4, 5], {}, (3, 1, 1, 2)),
        ([1, 2, 3, 4, 5, 9, 2, 3, 8, 1, 2], [3, 8, 1], {"draft_ngram": 2}, (3, 1, 1, 2)),
        ([7, 3, 4, 7, 3, 5, 8], [7, 3, 5, 8], {"draft_ngram": 1}, (4, 2, 2, 2)),
        # Nothing to look up.
        ([1, 2, 3], [4, 5, 6, 7], {}, (4, 0, 0, 4)),
        # Guesses that were wrong make way for fewer, right ones for more, no more than asked for.
        ([9, 9, 9, 9, 9], [9, 1, 9, 2, 9, 3, 9, 4, 9, 5], {"draft_ngram": 1}, (10, 10, 0, 10)),
        ([5, 5], [5] * 20, {"num_draft_tokens": 3}, (20, 14, 14, 6)),
    ],
)
def test_ngrams_are_looked_up(prompt, forced, settings, want):
    assert counts(make(), prompt, forcing(forced, **settings)) == want


def test_ngrams_are_looked_up_in_the_source_too():
    """Of an encoder-decoder, whose decoder begins with a token (3) and nothing else."""
    source = [20, 21, 22, 23, 24, 25]
    model = make("t5")
    assert counts(model, source, forcing([20, 21, 22, 23, 24, 25])) == (6, 4, 4, 2)
    # Its own text comes first where both have as long a run.
    assert counts(model, source, forcing([20, 9, 20, 9, 1])) == (5, 4, 1, 4)


def test_a_draft_reads_long_prompts_in_pieces():
    """Until it has read one, the text goes on without guesses, and nobody waits."""
    model = make(max_positions=300)
    prompt = np.random.default_rng(0).integers(0, 37, 200).tolist()
    config = GenerationConfig(max_new_tokens=40, stop_ids=(), speculate="draft")
    with Engine(model, prompt_tokens=50, draft_model=model) as engine:
        result = engine.submit(prompt, config).result(WAIT)
        stats = engine.stats()
    assert result == model.generate([prompt], replace(config, speculate=None))[0]
    # Four steps read the prompt, the last of them gives a token; four more the draft, by when it
    # has five tokens; 35 remain, 8 a step.
    assert stats.steps == 4 + 4 + 5
    assert stats.accepted_tokens == stats.guessed_tokens == 35 - 5


def test_a_text_longer_than_the_drafts_positions_goes_on_without_guesses():
    model, draft = make(), make(max_positions=20)
    config = GenerationConfig(max_new_tokens=30, stop_ids=(), speculate="draft")
    [got] = model.generate([[1, 2]], config, draft_model=draft)
    assert got == model.generate([[1, 2]], replace(config, speculate=None))[0]
    with Engine(model, draft_model=draft) as engine:
        engine.submit([1] * 25, replace(config, max_new_tokens=5)).result(WAIT)
        assert engine.stats().guessed_tokens == 0


def test_a_draft_with_damaged_weights_costs_no_token():
    model, draft = make(), make()
    write(draft.parameters()["decoder.norm.weight"], np.nan)
    config = GenerationConfig(max_new_tokens=9, stop_ids=(), speculate="draft")
    [got] = model.generate([[1, 2]], config, draft_model=draft)
    assert got == model.generate([[1, 2]], replace(config, speculate=None))[0]
    assert got.guessed_tokens == 0
    with pytest.raises(ConfigError, match="NaN"):
        draft.generate([[1, 2]], config, draft_model=model)


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize("place", range(1, 16))
def test_stop_ids_amid_right_guesses_end_a_text(place):
    model = make("llama", seed=2)
    free = GenerationConfig(max_new_tokens=16, stop_ids=(), temperature=1.0, seed=4)
    stop = model.generate([PROMPTS[0]], free)[0].ids[place]
    config = replace(free, stop_ids=(stop,))
    want = model.generate([PROMPTS[0]], config)[0]
    guessing = replace(config, speculate="draft")
    assert model.generate([PROMPTS[0]], guessing, draft_model=model) == [want]
    assert (want.ids[-1], want.finish_reason) == (stop, "stop")
    # What stands in its place afterwards is what it was, and no more.
    with Engine(model, max_batch=1, draft_model=model) as engine:
        engine.submit(PROMPTS[0], guessing).result(WAIT)
        text = PROMPTS[0] + want.ids
        longer = engine.submit([*text, *range(20)], free).result(WAIT)
        assert longer == model.generate([[*text, *range(20)]], free)[0]
        reused = engine.stats().reused_tokens
    assert reused == (len(text) - 1 if len(text) > 16 else 0)


def test_stop_strings_amid_right_guesses_end_a_text():
    model = make(vocab_size=300)
    model.tokenizer = Tokenizer.train(["the cat sat on the mat"], kind="bpe", vocab_size=260)
    settings = {"max_new_tokens": 30, "temperature": 1.5, "banned_ids": range(128, 300)}
    for seed in range(6):
        free = GenerationConfig(**settings, seed=seed)
        text = model.generate("the", free)[0].text
        config = replace(free, stop_strings=[text[8:10]])
        prompts = ["the", "cat"]
        want = model.generate(prompts, config)
        guessing = replace(config, speculate="draft")
        assert model.generate(prompts, guessing, draft_model=model) == want
        pieces = list(model.generate(prompts, guessing, draft_model=model, stream=True))
        for index, result in enumerate(want):
            ours = [piece for piece in pieces if piece.index == index]
            assert [piece.id for piece in ours] == result.ids
            assert "".join(piece.text for piece in ours) == result.text
        with Engine(model, draft_model=model) as engine:
            requests = [engine.submit(prompt, guessing) for prompt in prompts]
            assert [request.result(WAIT) for request in requests] == want


def test_positions_are_used_up_to_the_last_and_contexts_slide():
    model = make()  # 40 positions
    prompts = [list(range(30)), [1], [4, 5] * 19]
    for overflow in ("stop", "slide"):
        config = GenerationConfig(max_new_tokens=70, stop_ids=(), overflow=overflow)
        want = model.generate(prompts, config)
        for source, draft in (("ngram", None), ("draft", model)):
            got = model.generate(prompts, replace(config, speculate=source), draft_model=draft)
            assert got == want
            assert all(result.guessed_tokens > 0 for result in got[:2])


def test_an_engine_filled_to_its_capacity():
    model = make("relative-decoder")  # positions without an end
    config = GenerationConfig(max_new_tokens=30, stop_ids=(), speculate="draft")
    with Engine(model, capacity=32, draft_model=model) as engine:
        assert (
            engine.submit([1, 2], config).result(WAIT)
            == model.generate([[1, 2]], replace(config, speculate=None))[0]
        )


def test_streams_and_cancelling():
    model = make()
    config = GenerationConfig(max_new_tokens=25, stop_ids=(), speculate="ngram")
    want = model.generate([[1, 2, 3]], replace(config, speculate=None))[0]
    endless = replace(config, max_new_tokens=10**6, overflow="slide")
    with Engine(model, max_batch=2) as engine:
        long, short = engine.submit([1, 2], endless), engine.submit([1, 2, 3], config)
        pieces = list(short)
        assert [(piece.id, piece.logprob) for piece in pieces] == list(
            zip(want.ids, want.logprobs, strict=True)
        )
        assert sum(piece.guessed for piece in pieces) == short.result(WAIT).guessed_tokens > 0
        for number, _ in enumerate(long):
            if number == 100:
                assert long.cancel()
                break
        with pytest.raises(RequestCancelled):
            long.result(WAIT)
        assert engine.submit([1, 2, 3], config).result(WAIT) == want
    tokens = model.generate([[1, 2], [3]], config, stream=True)
    next(tokens)
    tokens.close()


def test_two_models_that_are_each_others_drafts_do_not_wait_for_ever():
    one, other = make(), make(seed=1)
    config = GenerationConfig(max_new_tokens=30, stop_ids=(), speculate="draft")
    results = {}

    def write(name, model, draft):
        results[name] = [model.generate(PROMPTS, config, draft_model=draft) for _ in range(10)]

    pairs = (("one", one, other), ("other", other, one))
    workers = [threading.Thread(target=write, args=pair, daemon=True) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT)
    for name, model, _ in pairs:
        assert results[name] == [model.generate(PROMPTS, replace(config, speculate=None))] * 10


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("model", "draft", "changes", "words"),
    [
        ("gpt2", {"vocab_size": 38}, {}, ["vocab_size", "38", "37"]),
        ("gpt2", {"variant": "bert"}, {}, ["decoder", "encoder"]),
        ("gpt2", {"variant": "t5"}, {}, ["decoder", "encoder-decoder"]),
        ("bart", {}, {}, ["the model is an encoder-decoder"]),
        ("gpt2", {"right_to_left": True}, {}, ["direction", "right_to_left"]),
        ("gpt2", None, {}, ["speculate='draft'", "draft_model"]),
    ],
)
def test_a_draft_that_does_not_fit_is_named(model, draft, changes, words):
    model = make(model)
    draft = None if draft is None else make(**draft)
    config = GenerationConfig(speculate="draft", **changes)
    calls = [lambda: model.generate([[1]], config, draft_model=draft)]
    if draft is not None:
        calls.append(lambda: Engine(model, draft_model=draft))
        calls.append(lambda: model.generate([[1]], config, draft_model=draft, stream=True))
    for call in calls:
        with pytest.raises(ConfigError) as raised:
            call()
        assert all(word in str(raised.value) for word in words), raised.value


def test_settings_that_do_not_fit_are_named():
    model = make()
    for settings, words in (
        ({"speculate": "guess"}, ["'ngram', 'draft'", "'guess'"]),
        ({"speculate": True}, ["'ngram', 'draft'", "True"]),
        ({"speculate": "ngram", "num_beams": 2}, ["speculate", "beam search"]),
        ({"speculate": "ngram", "num_draft_tokens": 0}, ["num_draft_tokens", "0"]),
        ({"draft_ngram": 0}, ["draft_ngram", "0"]),
    ):
        with pytest.raises(ConfigError) as raised:
            GenerationConfig(**settings)
        assert all(word in str(raised.value) for word in words), raised.value
    for source in (None, "ngram"):
        with pytest.raises(ConfigError, match="draft_model guesses where"):
            model.generate([[1]], GenerationConfig(speculate=source), draft_model=model)
    with Engine(model) as engine, pytest.raises(ConfigError, match="needs a draft_model"):
        engine.submit([1], GenerationConfig(speculate="draft"))


def test_the_core_checks_its_options():
    options = _core.GenerationOptions()
    assert options.speculate is None
    with pytest.raises(ConfigError, match="'guess'"):
        options.speculate = "guess"
    for settings, words in (
        ({"speculate": "ngram", "num_beams": 2}, "does not speculate"),
        ({"num_draft_tokens": 0}, "num_draft_tokens"),
        ({"draft_ngram": 0}, "draft_ngram"),
    ):
        options = _core.GenerationOptions()
        for name, value in settings.items():
            setattr(options, name, value)
        with pytest.raises(ConfigError, match=words):
            _core.Engine(make()._core, [_core.as_tensor(np.int32([1]))], [], options, False)


# ---------------------------------------------------------------------------- the command line


def test_the_command_line_speculates(capsys, finished_run):
    words = ["generate", finished_run, "--prompt", "to be", "--max-new-tokens", 60]
    for more in ([], ["--temperature", 0]):
        status, plain, _ = run(capsys, *words, *more)
        assert status == 0
        for guesses in (
            ["--speculate", "ngram", "--draft-ngram", 2, "--num-draft-tokens", 4],
            ["--draft-model", finished_run],
            ["--draft-model", finished_run, "--speculate", "draft"],
        ):
            assert run(capsys, *words, *more, *guesses) == (0, plain, "")
    assert "--draft-model" in fails(capsys, 2, *words, "--speculate", "draft")
    assert "'ngram', 'draft'" in fails(capsys, 2, *words, "--speculate", "guess")
    line = fails(capsys, 1, *words, "--speculate", "ngram", "--draft-model", finished_run)
    assert "speculate='draft'" in line
