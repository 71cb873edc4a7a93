"""Decoding on a GPU, or its emulation, a pass ahead of the CPU: step for step what the CPU does."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import llmcore
from llmcore import ConfigError, Engine, GenerationConfig, ModelConfig, Transformer, _core
from llmcore.tensor import write

pytestmark = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_heads": 3,
    "num_decoder_layers": 1,
    "max_positions": 40,
    "bos_id": None,
    "eos_id": None,
}
BOTH = {**SMALL, "num_encoder_layers": 1, "decoder_start_id": 2}
FAMILIES = {
    "gpt2": ModelConfig.preset("gpt2", **SMALL),
    "llama": ModelConfig.preset("llama-tiny", **SMALL, num_kv_heads=1, ffn_size=40),
    "t5": ModelConfig.preset("t5-small", **BOTH),
}
PROMPT = list(range(3, 23))


def pair(name="gpt2", **changes):
    config = FAMILIES[name].replace(**changes)
    return [Transformer(config, device=device, seed=3) for device in ("cpu", "cuda")]


class Steps:
    """A core engine and all that can be seen of it, step after step."""

    def __init__(self, model, places=3, tokens=36, prompt_tokens=64):
        self.model = model
        self.core = _core.Engine(model._core, places, tokens, prompt_tokens)
        self.seen = []

    def join(self, prompt, *, slide=False, **settings):
        config = GenerationConfig(**{"max_new_tokens": 6, "stop_ids": (), **settings})
        options = config.core_options(self.model.config, config.stop_ids)
        ids = np.array(prompt, np.int32)
        if self.model.config.kind == "encoder-decoder":
            request = _core.Request(np.array([2], np.int32), ids, options, slide)
        else:
            request = _core.Request(ids, None, options, slide)
        return self.core.join(request)

    def step(self, count=1):
        for _ in range(count):
            tokens = self.core.step(self.model._core)
            self.seen.append(
                (
                    [(text, id, reason, failure) for text, id, _, reason, _, failure in tokens],
                    self.core.done,
                    self.core.read_tokens,
                    self.core.copied_tokens,
                )
            )
            self.logprobs = [token[2] for token in tokens]

    def finish(self):
        while not self.core.done:
            self.step()


def play(script, name="gpt2", config=None, engine=None):
    """The script on both devices: all that is seen is the same. Returns the device's engine."""
    played = []
    for model in pair(name, **(config or {})):
        steps = Steps(model, **(engine or {}))
        script(steps)
        played.append(steps)
    here, there = played
    assert there.seen == here.seen
    assert here.core.passes_ahead == 0
    np.testing.assert_allclose(there.logprobs, here.logprobs, atol=1e-4)
    return there


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.8},
        {"top_k": 5, "temperature": 1.3},
        {"top_p": 0.7},
        {"min_p": 0.2, "top_p": 0.9, "top_k": 20},
    ],
)
def test_texts_of_every_length(name, settings):
    def script(steps):
        for number, (size, count) in enumerate([(5, 1), (1, 2), (9, 7)]):
            steps.join(PROMPT[:size], max_new_tokens=count, seed=number, **settings)
        steps.finish()

    # 7 tokens: of the first the prompt's pass, of the second one that nobody waits for.
    assert play(script, name).core.passes_ahead == 5


@pytest.mark.parametrize(("count", "ahead"), [(1, 0), (2, 0), (3, 1), (4, 2)])
def test_nothing_is_asked_for_that_is_known_to_be_too_much(count, ahead):
    def script(steps):
        steps.join(PROMPT, max_new_tokens=count)
        steps.finish()

    assert play(script).core.passes_ahead == ahead


def test_a_text_that_stops_has_had_a_pass_too_many():
    model = pair()[0]
    written = model.generate([PROMPT], GenerationConfig(max_new_tokens=8, stop_ids=()))[0].ids

    def script(steps):
        for place, stop in enumerate(dict.fromkeys(written)):
            texts = [steps.join(PROMPT, stop_ids=(stop,), max_new_tokens=9)]
            texts.append(steps.join(PROMPT[place:], max_new_tokens=5 + place % 3))
            steps.finish()
            # It goes on where it stood, and finds what it has seen, no more and no less.
            steps.join([*PROMPT, *written[: place + 2]], max_new_tokens=2)
            steps.finish()

    assert play(script).core.passes_ahead > 0


def test_texts_join_while_others_are_written(rng):
    prompts = [rng.integers(3, 61, size).tolist() for size in (4, 17, 9, 30, 1)]

    def script(steps):
        for number, prompt in enumerate(prompts):
            while not steps.core.has_room:
                steps.step()
            steps.join(prompt, max_new_tokens=6, temperature=0.9, seed=number)
            steps.step(number)
        steps.finish()

    ahead = play(script, engine={"places": 2, "prompt_tokens": 8}).core.passes_ahead
    assert 5 < ahead < 25


@pytest.mark.parametrize("when", [1, 2, 3, 4])
def test_a_text_may_leave_while_its_next_token_is_chosen(when):
    def script(steps):
        text = steps.join(PROMPT, max_new_tokens=9)
        other = steps.join(PROMPT[4:], max_new_tokens=9)
        steps.step(when)
        steps.core.leave(text)
        written = [id for tokens, *_ in steps.seen for number, id, *_ in tokens if number == text]
        steps.join([*PROMPT, *written, 7, 8], max_new_tokens=3)
        steps.step(2)
        steps.core.leave(other)
        steps.finish()

    play(script)


def test_all_may_leave_and_others_come():
    def script(steps):
        texts = [steps.join(PROMPT[i:]) for i in range(3)]
        steps.step(3)
        for text in texts:
            steps.core.leave(text)
        steps.step()
        for i in range(3):
            steps.join(PROMPT[i:], temperature=1.0, seed=i)
        steps.finish()

    play(script)


def test_a_text_may_be_in_several_rows_of_a_pass():
    def script(steps):
        steps.join(PROMPT[:2], max_new_tokens=3)
        for i in range(8):  # so many of one token that the first text is cut to single tokens
            steps.join(PROMPT[i : i + 1], max_new_tokens=3)
        steps.finish()

    play(script, engine={"places": 9})


@pytest.mark.parametrize("slide", [True, False])
def test_contexts_that_reach_the_last_position(slide):
    def script(steps):
        steps.join(PROMPT[:6], slide=slide, max_new_tokens=16)
        steps.join(PROMPT[:3], slide=slide, max_new_tokens=14)
        steps.finish()

    ahead = play(script, config={"max_positions": 12}, engine={"tokens": 12}).core.passes_ahead
    assert 2 < ahead < 14


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"banned_ids": (5,)},
        {"speculate": "ngram"},
        {"no_repeat_ngram_size": 2},
    ],
)
def test_what_needs_the_cpu_waits_for_it(settings):
    """And the others with it, until it has left."""

    def script(steps):
        steps.join(PROMPT, max_new_tokens=9)
        steps.join(PROMPT[2:], max_new_tokens=4, **settings)
        steps.finish()

    assert play(script).core.passes_ahead == 4 + ("speculate" in settings)  # a guess was right


def test_what_needs_the_cpu_for_a_while_waits_for_so_long():
    def script(steps):
        steps.join(PROMPT, max_new_tokens=9, min_new_tokens=4, stop_ids=(60,))
        steps.join(PROMPT[1:], max_new_tokens=9, forced_prefix=(7, 8))
        steps.finish()

    # Tokens 4 to 8, counted from 0, may be chosen in a pass; the first of them nobody waits for.
    assert play(script).core.passes_ahead == 4


@pytest.mark.parametrize(
    ("config", "settings", "ahead"),
    [({"forced_eos_id": 9}, {}, 3), ({}, {"no_repeat_ngram_size": 7}, 1)],
)
def test_what_needs_the_cpu_later_is_not_asked_ahead(config, settings, ahead):
    def script(steps):
        steps.join(PROMPT[:4], max_new_tokens=6, **settings)
        steps.finish()

    assert play(script, config=config).core.passes_ahead == ahead


def test_a_table_of_places_that_outgrows_the_first_block_of_inputs():
    def script(steps):
        for size in (1, 5, 9):
            steps.join(PROMPT[:size], max_new_tokens=5)
        steps.finish()

    room = {"places": 3, "tokens": 100000}  # 1.2 MB of numbers for all three
    assert play(script, "llama", {"max_positions": 100000}, room).core.passes_ahead == 3


def test_failures():
    """A damaged position: texts fail as they reach it; the others and those that follow go on."""

    def script(steps):
        positions = steps.model.parameters()["embed.positions.weight"]
        values = positions.numpy().copy()
        values[8] = np.nan
        write(positions, values)
        for size in (3, 5, 1):
            steps.join(PROMPT[:size], max_new_tokens=7)
        steps.finish()
        steps.join(PROMPT[2:6], max_new_tokens=4)
        steps.finish()

    failures = [token[3] for tokens, *_ in play(script).seen for token in tokens if token[3]]
    assert len(failures) == 2
    assert all("NaN" in failure for failure in failures)


def test_the_model_works_for_others_meanwhile(rng):
    here, there = pair()
    config = GenerationConfig(max_new_tokens=7, stop_ids=(), temperature=0.9)
    rows = rng.integers(3, 61, (2, 11))
    want = [token.id for token in here.generate([PROMPT], config, stream=True)]
    got = []
    for token in there.generate([PROMPT], config, stream=True):
        got.append(token.id)
        np.testing.assert_allclose(there(rows).numpy(), here(rows).numpy(), atol=1e-4)
        assert there.generate([PROMPT[:4]], config) == there.generate([PROMPT[:4]], config)
    assert got == want


def test_weights_may_change_afterwards():
    here, there = pair()
    config = GenerationConfig(max_new_tokens=5, stop_ids=())
    stream = there.generate([PROMPT], config, stream=True)
    for _ in range(3):
        next(stream)
    for model in (here, there):
        for parameter in model.parameters().values():
            write(parameter, parameter.numpy() * 1.5)
    assert len(list(stream)) == 2
    want = [result.ids for result in here.generate([PROMPT, PROMPT[3:]], config)]
    assert [result.ids for result in there.generate([PROMPT, PROMPT[3:]], config)] == want


def test_engines_end_while_the_gpu_is_at_work():
    for _ in range(3):
        model = pair()[1]
        steps = Steps(model)
        for i in range(3):
            steps.join(PROMPT[i:])
        steps.step(3)
        assert steps.core.passes_ahead > 0
        del steps, model
        gc.collect()
    model = pair()[1]
    stream = model.generate([PROMPT], GenerationConfig(max_new_tokens=9, stop_ids=()), stream=True)
    for _ in range(3):
        next(stream)
    del stream
    with Engine(model, max_batch=2, capacity=40) as engine:
        request = engine.submit(PROMPT, GenerationConfig(max_new_tokens=20, stop_ids=()))
        next(iter(request))
        engine.close()
    gc.collect()


def test_a_failure_reaches_who_generates():
    model = pair()[1]
    positions = model.parameters()["embed.positions.weight"]
    values = positions.numpy().copy()
    values[len(PROMPT) + 2] = np.nan
    write(positions, values)
    with pytest.raises(ConfigError, match="NaN"):
        model.generate([PROMPT, PROMPT[4:]], GenerationConfig(max_new_tokens=9, stop_ids=()))
    assert len(model.generate([PROMPT[9:]], GenerationConfig(max_new_tokens=3, stop_ids=()))) == 1


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_what_was_captured_serves_the_next_texts_too(name):
    """Caches are made where those of the texts before were, so passes look the same."""
    here, there = pair(name)
    config = GenerationConfig(max_new_tokens=9, stop_ids=())
    prompts = [PROMPT[:7], PROMPT[:5]]
    for _ in range(2):
        there.generate(prompts, config)
    captures, replays = _core.captured_counts()
    got = there.generate(prompts, config)
    again, more = _core.captured_counts()
    assert (again - captures, more > replays) == (0, True)
    assert [one.ids for one in got] == [one.ids for one in here.generate(prompts, config)]
