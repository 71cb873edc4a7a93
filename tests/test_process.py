"""A model inside someone's program: threads, fork, Ctrl-C, and memory over a long life."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llmcore import CausalLM, GenerationConfig, ModelConfig, TrainStep, Transformer, memory_stats

pytestmark = pytest.mark.cpu("its processes and memory")

CONFIG = ModelConfig.preset("gpt-nano", num_decoder_layers=2, hidden_size=32, num_heads=2)
BATCHES = [
    CausalLM()(np.random.default_rng(seed).integers(0, 65, (3, 33), np.int32)) for seed in range(4)
]


def train(seed, steps=5):
    step = TrainStep(Transformer(CONFIG, seed=seed), lr=1e-3)
    return [step.step(BATCHES[i % 4]).loss for i in range(steps)]


def test_two_models_in_two_threads_do_as_each_alone():
    found = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.update({seed: train(seed)}))
        for seed in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: train(1), 2: train(2)}


def test_one_model_in_several_threads():
    model = Transformer(CONFIG)
    config = GenerationConfig(max_new_tokens=8)
    expected = model.generate([[1, 2, 3]], config)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(model.generate([[1, 2, 3]], config)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 3


def test_other_threads_run_while_the_core_computes():
    model = Transformer(ModelConfig.preset("gpt-nano", hidden_size=256, num_decoder_layers=8))
    step = TrainStep(model, lr=1e-3)
    batch = CausalLM()(np.zeros((64, 65), np.int32))
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    step.step(batch)
    ended = time.perf_counter()
    done.set()
    thread.join()
    assert sum(began < at < ended for at in ticks) >= 3


@pytest.mark.parametrize("what", ["step", "generate"])
def test_ctrl_c_ends_a_loop_of_ones_own(what):
    model = Transformer(CONFIG)
    step = TrainStep(model, lr=1e-3)
    endless = model.generate(
        [[1]], GenerationConfig(max_new_tokens=2**31 - 1, overflow="slide"), stream=True
    )
    timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()

    def forever():
        while True:
            _ = step.step(BATCHES[0]) if what == "step" else next(endless)

    with pytest.raises(KeyboardInterrupt):
        forever()
    timer.join()
    # Nothing is broken by it.
    assert np.isfinite(step.step(BATCHES[0]).loss)
    assert model.generate([[1]], GenerationConfig(max_new_tokens=2))[0].ids


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forked_child_computes_the_same():
    model = Transformer(CONFIG)
    before = model.loss(BATCHES[0])
    child = os.fork()
    if child == 0:
        os._exit(0 if model.loss(BATCHES[0]) == before else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert model.loss(BATCHES[0]) == before


def resident():
    """Bytes of memory this process holds."""
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("the system does not tell how much memory a process has")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow():
    model = Transformer(CONFIG)
    step = TrainStep(model, lr=1e-3)

    def work(times):
        for i in range(times):
            step.step(BATCHES[i % 4])
            model.generate([[1, 2], [3]], GenerationConfig(max_new_tokens=3, temperature=1.0))

    work(20)
    gc.collect()
    held, counted = resident(), memory_stats()["current_bytes"]
    work(200)
    gc.collect()
    assert memory_stats()["current_bytes"] == counted
    assert resident() - held < 2**20


def test_a_deleted_model_gives_its_memory_back():
    gc.collect()
    held, counted = resident(), memory_stats()["current_bytes"]
    model = Transformer(ModelConfig.preset("gpt-nano", hidden_size=512))
    size = 4 * model.config.num_parameters()
    model.loss_and_grad(BATCHES[0])
    weights = model.parameters()
    assert resident() - held > 2 * size
    del model
    assert np.isfinite(weights["embed.tokens.weight"].numpy()).all()  # a view keeps the model alive
    del weights
    gc.collect()
    assert memory_stats()["current_bytes"] == counted
    assert resident() - held < size / 4
