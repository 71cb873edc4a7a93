"""What goes wrong on a new user's first day: each is one line on stderr, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from command import SMALL, child, fails, run


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "there is no text in text.txt"),
        (b"a", "too little text"),
        (bytes(range(256)), "invalid UTF-8 at byte 128"),
        ("to be".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        (b"to be or not", "give more text or a smaller block"),
    ],
)
def test_texts_that_cannot_be_trained_on(capsys, tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(content)
    assert words in fails(capsys, 1, "train", "--data", "text.txt")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--seed", 10**30], "seed must be at most 18446744073709551615"),
        (["--threads", 99999], "threads must be at most 4096"),
        (["--lr", "nan"], "lr must be a number, got nan"),
        (["--steps", 0, "--lr", -1], "steps must be at least 1, got 0; lr must be at least 0"),
        (["--out-dir", ""], "out_dir must be a name, got an empty string"),
        (["--data", ""], "got an empty string"),
        (
            ["--tokenizer", "bpee"],
            "wordpiece, unigram or a path, got bpee, did you mean",
        ),
        (["--lora-targets", "k", "--lora-targets", "foo"], "lora_targets must be some of q, k, v"),
        (["--set", "model.norm=rmss"], "norm: expected one of 'layer', 'rms', got 'rmss'"),
    ],
)
def test_values_out_of_range_exit_2(capsys, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    assert hint in fails(capsys, 2, "train", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_file_is_named_with_all_its_problems(capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[train]\nstep = 5\n[data]\npth = "x"\n[model]\nnum_head = 3\n')
    line = fails(capsys, 1, "train", "--config", file)
    assert line.startswith(f"llmcore: {file}: ")
    for name in ("'steps'", "'path'", "'num_heads'"):
        assert f"did you mean {name}" in line
    file.write_text("[train]\nsteps = 5\nlr =\n")
    assert "line 3" in fails(capsys, 1, "train", "--config", file)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--set", "model.hidden_size=8192", "--set", "model.num_decoder_layers=999"],
         "use a smaller model"),
        (["--batch-size", 10**8], "use batch_size "),
    ],
)  # fmt: skip
def test_what_cannot_fit_in_memory_is_refused_at_once(capsys, tmp_path, words, hint):
    line = fails(capsys, 1, "train", "--out-dir", tmp_path / "out", *words)
    assert "training needs " in line
    assert hint in line
    assert not (tmp_path / "out").exists()


def test_devices_formats_and_settings_of_the_environment(capsys, tmp_path):
    line = fails(capsys, 2, "train", "--out-dir", tmp_path / "out", "--dtype", "float16")
    assert 'dtype must be one of "float32", "bfloat16", got "float16"' in line
    for name, value, words in (
        ("LLMCORE_NUM_THREADS", "abc", "must be a whole number from 1 to 4096, got 'abc'"),
        ("LLMCORE_CPU_ISA", "sse9", "this processor and build have: generic"),
        ("LLMCORE_DEVICE", "tpu", "'cpu', 'cuda'"),
    ):
        process = child("train", "--out-dir", tmp_path / "out", env={**os.environ, name: value})
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1
        assert words in err
        assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_resuming_what_is_not_there_or_something_else(capsys, finished_run, tmp_path):
    out = finished_run
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    line = fails(capsys, 1, "train", "--resume", "--out-dir", tmp_path / "never")
    assert "there is no run in" in line
    for words, hint in (
        (["--batch-size", 3], "other batch_size from 2 to 3"),
        (["--set", "model.num_heads=2"], "another model (num_heads from 4 to 2)"),
        (["--model", "gpt2"], "another model (name from gpt-nano to gpt2)"),
        (["--data", __file__], "other data"),
    ):
        assert hint in fails(capsys, 1, "train", "--resume", "--out-dir", out, *words)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_resumed_run_needs_neither_its_data_nor_the_model_it_began_with(capsys, tmp_path, text):
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(capsys, "train", *SMALL, "--data", text, "--out-dir", first)[0] == 0
    words = ["--model", first, "--data", text, "--out-dir", second, *SMALL[:12]]
    status, _, err = run(capsys, "train", *words)
    assert status == 0, err
    text.unlink()
    first.rename(tmp_path / "elsewhere")
    status, _, err = run(capsys, "train", "--resume", "--out-dir", second, "--steps", 14)
    assert status == 0, err


def test_results_go_where_the_data_are_named_for(capsys, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "train", *SMALL, "--data", text.name)[0] == 0
    assert (tmp_path / "out" / "text" / "last").is_dir()


def test_prompts(capsys, finished_run):
    out = finished_run
    short = ["--max-new-tokens", 3]
    status, unprompted, _ = run(capsys, "generate", out, *short)
    assert status == 0
    assert run(capsys, "generate", out, *short, "--prompt", "")[1] == unprompted
    # Longer than the context: its end is read.
    status, printed, err = run(capsys, "generate", out, *short, "--prompt", "to be " * 90)
    assert status == 0, err
    assert printed.startswith("to be " * 90)
    status, printed, err = run(capsys, "generate", out, "--prompt", "漢")
    assert (status, printed) == (1, "")
    assert "U+6F22" in err
    for words in (["--top-p", 0], ["--stop", ""], ["--repetition-penalty", 0]):
        fails(capsys, 2, "generate", out, *words)
    assert run(capsys, "generate", out, *short, "--prompt", "to", "--temperature", 0)[0] == 0


def test_ids_of_another_tokenizer_are_refused(capsys, finished_run, tmp_path):
    words = ["--tokenizer", "bpe", "--vocab-size", 300, "--workers", 1]
    shards = tmp_path / "shards"
    text = finished_run.parent / "text.txt"
    assert run(capsys, "tokenize", text, "--out", shards, *words)[0] == 0
    line = fails(capsys, 1, "eval", finished_run, "--data", shards)
    assert "tokenized with another tokenizer" in line
    line = fails(capsys, 1, "train", "--model", finished_run, "--data", shards, "--out-dir",
                 tmp_path / "out")  # fmt: skip
    assert "tokenized with another tokenizer" in line


def test_tokenize_needs_no_more_than_a_file_and_a_place(capsys, finished_run, tmp_path):
    words = ["tokenize", finished_run.parent / "text.txt", "--out", tmp_path / "shards"]
    status, printed, err = run(capsys, *words)
    assert status == 0, err
    assert "vocabulary" in printed
    assert "--overwrite" in fails(capsys, 1, *words)


def test_plan_reads_the_file_of_a_run(capsys, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[model]\nname = "gpt2"\n[train]\nbatch_size = 1\n')
    status, printed, err = run(capsys, "plan", "--config", file, "--json")
    assert status == 0, err
    facts = json.loads(printed)
    assert (facts["parameters"], facts["tokens_per_step"]) == (124439808, 64)


def test_no_command_shows_the_help(capsys):
    status, printed, err = run(capsys)
    assert (status, err) == (0, "")
    assert "tokenize" in printed


def test_a_closed_pipe_ends_quietly(finished_run):
    command = f"{sys.executable} -m llmcore.cli generate {finished_run} --max-new-tokens 2000"
    shell = f"set -o pipefail; {command} | head -c 5"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert len(done.stdout) == 5


def test_files_and_directories_without_permission(tmp_path, text):
    """Root may read and write everything, unless it gives that right up."""
    ordinary = []
    if os.getuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to become an ordinary user")
        ordinary = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    text.chmod(0)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    for words, hint in (
        (["train", "--data", text, "--out-dir", tmp_path / "out"], "cannot be read: Permission"),
        (["train", "--out-dir", closed / "out"], "cannot be written to: Permission denied"),
        (["train", "--out-dir", closed], "cannot be written to: Permission denied"),
    ):
        process = child(*words, before=ordinary)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 1, err
        assert hint in err
        assert len(err.strip().splitlines()) == 1, err
