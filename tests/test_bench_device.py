"""`llmcore bench --device cuda`: the same workloads on a GPU, emulated or not, and its memory."""

from __future__ import annotations

import json

import pytest

import llmcore
from command import run
from llmcore import ConfigError
from llmcore.bench.engines import contestants
from llmcore.bench.machine import Ceilings, measure_gpu
from llmcore.bench.operations import Operations
from llmcore.bench.report import hold_contest
from llmcore.bench.workloads import Generation, Training

needs_cuda = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
HERE = Ceilings(1, 1e9, 1e9, 1e9, 1e9, 1e9)
THERE = Ceilings(1, 1e9, 1e9, 1e9, 1e9, 1e9, device="cuda")


@needs_cuda
@pytest.mark.parametrize(
    "workload",
    [
        Training("gpt-nano", 2, 8),
        Generation("gpt-nano", 8, 6, [2], prefill=16),
        Generation("gpt-nano", 8, 6, [2], prefill=16, weights="int8"),
    ],
)
def test_a_gpu_starts_from_what_the_cpu_does(workload):
    """The same weights and data: the first loss, or the first ids; and it is the GPU's memory."""
    found = {}
    for ceilings in (HERE, THERE):
        contest = hold_contest(workload, [], ceilings=ceilings, rounds=1, seconds=0.0)
        assert not contest.absences()
        [outcome] = contest.outcomes
        found[ceilings.device] = outcome
    ours, gpus = found["cpu"].witness, found["cuda"].witness
    assert gpus == (pytest.approx(ours, rel=1e-5) if isinstance(ours, float) else ours)
    peaks = [turns.peak_bytes for turns in found["cuda"].turns.values()]
    assert 0 < max(peaks) < min(turns.peak_bytes for turns in found["cpu"].turns.values())


@needs_cuda
def test_the_command_takes_a_device(capsys, tmp_path):
    file = tmp_path / "bench.json"
    words = ["--model", "gpt-nano", "--batch", 2, "--length", 8, "--dtype", "bfloat16"]
    words += ["--rounds", 1, "--seconds", 0, "--device", "cuda", "--json", file]
    status, out, err = run(capsys, "bench", "train", *words)
    assert (status, err) == (0, "")
    assert "bfloat16, cuda" in out
    report = json.loads(file.read_text())
    assert report["settings"]["device"] == "cuda"
    assert report["contests"][0]["ceilings"]["device"] == "cuda"


@needs_cuda
def test_ceilings_of_a_gpu_are_those_of_products_and_copies():
    found = measure_gpu("cuda")
    assert found.peak("int4") == found.peak("bfloat16") > 0
    assert found.peak("float32") > 0
    assert found.memory_bytes_per_second > 0


def test_who_knows_no_gpu_does_not_take_part():
    assert len(contestants(Training("gpt-nano", 2, 8), ["torch-compile"], device="cuda")) == 2
    with pytest.raises(ConfigError, match=r"torch, torch-compile, transformers on a GPU, got 'ct"):
        contestants(Generation("gpt-nano", 8, 6, prefill=8), ["ctranslate2"], device="cuda")
    with pytest.raises(ConfigError, match="operations"):
        contestants(Operations(["adamw"]), [], device="cuda")


@pytest.mark.skipif(llmcore.cuda_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(capsys):
    status, _, err = run(capsys, "bench", "train", "--device", "cuda")
    assert status == 1
    assert "device 'cuda' cannot be used" in err
