"""A run that is killed at random moments, or stopped, and resumed, ends as if it had not been."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from llmcore.atomic import MANIFEST, PENDING

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind\n" * 80

# Dropout, accumulation, clipping, evaluation and a tokenizer: all that a resumed run must remember.
RUN = ["--steps", 60, "--batch-size", 3, "--block-size", 24, "--accumulation", 2, "--dropout", 0.2,
       "--eval-interval", 12, "--eval-batches", 2, "--save-interval", 4, "--log-interval", 3,
       "--sample-tokens", 0, "--set", "model.hidden_size=32", "--set", "model.num_heads=2",
       "--set", "model.num_decoder_layers=2"]  # fmt: skip


def start(out, *words, **environment):
    command = [sys.executable, "-m", "llmcore.cli", "train", "--out-dir", out, *words]
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(list(map(str, command)), env=environment, **pipes)


def finish(process):
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return printed


def outcome(out):
    """Everything that a run leaves and that does not tell the time."""
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        for name in ("time", "tokens_per_second", "peak_share"):
            record.pop(name, None)
    files = {file.name: file.read_bytes() for file in (out / "last").iterdir()}
    return metrics, files, (out / "best" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text(TEXT)
    return ["--data", file, "--tokenizer", "bpe", "--vocab-size", 280]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A run of an encoder–decoder on parallel text."""
    folder = tmp_path_factory.mktemp("pairs")
    for language, words in (("de", "Nummer {} ist hier"), ("en", "number {} is right here")):
        lines = "".join(words.format(i * i) + "\n" for i in range(300))
        (folder / f"train.{language}").write_text(lines)
    return ["--data", folder / "train.de", "--target", folder / "train.en", "--vocab-size", 300,
            "--model", "transformer-base", "--set", "model.num_encoder_layers=1",
            "--label-smoothing", 0.1]  # fmt: skip


def uninterrupted_run(out, words):
    """The outcome of a run on one thread, and the seconds it took."""
    began = time.monotonic()
    finish(start(out, *RUN, *words, LLMCORE_NUM_THREADS=1))
    return outcome(out), time.monotonic() - began


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data):
    return uninterrupted_run(tmp_path_factory.mktemp("whole"), data)


@pytest.mark.parametrize("seed", range(2))
def test_kill_anywhere_and_resume(tmp_path, data, uninterrupted, seed):
    kill_and_resume(tmp_path, data, uninterrupted, random.Random(seed))


def test_kill_a_run_that_masks_and_resume(tmp_path, data):
    words = [*data, "--objective", "causal=1,masked=1"]
    whole = uninterrupted_run(tmp_path / "whole", words)
    kill_and_resume(tmp_path / "killed", words, whole, random.Random(2))


def test_kill_a_run_on_examples_and_resume(tmp_path, pairs):
    whole = uninterrupted_run(tmp_path / "whole", pairs)
    kill_and_resume(tmp_path / "killed", pairs, whole, random.Random(3))


def kill_and_resume(tmp_path, data, uninterrupted, moments):
    expected, seconds = uninterrupted
    for _ in range(2):
        # On several threads, so that the number of threads changes on the way.
        process = start(tmp_path, *RUN, *data, "--resume", LLMCORE_NUM_THREADS=3)
        time.sleep(moments.uniform(0.3, 0.95) * seconds)
        process.kill()
        process.communicate()
    finish(start(tmp_path, *RUN, *data, "--resume", LLMCORE_NUM_THREADS=2))
    assert_same(outcome(tmp_path), expected)


def assert_same(got, expected):
    """Which file differs, and where, before all bytes are compared."""
    assert got[0] == expected[0]
    for name in ("model.safetensors", "training_state.safetensors"):
        one, other = (safetensors.numpy.load(files[1][name]) for files in (got, expected))
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], f"{name}: {key}")
    assert got == expected


def test_killed_between_the_commit_of_a_save_and_its_renames(tmp_path, data, uninterrupted):
    """Who reads the files by name finds the new ones, though a run at its end saves no more."""
    finish(start(tmp_path, *RUN, *data))
    for folder in (tmp_path / "last", tmp_path / "best"):
        for name in ("model.safetensors", "config.json"):
            os.replace(folder / name, folder / f".{name}.saving")
        (folder / "model.safetensors").write_bytes(b"an older one")
        os.replace(folder / MANIFEST, folder / PENDING)
    finish(start(tmp_path, *RUN, *data, "--resume"))
    assert_same(outcome(tmp_path), uninterrupted[0])
    assert not list(tmp_path.glob("*/.*.saving"))


def test_interrupt_and_resume_with_the_stored_settings(tmp_path, data, uninterrupted):
    process = start(tmp_path, *RUN, *data)
    while not (tmp_path / "last" / "checkpoint.json").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0: it was done before the signal came
    finish(start(tmp_path, "--resume"))
    assert outcome(tmp_path) == uninterrupted[0]
