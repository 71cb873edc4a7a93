"""The engine: each request as if it were alone, whatever joins, leaves, fails or is cancelled."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from llmcore import (
    ConfigError,
    DataError,
    DTypeError,
    Engine,
    EngineClosed,
    GenerationConfig,
    QueueFull,
    RequestCancelled,
    ShapeError,
    TokenIndexError,
)
from llmcore.tensor import write
from llmcore.tokenizer import Tokenizer
from test_generate import VARIANTS, make

WAIT = 60  # seconds after which a test has hung
LONG = GenerationConfig(max_new_tokens=10**6, overflow="slide", stop_ids=())


@pytest.fixture(scope="module")
def model():
    """A model whose texts tests compare."""
    return make()


def random_request(rng, vocab=37, positions=40, **changes):
    """A prompt and a config of every kind."""
    sampling = [{}, {"temperature": 0.9, "top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}]
    penalties = [{}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}]
    prompt = rng.integers(0, vocab, rng.integers(1, positions - 4)).tolist()
    settings = {
        "max_new_tokens": int(rng.integers(1, 24)),
        "seed": int(rng.integers(0, 9)),
        "stop_ids": [int(rng.integers(0, vocab))],
        "overflow": ["stop", "slide"][rng.integers(2)],
        **sampling[rng.integers(len(sampling))],
        **penalties[rng.integers(len(penalties))],
    }
    return prompt, GenerationConfig(**{**settings, **changes})


def alone(model, requests):
    return [model.generate([prompt], config)[0] for prompt, config in requests]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_request_gets_what_it_gets_alone(variant, rng):
    model = make(variant)
    requests = [random_request(rng) for _ in range(12)]
    with Engine(model, max_batch=3, prompt_tokens=7) as engine:
        open_requests = [engine.submit(*request, timeout=None) for request in requests]
        got = [request.result(WAIT) for request in open_requests]
    assert got == alone(model, requests)


@pytest.mark.parametrize("max_batch", [1, 2, 8])
@pytest.mark.parametrize("prompt_tokens", [1, 16, 1000])
def test_results_depend_neither_on_places_nor_on_pieces_of_prompts(
    model, rng, max_batch, prompt_tokens
):
    requests = [random_request(rng) for _ in range(20)]
    with Engine(model, max_batch=max_batch, prompt_tokens=prompt_tokens) as engine:
        open_requests = []
        for request in requests:  # they join at any step
            open_requests.append(engine.submit(*request))
            time.sleep(float(rng.uniform(0, 0.002)))
        got = [request.result(WAIT) for request in open_requests]
    assert got == alone(model, requests)


def test_tokens_stream_as_they_come(model):
    config = GenerationConfig(max_new_tokens=12, stop_ids=())
    with Engine(model) as engine:
        request = engine.submit([1, 2, 3], config)
        first = next(iter(request))
        pieces = list(request)
        assert pieces[0] == first
        assert pieces == list(model.generate([[1, 2, 3]], config, stream=True))
        assert request.done
        assert request.result(0) == model.generate([[1, 2, 3]], config)[0]


def test_texts_and_stop_strings(rng):
    model = make(vocab_size=300)
    model.tokenizer = Tokenizer.train(["the cat sat on the mat"], kind="bpe", vocab_size=260)
    settings = {"max_new_tokens": 30, "temperature": 1.5, "banned_ids": range(128, 300)}
    free = [model.generate("the", GenerationConfig(**settings, seed=s))[0].text for s in range(6)]
    configs = [
        GenerationConfig(**settings, seed=seed, stop_strings=[text[8:10]])
        for seed, text in enumerate(free)
    ]
    with Engine(model, max_batch=3) as engine:
        requests = [engine.submit("the", config) for config in configs]
        results = [request.result(WAIT) for request in requests]
        shown = ["".join(piece.text for piece in request) for request in requests]
        assert engine.stats().finished == 6
    assert results == alone(model, [("the", config) for config in configs])
    assert shown == [result.text for result in results]
    assert {result.finish_reason for result in results} == {"stop"}


def test_right_to_left_models_give_results_but_no_stream():
    model = make(right_to_left=True)
    config = GenerationConfig(max_new_tokens=6, stop_ids=())
    with Engine(model) as engine:
        request = engine.submit([1, 2, 3], config)
        assert request.result(WAIT) == model.generate([[1, 2, 3]], config)[0]
        with pytest.raises(ConfigError, match="right to left"):
            next(iter(request))


# ---------------------------------------------------------------------------- shared prefixes


def test_what_prompts_begin_with_in_common_is_computed_once(model, rng):
    common = rng.integers(0, 37, 24).tolist()
    config = GenerationConfig(max_new_tokens=6, stop_ids=())
    requests = [([*common, *rng.integers(0, 37, 3).tolist()], config) for _ in range(9)]
    with Engine(model, max_batch=4) as engine:
        open_requests = [engine.submit(*request) for request in requests]
        got = [request.result(WAIT) for request in open_requests]
        stats = engine.stats()
    assert got == alone(model, requests)
    # By chance two may go on with the same token.
    assert stats.reused_tokens >= 8 * 24
    assert stats.prompt_tokens + stats.reused_tokens == sum(len(p) for p, _ in requests)


def test_a_conversation_goes_on_where_it_stood(model):
    config = GenerationConfig(max_new_tokens=5, stop_ids=())
    text = list(range(20))
    with Engine(model, max_batch=2) as engine:
        for _ in range(3):
            before = engine.stats().reused_tokens
            result = engine.submit(text, config).result(WAIT)
            assert result == model.generate([text], config)[0]
            text += result.ids
        assert engine.stats().reused_tokens - before == len(text) - 5 - 1


def test_prefixes_survive_in_the_places_used_last(model, rng):
    config = GenerationConfig(max_new_tokens=2, stop_ids=())
    prompts = [rng.integers(0, 37, 20).tolist() for _ in range(4)]
    with Engine(model, max_batch=3) as engine:

        def reused(prompt):
            before = engine.stats().reused_tokens
            engine.submit(prompt, config).result(WAIT)
            return engine.stats().reused_tokens - before

        assert [reused(prompt) for prompt in prompts] == [0, 0, 0, 0]  # the last took the first's
        assert reused(prompts[0]) == 0
        assert reused(prompts[3]) == 19
        assert reused(prompts[0]) == 19


def test_the_same_prompt_many_times_in_a_batch_is_read_once():
    """Fixed batches share prefixes too, and every text still has its own draws."""
    model = make()
    config = GenerationConfig(max_new_tokens=6, stop_ids=(), temperature=1.0)
    prompt = list(range(30))
    results = model.generate([prompt] * 3, config)
    assert len({tuple(result.ids) for result in results}) == 3
    assert results[0] == model.generate([prompt], config)[0]


# ---------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: e.submit([]), DataError, ["one prompt", "0"]),
        (lambda e: e.submit([[]]), DataError, ["no tokens"]),
        (lambda e: e.submit([[1], [2]]), DataError, ["one prompt", "2"]),
        (lambda e: e.submit([1, 99]), TokenIndexError, ["99", "37"]),
        (lambda e: e.submit("text"), ConfigError, ["tokenizer"]),
        (lambda e: e.submit(3), DTypeError, ["int"]),
        (lambda e: e.submit([1], {"top_k": 3}), DTypeError, ["GenerationConfig", "dict"]),
        (lambda e: e.submit([0] * 41), ShapeError, ["41", "40"]),
        (
            lambda e: e.submit([0] * 20, GenerationConfig(max_new_tokens=11)),
            ShapeError,
            ["20", "11", "31", "30", "capacity"],
        ),
        (lambda e: e.submit([1], GenerationConfig(num_beams=2)), ConfigError, ["beam", "generate"]),
        (lambda e: e.submit([1], GenerationConfig(stop_ids=[40])), TokenIndexError, ["40"]),
        (
            lambda e: e.submit(
                [1], GenerationConfig(max_new_tokens=3, banned_ids=range(37))
            ).result(WAIT),
            ConfigError,
            ["banned_ids"],
        ),
    ],
)
def test_a_bad_request_is_named_and_hurts_nobody(model, call, error, words):
    config = GenerationConfig(max_new_tokens=20, stop_ids=())
    with Engine(model, capacity=30) as engine:
        before = engine.submit([1, 2], config)
        with pytest.raises(error) as raised:
            call(engine)
        after = engine.submit([3], config)
        assert [before.result(WAIT), after.result(WAIT)] == alone(
            model, [([1, 2], config), ([3], config)]
        )
    assert all(word in str(raised.value) for word in words), raised.value


@pytest.mark.parametrize(
    ("variant", "settings", "words"),
    [
        ("bert", {}, ["encoder"]),
        ("gpt2", {"max_batch": 0}, ["max_batch", "0"]),
        ("gpt2", {"max_queue": 1.5}, ["max_queue", "1.5"]),
        ("gpt2", {"prompt_tokens": -1}, ["prompt_tokens", "-1"]),
        ("gpt2", {"capacity": 41}, ["capacity", "40", "41"]),
        ("gpt2", {"capacity": 0}, ["capacity", "0"]),
    ],
)
def test_a_bad_engine_is_named(variant, settings, words):
    with pytest.raises(ConfigError) as raised:
        Engine(make(variant), **settings)
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_source_longer_than_the_capacity_is_refused():
    with Engine(make("bart"), capacity=10) as engine, pytest.raises(ShapeError, match="capacity"):
        engine.submit([1] * 11, GenerationConfig(max_new_tokens=4))


class Gate:
    """Holds an engine's thread between two steps, through the lock that guards them."""

    def __init__(self, engine):
        self.lock = engine._loop.stepping

    def __enter__(self):
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


def wait_until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_queue_is_bounded(model):
    config = GenerationConfig(max_new_tokens=3, stop_ids=())
    with Engine(model, max_batch=1, max_queue=2) as engine:
        with Gate(engine):
            running = engine.submit([1], config)
            wait_until(lambda: engine.stats().running == 1)
            waiting = [engine.submit([token], config) for token in (2, 3)]
            assert engine.stats().queued == 2
            with pytest.raises(QueueFull, match="2 requests"):
                engine.submit([4], config)
            start = time.monotonic()
            with pytest.raises(QueueFull):
                engine.submit([4], config, timeout=0.05)
            assert time.monotonic() - start >= 0.05
            with pytest.raises(TimeoutError, match=r"0\.05"):
                running.result(timeout=0.05)
            assert waiting[0].cancel()
            last = engine.submit([4], config)
        patient = [engine.submit([5], config, timeout=None) for _ in range(5)]
        assert all(len(r.result(WAIT).ids) == 3 for r in (running, waiting[1], last, *patient))


def test_cancelled_requests_leave_the_others_alone(model, rng):
    requests = [random_request(rng, stop_ids=()) for _ in range(60)]
    want = alone(model, requests)
    with Engine(model, max_batch=4, max_queue=60, prompt_tokens=8) as engine:
        with Gate(engine):  # one leaves the queue, whatever else this machine does meanwhile
            open_requests = [engine.submit(*request) for request in requests]
            assert open_requests[59].cancel()
        cancelled = {59}
        for index in rng.permutation(59)[:30]:
            time.sleep(float(rng.uniform(0, 0.002)))
            if open_requests[index].cancel():
                cancelled.add(index)
        for index, request in enumerate(open_requests):
            if index not in cancelled:
                assert request.result(WAIT) == want[index]
                continue
            with pytest.raises(RequestCancelled):
                request.result(WAIT)
            with pytest.raises(RequestCancelled):
                list(request)
            assert request.done
            assert not request.cancel()
        stats = engine.stats()
        assert (stats.cancelled, stats.finished) == (len(cancelled), 60 - len(cancelled))
        wait_until(lambda: engine.stats().running == 0)


def test_closing_ends_what_is_open(model):
    engine = Engine(model, max_batch=1)
    with Gate(engine):
        requests = [engine.submit([1]) for _ in range(3)]
        waiter = threading.Thread(target=engine.close)
        waiter.start()
        wait_until(lambda: all(request.done for request in requests))
    waiter.join(WAIT)
    assert not waiter.is_alive()
    for request in requests:
        with pytest.raises(EngineClosed, match="closed"):
            request.result()
    with pytest.raises(EngineClosed):
        engine.submit([1])
    engine.close()


def test_closing_can_wait_for_what_is_open(model):
    engine = Engine(model, max_batch=1)
    requests = [engine.submit([1], GenerationConfig(max_new_tokens=9)) for _ in range(3)]
    engine.close(drain=True)
    assert all(request.done for request in requests)
    assert {len(request.result().ids) for request in requests} == {9}


def test_an_error_leaves_the_block_at_once(model):
    requests = []

    def fail():
        with Engine(model, max_batch=1) as engine:
            requests.extend(engine.submit([1], LONG) for _ in range(99))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(EngineClosed):
        requests[-1].result()


def test_an_error_in_the_loop_reaches_everybody(model, monkeypatch):
    engine = Engine(model, max_batch=1)
    with Gate(engine):
        requests = [engine.submit([1]) for _ in range(3)]

        class Broken:
            def __getattr__(self, name):
                raise ZeroDivisionError("broken")

        wait_until(lambda: engine.stats().running == 1)
        monkeypatch.setattr(engine._loop, "_model", Broken())
    for request in requests:
        with pytest.raises(EngineClosed, match="ZeroDivisionError: broken") as raised:
            request.result(WAIT)
        assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(EngineClosed, match="broken"):
        engine.submit([1])
    engine.close()
    assert engine.stats().failed == 3


def test_weights_that_are_not_finite_fail_each_request():
    model = make()
    write(next(iter(model.parameters().values())), np.nan)
    with Engine(model) as engine:
        for _ in range(2):
            with pytest.raises(ConfigError, match="NaN"):
                engine.submit([1]).result(WAIT)


# ---------------------------------------------------------------------------- threads, processes


def test_threads_submit_and_use_the_model_meanwhile(model, rng):
    requests = [random_request(rng) for _ in range(48)]
    want = alone(model, requests)
    got = [None] * 48

    def work(first):
        for index in range(first, 48, 6):
            prompt, config = requests[index]
            if first == 0:
                got[index] = model.generate([prompt], config)[0]
            else:
                got[index] = engine.submit(prompt, config, timeout=None).result(WAIT)

    with Engine(model, max_batch=4, max_queue=2) as engine:
        threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert got == want


def test_several_hundred_requests_of_all_kinds(model, rng):
    """None is lost, whatever happens to its neighbours."""
    kinds = [random_request(rng) for _ in range(25)]
    want = alone(model, kinds)
    with Engine(model, max_batch=5, max_queue=40, prompt_tokens=16) as engine:
        good, cancelled, bad = [], 0, 0
        for number in range(400):
            if number % 7 == 3:
                with pytest.raises(DataError):
                    engine.submit([])
                bad += 1
                continue
            kind = int(rng.integers(25))
            request = engine.submit(*kinds[kind], timeout=None)
            if number % 5 == 2 and request.cancel():
                cancelled += 1
            else:
                good.append((kind, request))
        for kind, request in good:
            assert request.result(WAIT) == want[kind]
        stats = engine.stats()
        assert (stats.finished, stats.cancelled) == (len(good), cancelled)
        assert len(good) + cancelled + bad == 400
        assert stats.tokens >= sum(len(want[kind].ids) for kind, _ in good)


def test_an_engine_nobody_holds_ends_its_thread(model):
    engine = Engine(model)
    loop = engine._loop
    request = engine.submit([1], GenerationConfig(max_new_tokens=4, stop_ids=()))
    gone = weakref.ref(engine)
    del engine
    assert len(request.result(WAIT).ids) == 4  # a request keeps its engine
    del request
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
    loop._thread.join(WAIT)
    assert not loop._thread.is_alive()


def in_child(engine, request, model, want, queue):
    try:
        engine.submit([1])
    except EngineClosed as error:
        queue.put(str(error))
    try:
        request.result()
    except EngineClosed as error:
        queue.put(str(error))
    queue.put(model.generate([[1, 2]])[0].ids == want)


@pytest.mark.cpu("CUDA does not outlive a fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_the_model_but_no_engine(model):
    want = model.generate([[1, 2]])[0].ids
    context = multiprocessing.get_context("fork")
    with Engine(model) as engine:
        with Engine(model, max_batch=1) as busy:
            request = busy.submit([1], LONG)
            for _ in range(5):
                queue = context.Queue()
                arguments = (engine, request, model, want, queue)
                process = context.Process(target=in_child, args=arguments)
                process.start()
                answers = [queue.get(timeout=WAIT) for _ in range(3)]
                process.join(WAIT)
                assert process.exitcode == 0
                assert ["fork" in str(answer) for answer in answers[:2]] == [True, True]
                assert answers[2] is True
            assert not request.done
            request.cancel()
        assert engine.submit([1, 2]).result(WAIT).ids == want


SETUP = """
from llmcore import Engine, GenerationConfig, ModelConfig, Transformer
model = Transformer(ModelConfig.preset("gpt-nano"))
engine = Engine(model)
config = GenerationConfig(max_new_tokens=10**6, overflow="slide", stop_ids=())
request = engine.submit([1], config)
next(iter(request))
"""


def program(code):
    """Start it in an interpreter of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_interpreter_ends_while_requests_run():
    process = program(SETUP + "print('end')")
    assert process.communicate(timeout=WAIT) == ("end\n", "")
    assert process.returncode == 0


WAITING = """
try:
    print("waiting", flush=True)
    request.result()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_interrupts_reach_who_waits():
    process = program(SETUP + WAITING)
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=WAIT) == ("interrupted\n", "")
    assert process.returncode == 0
