"""`llmcore bench`: the machine's ceilings."""

from __future__ import annotations

import json
import time

import pytest

import llmcore
from command import fails, run
from llmcore import _core
from llmcore.bench import measure_ceilings
from llmcore.errors import ConfigError, ShapeError


def test_ceilings_are_plausible_and_leave_the_threads_as_they_were():
    before = llmcore.get_num_threads()
    found = measure_ceilings([1, 2, 1], seconds=0.02, size=1 << 26)
    assert [ceilings.threads for ceilings in found] == [1, 2]
    assert llmcore.get_num_threads() == before
    for ceilings in found:
        assert 1e9 < ceilings.flops < 1e14
        assert 1e8 < ceilings.memory_bytes_per_second < 1e13
        assert 1e8 < ceilings.cache_bytes_per_second < 1e14


def test_no_matrix_product_exceeds_the_peak(rng):
    a = llmcore.tensor(rng.standard_normal((512, 512), dtype="float32"))
    c = llmcore.zeros([512, 512])
    best = min(_timed(time.perf_counter, a, c) for _ in range(20))
    assert 2 * 512**3 / best < 1.05 * _core.measure_peak(0.2)


def _timed(clock, a, c):
    start = clock()
    _core.matmul(a=a, b=a, c=c)
    return clock() - start


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"threads": []}, "from 1 on"),
        ({"threads": [0]}, "from 1 on, got [0]"),
        ({"seconds": 0.0}, "positive"),
        ({"size": 1}, "positive"),
        ({"size": 1 << 60}, "smaller size"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises((ConfigError, llmcore.errors.OutOfMemory)) as error:
        measure_ceilings(**settings)
    assert words in str(error.value)


def test_reading_needs_an_element_a_thread():
    with pytest.raises(ShapeError, match="an element for each"):
        _core.measure_read(llmcore.zeros([0]), 0.01)


def test_command_prints_a_table_or_json(capsys):
    words = ("bench", "machine", "--threads", "1", "--seconds", "0.01")
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "GFLOP/s" in out
    _, out, _ = run(capsys, *words, "--json")
    assert json.loads(out)[0]["threads"] == 1


def test_command_blames_the_command_line(capsys):
    assert "whole numbers" in fails(capsys, 2, "bench", "machine", "--threads", "two")
