"""The thread pool: forks, concurrent callers, resizing, and what the environment says."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import llmcore
from llmcore import ops

TIMEOUT = 60  # seconds; far above what any of these takes, so that a deadlock fails


def work(rng, size=400_000):
    """A call made of many tasks whose result shows every bit, as a function without arguments."""
    grad = rng.standard_normal(size).astype(np.float32)
    start = rng.standard_normal(size).astype(np.float32)
    x = rng.standard_normal((300, 256)).astype(np.float32)
    weight = rng.standard_normal(256).astype(np.float32)

    def run():
        param, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
        ops.adamw_step(param, grad, m, v, lr=0.1, step=1)
        dx, dweight, _ = ops.layer_norm_backward(x, x[::-1], weight)
        return param.tobytes() + dx.numpy().tobytes() + dweight.numpy().tobytes()

    return run


def exit_status_of_child(function):
    """Run `function` in a forked child; its exit status, or a failure where it hangs."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function() else 3)
        except BaseException:
            os._exit(4)
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the forked child hangs")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
pytestmark = [
    pytest.mark.cpu("its threads"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@needs_fork
def test_a_forked_child_computes_the_same(rng, threads):
    threads(4)
    run = work(rng)
    expected = run()
    assert exit_status_of_child(lambda: run() == expected and llmcore.get_num_threads() == 4) == 0
    assert run() == expected


@needs_fork
def test_a_fork_while_another_thread_computes(rng, threads):
    threads(3)
    run = work(rng)
    expected = run()
    stop = threading.Event()
    wrong = []

    def keep_computing():
        while not stop.is_set():
            if run() != expected:
                wrong.append("bits differ")

    thread = threading.Thread(target=keep_computing)
    thread.start()
    try:
        for _ in range(5):
            assert exit_status_of_child(lambda: run() == expected) == 0
    finally:
        stop.set()
        thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert not wrong


@needs_fork
def test_a_fork_of_a_fork(rng, threads):
    threads(2)
    run = work(rng)
    expected = run()
    assert exit_status_of_child(
        lambda: run() == expected and exit_status_of_child(lambda: run() == expected) == 0
    ) == 0  # fmt: skip


def test_python_threads_at_once_get_the_same_bits(rng, threads):
    threads(2)
    run = work(rng)
    expected = run()
    results = []

    def several():
        for _ in range(5):
            results.append(run() == expected)

    callers = [threading.Thread(target=several) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(TIMEOUT)
        assert not caller.is_alive()
    assert len(results) == 20
    assert all(results)


def test_resizing_while_others_compute(rng, threads):
    run = work(rng)
    expected = run()
    stop = threading.Event()
    wrong = []

    def keep_computing():
        while not stop.is_set():
            if run() != expected:
                wrong.append("bits differ")

    caller = threading.Thread(target=keep_computing)
    caller.start()
    try:
        for count in [1, 2, 3, 8, 1, 5] * 3:
            threads(count)
            assert llmcore.get_num_threads() == count
            assert run() == expected
    finally:
        stop.set()
        caller.join(TIMEOUT)
    assert not caller.is_alive()
    assert not wrong


def test_many_small_loops(rng, threads):
    """Loops shorter than the workers' waking time: joining late must do no harm."""
    threads(8)
    x = rng.standard_normal((6, 16384)).astype(np.float32)  # a task each
    expected = ops.layer_norm(x).numpy().tobytes()
    for _ in range(2000):
        assert ops.layer_norm(x).numpy().tobytes() == expected


def test_workers_that_slept_wake_up(rng, threads):
    threads(4)
    run = work(rng)
    expected = run()
    for _ in range(5):
        time.sleep(0.02)  # long enough to park
        assert run() == expected


@pytest.mark.parametrize("count", [0, -1, 4097, 10**6])
def test_bad_counts(count):
    before = llmcore.get_num_threads()
    with pytest.raises(ValueError, match=rf"from 1 to 4096, got {count}"):
        llmcore.set_num_threads(count)
    assert llmcore.get_num_threads() == before


def python(code, **variables):
    """Run Python with these environment variables: (exit status, stdout, stderr)."""
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | variables, timeout=TIMEOUT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return result.returncode, result.stdout.strip(), result.stderr.strip()


def test_environment_sets_the_number_of_threads():
    code = "import llmcore; print(llmcore.get_num_threads())"
    assert python(code, LLMCORE_NUM_THREADS="3")[:2] == (0, "3")


def test_argument_beats_environment():
    code = "import llmcore; llmcore.set_num_threads(2); print(llmcore.get_num_threads())"
    assert python(code, LLMCORE_NUM_THREADS="3")[:2] == (0, "2")


@pytest.mark.parametrize("value", ["0", "-2", "four", "2.5", "2 ", "99999", "9" * 30])
@pytest.mark.parametrize(
    "code",
    ["llmcore.get_num_threads()", "llmcore.ops.layer_norm(numpy.ones((4096, 64), numpy.float32))"],
)
def test_bad_thread_count_in_the_environment(value, code):
    status, _, error = python(f"import llmcore, numpy; {code}", LLMCORE_NUM_THREADS=value)
    assert status == 1
    last = error.splitlines()[-1]
    assert "ConfigError" in last
    assert "LLMCORE_NUM_THREADS" in last
    assert f"'{value}'" in last


def test_bad_instruction_set_in_the_environment():
    status, _, error = python(
        "import llmcore, numpy; llmcore.ops.layer_norm(numpy.ones((4096, 64), numpy.float32))",
        LLMCORE_CPU_ISA="avx1024",
    )
    assert status == 1
    last = error.splitlines()[-1]
    assert "LLMCORE_CPU_ISA is 'avx1024'" in last
    assert all(name in last for name in llmcore.device_info()["isa_available"])


def test_instruction_set_can_be_chosen():
    code = "import llmcore; print(llmcore.device_info()['isa_chosen'])"
    for name in llmcore.device_info()["isa_available"]:
        assert python(code, LLMCORE_CPU_ISA=name)[:2] == (0, name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits are set as on POSIX")
def test_threads_the_system_refuses():
    """A process that may not start more threads is told so, and can go on with fewer."""
    code = """
import threading, numpy, llmcore, resource
x = numpy.ones((4096, 64), numpy.float32)
expected = llmcore.ops.layer_norm(x).numpy().tobytes()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28), -1))
llmcore.set_num_threads(4000)
try:
    llmcore.ops.layer_norm(x)
    print("started")
except llmcore.LlmcoreError as error:
    print(error)
llmcore.set_num_threads(1)
assert llmcore.ops.layer_norm(x).numpy().tobytes() == expected
"""
    status, out, error = python(code)
    assert status == 0, error
    assert "4000 threads" in out
    assert "set_num_threads" in out
