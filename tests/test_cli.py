"""The command line as a new user meets it: help, mistakes, and whole runs."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time

import pytest

from command import SMALL, TEXT, child, fails, run
from llmcore.cli import train
from llmcore.cli.options import option_name
from llmcore.training import plan
from llmcore.training.train_config import DataConfig, TrainConfig

COMMANDS = ("train", "eval", "generate", "translate", "fill-mask", "classify", "embed", "score",
            "attend", "tokenize", "convert", "plan", "bench", "doctor")  # fmt: skip


# ------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(capsys, command):
    status, out, _ = run(capsys, command, "--help")
    assert status == 0
    assert "Example" in out
    assert f"llmcore {command}" in out


def test_every_setting_is_an_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = run(capsys, "train", "--help")
    for cls in (TrainConfig, DataConfig):
        for item in dataclasses.fields(cls):
            assert "--" + option_name(item).replace("_", "-") in out


def test_root_help_names_the_commands(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    assert all(command in out for command in COMMANDS)


# --------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("trian", "train"),
        ("train --lrr 3", "--lr"),
        ("train --steps many", "--steps"),
        ("train --steps -3", "steps must be at least 1, got -3"),
        ("train --schedule cosin", "did you mean 'cosine'"),
        ("train --resume --overwrite", "exclude each other"),
        ("train --model gpt-nanoo", "did you mean 'gpt-nano'"),
        ("train --set model.num_head=3", "did you mean 'num_heads'"),
        ("train --set train.step=3", "did you mean 'steps'"),
        ("train --set nonsense", "SECTION.NAME=VALUE"),
        ("train --betas 0.9", "--betas"),
        ("train --device abacus", "cpu, cuda or cuda:<index>"),
        ("eval", "model"),
        ("generate m --top-p 2", "--top-p"),
        ("tokenize a.txt", "--out"),
    ],
)
def test_wrong_command_lines_exit_2(capsys, tmp_path, monkeypatch, words, hint):
    monkeypatch.chdir(tmp_path)
    line = fails(capsys, 2, *words.split())
    assert hint in line
    assert "--help)" in line
    assert list(tmp_path.iterdir()) == []


def test_wrong_config_files_exit_1(capsys, tmp_path):
    assert "no configuration file" in fails(capsys, 1, "train", "--config", tmp_path / "no.toml")
    file = tmp_path / "run.toml"
    file.write_text("[train]\nsteps = 5\nlerning_rate = 3\nseed = 1.5\n[modell]\n")
    line = fails(capsys, 1, "train", "--config", file)
    assert "unknown setting 'lerning_rate'" in line
    assert "seed must be a whole number" in line
    assert "did you mean 'model'" in line
    file.write_text("steps = ")
    assert "not valid TOML" in fails(capsys, 1, "train", "--config", file)


def test_debug_shows_the_traceback_wherever_it_stands(capsys, tmp_path):
    for words in (["--debug", "train"], ["train", "--debug"]):
        status, _, err = run(capsys, *words, "--config", tmp_path / "no.toml")
        assert status == 1
        assert "Traceback" in err
        assert err.strip().splitlines()[-1].startswith("llmcore: ")


def test_unforeseen_errors_are_one_line_too(capsys, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(train, "run_config", broken)
    status, _, err = run(capsys, "train")
    assert status == 1
    assert err == "llmcore: unexpected ZeroDivisionError: a b (--debug shows where)\n"
    for error, words in (
        (OSError(28, "No space left on device", "x"), "No space left on device: x"),
        (MemoryError(), "out of memory"),
    ):
        monkeypatch.setattr(
            train, "run_config", lambda *_, error=error: (_ for _ in ()).throw(error)
        )
        assert words in fails(capsys, 1, "train")


# ------------------------------------------------------------------------- merging


def test_flags_win_over_file_and_file_over_the_stored_run(tmp_path):
    stored = {
        "model": {"name": "gpt-nano", "num_decoder_layers": 2},
        "data": {"path": "stored.txt"},
        "train": {"steps": 70, "lr": 1.0, "batch_size": 5, "overwrite": True},
    }
    (tmp_path / "run.json").write_text(json.dumps(stored))
    file = tmp_path / "a.toml"
    file.write_text('[train]\nlr = 2.0\nbatch_size = 6\n[model]\nname = "gpt-nano"\n')
    options = {"batch_size": 7, "resume": True, "out_dir": str(tmp_path), "path": None}
    merged = train.run_config(None, file, ["model.num_heads=2"], options)
    assert (merged.train.steps, merged.train.lr, merged.train.batch_size) == (70, 2.0, 7)
    assert merged.train.resume
    assert not merged.train.overwrite
    assert merged.data.path == "stored.txt"
    assert merged.model == {"name": "gpt-nano", "num_decoder_layers": 2, "num_heads": 2}
    fresh = train.run_config(None, file, None, {**options, "resume": None})
    assert fresh.train.steps == 2000
    assert fresh.data.path is None


def test_options_given_several_times_are_lists(capsys, tmp_path, monkeypatch):
    from llmcore.training import assemble

    seen = []
    monkeypatch.setattr(assemble, "build_trainer", lambda run, **_: seen.append(run) or 1 / 0)
    words = ["train", "--out-dir", tmp_path, "--freeze", "embed.*", "--freeze", "*.norm.*",
             "--lora-rank", 4, "--lora-targets", "q", "--lora-targets", "up"]  # fmt: skip
    run(capsys, *words)
    run(capsys, "train", "--out-dir", tmp_path)
    assert seen[0].train.freeze == ("embed.*", "*.norm.*")
    assert (seen[0].train.lora_rank, seen[0].train.lora_targets) == (4, ("q", "up"))
    assert (seen[1].train.freeze, seen[1].train.lora_targets) == ((), ("q", "v"))


# ----------------------------------------------------------------------- tokenizing


def test_tokenize_writes_shards_once(capsys, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    words = ["tokenize", tmp_path / "a.txt", "--out", tmp_path / "shards", "--tokenizer", "char",
             "--validation-fraction", "0.25", "--workers", "1"]  # fmt: skip
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert "tokens for val" in out
    from llmcore.data import TokenDataset

    train = TokenDataset.open(tmp_path / "shards")
    assert train.tokenizer.decode(train.read(0, 40)) == TEXT[:40]
    assert "already" in fails(capsys, 1, *words)
    assert run(capsys, *words, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"", "no"), (b"abc\xff\xfe", "invalid UTF-8")],
)
def test_tokenize_names_what_is_wrong_with_a_file(capsys, tmp_path, content, words):
    file = tmp_path / "a.txt"
    if content is not None:
        file.write_bytes(content)
    line = fails(capsys, 1, "tokenize", file, "--out", tmp_path / "o", "--tokenizer", "char",
                 "--workers", "1")  # fmt: skip
    assert words in line
    hint = fails(capsys, 1, "tokenize", tmp_path, "--out", tmp_path / "o", "--tokenizer", "char")
    assert "is a directory" in hint


# ---------------------------------------------------------------------- whole runs


def test_train_eval_generate(capsys, tmp_path, text):
    out = tmp_path / "run"
    status, printed, err = run(capsys, "train", *SMALL, "--data", text, "--out-dir", out)
    assert status == 0, err
    assert "best validation loss" in printed
    assert "A sample:" in printed
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [record["val_loss"] for record in metrics if "val_loss" in record][-1]

    words = ["eval", out / "last", "--json", "--block-size", 16, "--batch-size", 2, "--batches", 2]
    status, printed, err = run(capsys, *words)
    assert status == 0, err
    assert json.loads(printed)["loss"] == last

    status, printed, err = run(capsys, "generate", out, "--prompt", "To be", "--max-new-tokens", 9)
    assert status == 0, err
    assert printed.startswith("To be")
    again = run(capsys, "generate", out, "--prompt", "To be", "--max-new-tokens", 9)[1]
    assert again == printed

    line = fails(capsys, 1, "train", *SMALL, "--data", text, "--out-dir", out)
    assert "--resume" in line
    line = fails(capsys, 1, "train", "--resume", "--out-dir", out, "--tokenizer", "bpe")
    assert "tokenizer from None to bpe" in line
    text.unlink()  # the resumed run has what it needs
    more = run(capsys, "train", "--resume", "--out-dir", out, "--steps", 16)
    assert more[0] == 0, more
    assert "steps from 12 to 16" in more[1]


def test_train_on_shards_and_from_a_checkpoint(capsys, tmp_path, text):
    shards, first = tmp_path / "shards", tmp_path / "first"
    run(capsys, "tokenize", text, "--out", shards, "--tokenizer", "bpe", "--vocab-size", 270,
        "--validation-fraction", 0.2, "--workers", 1)  # fmt: skip
    began = run(capsys, "train", *SMALL, "--lr", 1e-2, "--data", shards, "--out-dir", first)
    assert began[0] == 0, began
    tuned = run(capsys, "train", *SMALL[:12], "--model", first, "--data", text,
                "--out-dir", tmp_path / "second")  # fmt: skip
    assert tuned[0] == 0, tuned
    starts = [float(r[1].split("step 0 validation loss")[1].split()[0]) for r in (began, tuned)]
    assert starts[1] < starts[0]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--data", "missing.txt"], "there is no file missing.txt"),
        (["--data", "."], "no tokenized data set"),
        (["--block-size", "5000", "--data", "text.txt"], "give more text or a smaller block"),
        (["--out-dir", "text.txt"], "name a directory"),
        (["--device", "cuda:99"], "cuda"),
        (["--model", "bert-base", "--objective", "causal"], "trains a decoder"),
    ],
)
def test_what_a_run_cannot_use_exits_1(capsys, tmp_path, monkeypatch, text, words, hint):
    monkeypatch.chdir(tmp_path)
    assert hint in fails(capsys, 1, "train", "--steps", 1, *words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_tells_how_to_go_on(capsys, tmp_path, text, number):
    out = tmp_path / "run"
    process = child(
        "train", *SMALL, "--steps", 100000, "--warmup-steps", 1, "--data", text, "--out-dir", out
    )
    deadline = time.monotonic() + 60
    while not (out / "last" / "checkpoint.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"llmcore train --resume --out-dir {out}" in printed
    step = int(printed.split("interrupted at step ")[1].split(",")[0])
    status, printed, err = run(capsys, "train", "--resume", "--out-dir", out, "--steps", step + 3)
    assert status == 0, err
    assert f"at step {step} of {step + 3}" in printed


def test_a_run_tells_memory_planned_and_used(tmp_path, text):
    options = ("--steps", 2, "--eval-interval", 2, "--eval-batches", 2, "--sample-tokens", 0)
    process = child("train", "--data", text, *options, "--out-dir", tmp_path / "run")
    printed, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    found = re.search(r"memory +(\d+\.\d) MiB planned, (\d+\.\d) MiB used", printed)
    planned, used = map(float, found.groups())
    assert planned > 30
    assert planned == pytest.approx(used, rel=0.03)
    total = float(re.search(r"memory +(\d+\.\d) MiB: weights", printed).group(1))
    driver = re.search(r"CUDA about (\d+\.\d) MiB", printed)
    besides = float(driver.group(1)) - 32 if driver else 0.0  # the workspace is ours
    assert total == pytest.approx(planned + besides, abs=0.15)


def test_a_plan_that_does_not_fit_says_what_would(capsys, monkeypatch):
    monkeypatch.setattr(plan, "available_memory", lambda _: 3 * 2**30)
    status, out, err = run(
        capsys, "plan", "--model", "gpt2", "--batch-size", 16, "--block-size", 512
    )
    assert status == 0, err
    assert "warning    only 3.0 GiB of memory are free: use batch_size" in out


def test_plan_and_doctor(capsys):
    status, out, err = run(capsys, "plan", "--model", "gpt2", "--batch-size", 4, "--json")
    assert status == 0, err
    assert json.loads(out)["parameters"] == 124439808
    assert "124,439,808" in run(capsys, "plan", "--model", "gpt2")[1]
    status, out, err = run(capsys, "doctor", "--json")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["machine"]["isa_chosen"] in facts["machine"]["isa_available"]
    status, out, _ = run(capsys, "doctor")
    assert status == 0
    assert facts["machine"]["cpu_model"] in out
    assert "cuda" in out


@pytest.mark.parametrize(("given", "kept"), [(None, "1"), ("3", "3")])
def test_threads_of_numpys_products_are_not_started(capsys, monkeypatch, given, kept):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # so that what the command sets is undone
    if given is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    else:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", given)
    run(capsys, "--version")
    assert os.environ["OPENBLAS_NUM_THREADS"] == kept


def test_version(capsys):
    import llmcore

    assert run(capsys, "--version")[:2] == (0, f"llmcore {llmcore.__version__}\n")
