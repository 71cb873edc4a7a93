"""Training with dtype="bfloat16": products rounded, everything else float32."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import CausalLM, ConfigError, ModelConfig, TrainStep, Transformer

CONFIG = ModelConfig.preset("gpt-nano", num_decoder_layers=2, vocab_size=64)


def make(seed=0, **changes):
    return Transformer(CONFIG.replace(**changes), seed=seed)


def batches(count, seed=0):
    """Sequences that can be learnt: the next id is a fixed function of the last two, mostly."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).integers(0, 64, (64, 64))
    for _ in range(count):
        rows = []
        for _ in range(8):
            ids = list(rng.integers(0, 64, 2))
            while len(ids) < 33:
                ids.append(int(table[ids[-2] % 4, ids[-1]]))
            rows.append([int(i) for i in ids])
        yield CausalLM()(rows)


def losses(dtype, seed=0, steps=120, **settings):
    step = TrainStep(make(seed), lr=3e-3, max_grad_norm=1.0, dtype=dtype, **settings)
    return np.array([step(batch).loss for batch in batches(steps)])


def test_learns_as_float32_does():
    single, half = losses("float32"), losses("bfloat16")
    other = losses("float32", seed=1)
    assert not np.array_equal(single, half)  # something was rounded
    assert abs(half[0] - single[0]) < 2e-3
    noise = np.abs(single[-40:].mean() - other[-40:].mean())
    assert half[-40:].mean() < 0.7 * half[0]
    assert abs(half[-40:].mean() - single[-40:].mean()) < max(noise, 0.02 * single[-40:].mean())


def test_gradients_are_those_of_float32_but_for_the_rounding():
    norms = []
    for dtype in ("float32", "bfloat16"):
        model = make()
        step = TrainStep(model, lr=0.0, dtype=dtype)
        step(next(batches(1)))
        norms.append({name: g.numpy().copy() for name, g in model.gradients().items()})
    for name, wanted in norms[0].items():
        scale = np.linalg.norm(wanted)
        if scale > 1e-6:  # a key's bias has none
            assert np.linalg.norm(norms[1][name] - wanted) < 0.03 * scale, name


def test_bits_do_not_depend_on_threads():
    threads, states = llmcore.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            llmcore.set_num_threads(count)
            model = make(residual_dropout=0.1)
            step = TrainStep(model, lr=1e-2, dtype="bfloat16")
            for batch in batches(3):
                step(batch)
            states.append(b"".join(p.numpy().tobytes() for p in model.parameters().values()))
    finally:
        llmcore.set_num_threads(threads)
    assert states[0] == states[1] == states[2]


def test_weights_and_moments_stay_float32():
    model = make()
    step = TrainStep(model, lr=1e-3, dtype="bfloat16")
    before = model.loss(next(batches(1)))
    step(next(batches(1)))
    assert all(p.dtype == "float32" for p in model.parameters().values())
    weights = model.parameters()["embed.tokens.weight"].numpy()
    assert np.any(weights.view(np.uint32) & 0xFFFF)  # finer than bfloat16
    assert model.loss(next(batches(1))) < before


def test_other_names_are_refused():
    with pytest.raises(ConfigError, match="dtype must be 'float32' or 'bfloat16', got 'float16'"):
        TrainStep(make(), lr=1.0, dtype="float16")
