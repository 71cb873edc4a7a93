"""Products of a GPU that are timed when asked for, remembered, and the same in every later run."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest

import llmcore
from llmcore import ConfigError, ModelConfig, _core
from llmcore.training.train_config import TrainConfig
from llmcore.training.tune import tune

needs_cuda = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
TRAIN = ["--model", "gpt2", "--set", "model.num_decoder_layers=1", "--set", "model.hidden_size=32",
         "--set", "model.num_heads=2", "--set", "model.vocab_size=65", "--set", "model.bos_id=0",
         "--set", "model.eos_id=0", "--batch-size", "3", "--block-size", "24",
         "--dtype", "bfloat16"]  # fmt: skip
# A product, and which algorithm it had.
MULTIPLY = """
    import llmcore, numpy as np
    from llmcore import _core
    a = llmcore.tensor(np.ones((24, 40), np.float32), "bfloat16", "cuda")
    c = _core.zeros([24, 24], "bfloat16", "cuda")
    _core.matmul(a=a, b=a, c=c, transpose_b=True)
    assert (c.numpy() == 40).all()
    [(product, choice)] = _core.product_choices("cuda").items()
    print(product, choice, sep="\\t")
"""
TUNE = """
    from llmcore.training.tune import tuning
    with tuning() as tuned:
        _core.matmul(a=a, b=a, c=c, transpose_b=True)
    assert tuned.timed == 1
    with tuning() as tuned:
        _core.matmul(a=a, b=a, c=c, transpose_b=True)
    assert tuned.timed == 0
"""


def run(monkeypatch, directory, code):
    monkeypatch.setenv("LLMCORE_CACHE_DIR", str(directory))
    script = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert done.stderr == ""
    return done.stdout.strip().split("\t")


@needs_cuda
def test_what_was_timed_is_chosen_from_then_on(monkeypatch, tmp_path):
    directory = tmp_path / "new" / "cache"
    product, choice = run(monkeypatch, directory, MULTIPLY)
    assert choice == "0"  # the library's own
    assert not directory.exists()  # and nothing is timed by the way
    run(monkeypatch, directory, MULTIPLY + TUNE)
    [file] = directory.iterdir()
    subject, line, count = file.read_text().splitlines()
    gpu = llmcore.device_info()["cuda"]["devices"][0]["name"]
    assert subject.startswith(f"products of {gpu}, cuBLASLt ")
    assert subject.endswith(f", llmcore {llmcore.__version__}")
    assert (line.split("\t")[0], count) == (product, "1")
    best = line.split("\t")[1]
    assert run(monkeypatch, directory, MULTIPLY) == [product, best]
    for other in ("1", "2"):
        file.write_text(f"{subject}\n{product}\t{other}\n1\n")
        assert run(monkeypatch, directory, MULTIPLY) == [product, other]
        assert run(monkeypatch, "off", MULTIPLY) == [product, "0"]

    whole = f"{subject}\n{product}\t1\n1\n"
    for damaged in (
        "", subject, whole[:-2], whole + "more\n", whole.replace(subject, subject + "x"),
        whole.replace("\t1", "\t-1"), whole.replace("\t1", "\tone"), "\0\1\2" * 99,
        whole.replace("\n1\n", "\n2\n"), whole.replace("\t1", "\t99"),
    ):  # fmt: skip
        file.write_text(damaged)
        assert run(monkeypatch, directory, MULTIPLY) == [product, "0"], damaged
    run(monkeypatch, directory, MULTIPLY + TUNE)  # writes it anew
    assert len(file.read_text().splitlines()) == 3


@needs_cuda
def test_one_thread_tunes_while_another_captures(monkeypatch, tmp_path):
    code = """
        import threading, numpy as np, llmcore
        from llmcore import Batch, ModelConfig, TrainStep, Transformer, _core
        from llmcore.training.tune import tuning
        sizes = dict(vocab_size=61, bos_id=None, eos_id=None, hidden_size=32, num_heads=2)
        config = ModelConfig.preset("gpt2", **sizes, num_decoder_layers=2)

        def train():
            step = TrainStep(Transformer(config, device="cuda"), lr=1e-2)
            for rows in range(1, 9):
                ids = np.ones((rows, 8), np.int32)
                for _ in range(2):
                    step(Batch(dec_ids=ids, targets=ids.reshape(-1))).loss

        with tuning() as tuned:
            thread = threading.Thread(target=train)
            thread.start()
            size = 8
            while thread.is_alive():
                a, c = _core.zeros([24, size], device="cuda"), _core.zeros([24, 24], device="cuda")
                _core.matmul(a=a, b=a, c=c, transpose_b=True)
                size += 8
        print(tuned.timed > 20)
    """
    assert run(monkeypatch, tmp_path, code) == ["True"]


@needs_cuda
def test_a_run_is_tuned_by_a_command(monkeypatch, tmp_path):
    def command(directory):
        monkeypatch.setenv("LLMCORE_CACHE_DIR", str(directory))
        words = [sys.executable, "-m", "llmcore.cli", "tune", *TRAIN, "--json", "--device", "cuda"]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    first = json.loads(command(tmp_path).stdout)
    assert first["timed"] == len(first["choices"]) > 10
    second = json.loads(command(tmp_path).stdout)
    assert second == {**first, "timed": 0}
    assert "could not be remembered" in command("off").stderr
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "set LLMCORE_CACHE_DIR to" in command(blocked / "inside").stderr


def test_the_cpu_has_nothing_to_tune():
    with pytest.raises(ConfigError, match="have one algorithm"):
        tune(ModelConfig.preset("gpt-nano"), TrainConfig(), "cpu")


@pytest.mark.skipif(_core.cuda_build != "OFF", reason="this build knows GPUs")
def test_a_build_that_knows_no_gpu_says_so():
    with pytest.raises(llmcore.DeviceError, match="no CUDA back end"):
        tune(ModelConfig.preset("gpt-nano"), TrainConfig(), "cuda")
