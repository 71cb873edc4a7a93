"""Generation with keys and values in every format: the same text whoever is beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import llmcore
from command import fails, run
from llmcore import ConfigError, Engine, GenerationConfig, ModelConfig, Transformer, _core
from test_engine import WAIT, random_request
from test_generate import BEAMS, PROMPTS, VARIANTS, make
from test_speculative import LOOP, resembling

NARROW = ["bfloat16", "int8"]
DTYPES = ["float32", *NARROW]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 3}, BEAMS])
def test_a_text_does_not_depend_on_its_batch_or_on_threads(dtype, variant, settings, threads):
    model = make(variant)
    config = GenerationConfig(max_new_tokens=15, stop_ids=(), cache_dtype=dtype, **settings)
    results = []
    for count in (1, 3):
        threads(count)
        results.append(model.generate(PROMPTS, config))
    assert results[0] == results[1]
    for prompt, result in zip(PROMPTS, results[0], strict=True):
        assert model.generate([prompt], config) == [result]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("variant", VARIANTS)
def test_log_probabilities_move_a_little(dtype, variant):
    """By less than 1.3 times what they moved by at most when this was written."""
    model = make(variant)
    forced = GenerationConfig(max_new_tokens=20, stop_ids=(), forced_prefix=tuple(range(20)))
    bound = {"bfloat16": 0.026, "int8": 0.06}[dtype]
    for prompt in PROMPTS:
        exact = np.array(model.generate([prompt], forced)[0].logprobs)
        got = np.array(model.generate([prompt], replace(forced, cache_dtype=dtype))[0].logprobs)
        error = np.abs(got - exact)
        assert 0 < error.max() < bound, error.max()


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_beams_have_the_log_probabilities_of_their_texts_alone(dtype, variant):
    """Whatever places of others a beam's keys stand in, to the last bit."""
    model = make(variant)
    config = GenerationConfig(max_new_tokens=9, stop_ids=(5,), cache_dtype=dtype, **BEAMS)
    for prompt, best in zip(PROMPTS, model.generate(PROMPTS, config), strict=True):
        for result in (best, *best.alternatives):
            alone = GenerationConfig(
                max_new_tokens=len(result.ids), forced_prefix=result.ids, stop_ids=(),
                cache_dtype=dtype,
            )  # fmt: skip
            assert model.generate([prompt], alone)[0].logprobs == result.logprobs


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("variant", ["gpt2", "llama", "window", "t5"])
def test_a_request_gets_what_it_gets_alone(dtype, variant, rng):
    """Places are used again, and prompts that begin alike share what is kept."""
    model = make(variant)
    requests = [random_request(rng) for _ in range(10)]
    shared = rng.integers(0, 37, 20).tolist()
    requests += [([*shared, token], GenerationConfig(max_new_tokens=9)) for token in range(6)]
    with Engine(model, max_batch=3, prompt_tokens=7, cache_dtype=dtype) as engine:
        open_requests = [engine.submit(*request, timeout=None) for request in requests]
        got = [request.result(WAIT) for request in open_requests]
        reused = engine.stats().reused_tokens
    want = [
        model.generate([prompt], replace(config, cache_dtype=dtype))[0]
        for prompt, config in requests
    ]
    assert got == want
    assert (reused > 0) == (model.config.kind == "decoder")


@pytest.mark.parametrize("dtype", NARROW)
def test_guesses_change_nothing(dtype):
    model = make()
    config = GenerationConfig(max_new_tokens=24, stop_ids=(), cache_dtype=dtype)
    prompts = [LOOP, LOOP[:3] * 6, [5]]
    want = model.generate(prompts, config)
    for source, draft in (("ngram", None), ("draft", resembling(model, "gpt2"))):
        got = model.generate(prompts, replace(config, speculate=source), draft_model=draft)
        assert got == want
        assert sum(result.guessed_tokens for result in got) > 0


@pytest.mark.cpu("its memory")
def test_memory_is_what_the_format_takes():
    config = ModelConfig.preset("gpt-nano", max_positions=4096)
    model = Transformer(config)
    numbers = 2 * config.num_decoder_layers * config.num_kv_heads * 4096 * 16
    sizes = {}
    for dtype in DTYPES:
        before = llmcore.memory_stats()["current_bytes"]
        with Engine(model, max_batch=16, capacity=4096, cache_dtype=dtype):
            sizes[dtype] = llmcore.memory_stats()["current_bytes"] - before
    width = config.head_dim
    for dtype, size in (("float32", 4 * width), ("bfloat16", 2 * width), ("int8", width + 4)):
        assert numbers * size <= sizes[dtype] <= numbers * size + (4 << 20), dtype


def test_wrong_choices_are_one_sentence():
    with pytest.raises(ConfigError, match=r"cache_dtype: expected one of .*'int8', or None"):
        GenerationConfig(cache_dtype="int4")
    model = make()
    for wrong in ("int4", None, 8):
        with pytest.raises(ConfigError, match="cache_dtype must be one of 'float32'"):
            Engine(model, cache_dtype=wrong)
    with Engine(model, cache_dtype="int8") as engine:
        with pytest.raises(ConfigError, match="'int8' for all requests, got 'bfloat16'"):
            engine.submit([1], GenerationConfig(cache_dtype="bfloat16"))
        same = GenerationConfig(max_new_tokens=3, cache_dtype="int8")
        assert engine.submit([1], same).result(WAIT) == model.generate([[1]], same)[0]
    options = _core.GenerationOptions()
    assert options.cache_dtype == "float32"
    with pytest.raises(ConfigError, match="'float32', 'bfloat16' or 'int8', got 'int4'"):
        options.cache_dtype = "int4"


def test_the_command_line_takes_it(capsys, finished_run):
    words = ["generate", finished_run, "--prompt", "to be", "--max-new-tokens", 20]
    texts = [run(capsys, *words, "--cache-dtype", dtype) for dtype in DTYPES]
    assert [(status, error) for status, _, error in texts] == [(0, "")] * 3
    assert texts[0] == run(capsys, *words)
    assert "'float32', 'bfloat16', 'int8'" in fails(capsys, 2, *words, "--cache-dtype", "int4")
