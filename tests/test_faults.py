"""Damaged files and full disks: the cause is named, and the last good checkpoint stays."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from command import child, fails, run
from llmcore import DataError, Transformer, checkpoint
from llmcore.errors import CheckpointError
from llmcore.tensor import write


@pytest.fixture
def out(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "out")


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "an empty file": lambda _: b"",
    "a git-lfs pointer": lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
    "an HTML page": lambda _: b"<!DOCTYPE html><html></html>",
    "corrupt": flipped,
    "zero bytes": lambda content: bytes(len(content)),
}
FILES = ("model.safetensors", "config.json", "tokenizer.json", "training_state.safetensors",
         "training_state.json")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cause", DAMAGES)
def test_every_damage_to_every_file_is_named(capsys, out, name, cause):
    file = out / "last" / name
    file.write_bytes(DAMAGES[cause](file.read_bytes()))
    for words in (["generate", out / "last"], ["train", "--resume", "--out-dir", out]):
        line = fails(capsys, 1, *words)
        assert f"{file}: " in line
        assert cause in line


def test_a_missing_file_is_named(capsys, out):
    (out / "last" / "training_state.json").unlink()
    assert "training_state.json: missing" in fails(capsys, 1, "train", "--resume", "--out-dir", out)


def test_without_its_manifest_a_checkpoint_loads_unchecked_and_resumes(capsys, out):
    (out / "last" / "checkpoint.json").unlink()
    status, printed, err = run(capsys, "train", "--resume", "--out-dir", out, "--steps", 13)
    assert status == 0, err
    assert "at step 12 of 13" in printed


def rewrite(directory, **tensors):
    """Replace the weights by others, as someone with another library might."""
    (directory / "checkpoint.json").unlink(missing_ok=True)
    file = directory / "model.safetensors"
    save_file({**load_file(file), **tensors}, file)


def test_tensors_that_do_not_fit_are_listed(out):
    rewrite(out / "last", extra=np.zeros(3, np.float32))
    with pytest.raises(CheckpointError, match="1 unexpected: extra"):
        Transformer.from_pretrained(out / "last")
    name, first = next(iter(load_file(out / "best" / "model.safetensors").items()))
    rewrite(out / "best", **{name: np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"1 misshapen: .* got \[2, 2\]"):
        Transformer.from_pretrained(out / "best")
    rewrite(out / "best", **{name: np.zeros(first.shape, np.int32)})
    with pytest.raises(CheckpointError, match=r"1 misshapen: .*of dtype I32"):
        Transformer.from_pretrained(out / "best")


def test_a_model_without_tokenizer(capsys, out):
    for name in ("tokenizer.json", "tokenizer_config.json", "checkpoint.json"):
        (out / "last" / name).unlink()
    assert Transformer.from_pretrained(out / "last").tokenizer is None
    assert "has no tokenizer.json" in fails(capsys, 1, "generate", out / "last")


def test_loading_in_the_middle_of_an_interrupted_save(out, monkeypatch):
    """The renames of a save stop after the first; what loads is the new set, tokenizer and all."""
    model = Transformer.from_pretrained(out / "last")
    for tensor in model.parameters().values():
        write(tensor, tensor.numpy() + 1)
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.extend([target] if fresh in Path(target).parents else [])
        if len(calls) == 3:  # committed by the first, one file in place by the second
            raise OSError(errno.EIO, "pulled plug")
        replace(source, target)

    fresh = out / "fresh"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(CheckpointError):
            model.save_pretrained(fresh)
    again = Transformer.from_pretrained(fresh)
    assert again.tokenizer == model.tokenizer
    for name, tensor in again.parameters().items():
        assert (tensor.numpy() == model.parameters()[name].numpy()).all()


# ------------------------------------------------------------------------------ full disks


@pytest.mark.cpu("memory of an emulated GPU is a file, which the limit is for too")
def test_full_disk_keeps_the_last_checkpoint(capsys, out):
    """A limit on file size stands for the full disk: the weights can no longer be written."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    process = child("train", "--resume", "--steps", 20, "--out-dir", out, preexec_fn=limit)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "too large" in err
    status, printed, err = run(capsys, "train", "--resume", "--steps", 20, "--out-dir", out)
    assert status == 0, err
    assert "at step 12 of 20" in printed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk, leave=0):
    with (disk / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


@pytest.mark.parametrize("leave", [0, 8192, 30_000])
def test_a_disk_that_is_really_full(capsys, finished_run, small_disk, leave):
    """Wherever room ends, at settings, metrics or weights: with more of it the run goes on."""
    out = shutil.copytree(finished_run, small_disk / "out")
    fill(small_disk, leave)
    words = ["train", "--resume", "--out-dir", out, "--steps", 20]
    assert "No space left on device" in fails(capsys, 1, *words)
    assert checkpoint.load(out / "last").state.step == 12
    assert json.loads((out / "run.json").read_text())["train"]["batch_size"] == 2
    (small_disk / "fill").unlink()
    status, printed, err = run(capsys, *words)
    assert status == 0, err
    assert "at step 12 of 20" in printed


def test_a_full_disk_under_the_tokenizer(small_disk, tmp_path):
    from llmcore import Tokenizer
    from llmcore.data.tokenizing import tokenize_files

    file = tmp_path / "text.txt"
    file.write_text("to be or not to be\n" * 60_000)
    tokenizer = Tokenizer.train(["to be or not to be\n"], "char")
    with pytest.raises(DataError, match="No space left on device"):
        tokenize_files(file, tokenizer, small_disk / "shards")
    assert list(small_disk.iterdir()) == []
