"""Checkpoints: bitwise round trips, and old or new but never a mixture after any fault."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from llmcore import Transformer, atomic, checkpoint, hf
from llmcore.checkpoint import TrainState
from llmcore.config import ModelConfig
from llmcore.errors import CheckpointError
from llmcore.parameters import parameter_shapes

CONFIG = ModelConfig(vocab_size=11, hidden_size=4, num_decoder_layers=1, num_heads=2, ffn_size=5)
BIGGER = CONFIG.replace(num_decoder_layers=2)


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Here `Disk` decides what was flushed; a real flush would only take time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class FakeTokenizer:
    """Saves the two files a tokenizer has."""

    def save(self, directory) -> None:
        (Path(directory) / "tokenizer.json").write_text('{"model": "ü"}')
        (Path(directory) / "tokenizer_config.json").write_text("{}")


def parts(config: ModelConfig, seed: int) -> dict:
    rng = np.random.default_rng(seed)
    count = config.num_parameters()
    return {
        "config": config,
        "parameters": {
            name: rng.standard_normal(shape, np.float32)
            for name, shape in parameter_shapes(config).items()
        },
        "state": TrainState(
            step=seed,
            moments={name: rng.standard_normal(count, np.float32) for name in ("m", "v")},
            optimizer={"dropout_seed": 2**63 + seed},
            rng={"state": 2**127 + seed, "key": [1, 2]},
            data={"epoch": np.int64(3), "offset": seed},
            accumulation_phase=2,
            best_metric=0.1 + seed,
            history={"skipped": 0, "loss": [1.0, float("inf")]},
        ),
    }


def assert_equal(loaded: checkpoint.Checkpoint, expected: dict) -> None:
    assert loaded.config == expected["config"]
    found = dict(loaded.parameters)
    assert found.keys() == expected["parameters"].keys()
    for name, array in expected["parameters"].items():
        assert np.ascontiguousarray(found[name]).tobytes() == array.tobytes()
    state, wanted = loaded.state, expected["state"]
    if wanted is None:
        assert state is None
        return
    assert state.moments.keys() == wanted.moments.keys()
    for name, array in wanted.moments.items():
        assert state.moments[name].tobytes() == array.tobytes()
    for name in ("step", "optimizer", "schedule", "rng", "data", "history", "best_metric"):
        assert getattr(state, name) == getattr(wanted, name)
    assert state.accumulation_phase == wanted.accumulation_phase


def which(directory: Path, candidates: list[dict]) -> int:
    """Return which of the candidates a directory holds, whole."""
    step = checkpoint.load(directory).state.step
    number = next(i for i, c in enumerate(candidates) if c["state"].step == step)
    assert_equal(checkpoint.load(directory), candidates[number])
    return number


def test_round_trip(tmp_path):
    first = parts(CONFIG, 1)
    checkpoint.save(tmp_path / "a" / "b", **first, tokenizer=FakeTokenizer())
    loaded = checkpoint.load(tmp_path / "a" / "b")
    assert_equal(loaded, first)
    assert loaded.files["tokenizer.json"].read_text() == '{"model": "ü"}'
    assert_equal(checkpoint.load(tmp_path / "a" / "b", verify=False), first)
    names = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("training_state.json", "training_state.safetensors", "checkpoint.json"),
    }


def test_saving_again_replaces_our_files_and_no_others(tmp_path):
    checkpoint.save(tmp_path, **parts(CONFIG, 1), tokenizer=FakeTokenizer())
    (tmp_path / "README.md").write_text("mine")
    second = {**parts(BIGGER, 2), "state": None}
    checkpoint.save(tmp_path, **second)
    assert_equal(checkpoint.load(tmp_path), second)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "checkpoint.json", "README.md"}


def test_a_plain_hugging_face_directory_loads(tmp_path):
    first = parts(CONFIG, 1)
    hf.save_state(first["config"], first["parameters"], tmp_path)
    (tmp_path / "checkpoint.json").unlink()
    assert_equal(checkpoint.load(tmp_path), {**first, "state": None})


def test_arrays_are_views_of_the_file(tmp_path):
    checkpoint.save(tmp_path, **parts(CONFIG, 1))
    loaded = checkpoint.load(tmp_path)
    for array in (*dict(loaded.parameters).values(), *loaded.state.moments.values()):
        assert not array.flags.owndata
        assert not array.flags.writeable


# --- faults -------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process is gone: nothing it would have done later happens."""


class Disk:
    """Counts what is done to the disk, and fails at the given operation.

    A `Crash` is final: every later operation raises it as well. Any other failure comes once,
    before the operation or, with `late`, right after it.

    For power cuts it keeps what is certain to be on the disk: the content each file had when it was
    flushed, the names each directory had when it was flushed, and the changes of names since, of
    which any subset may have reached the disk.
    """

    def __init__(self, patch, directory: Path, at: int, failure: BaseException, late=False):
        self.directory, self.at, self.failure, self.late = directory, at, failure, late
        self.count = 0
        self.content: dict[int, bytes] = {}  # inode -> flushed content
        self.names: dict[str, int] = {}  # flushed names -> inode
        self.changes: list[tuple[str | None, str | None, int]] = []  # (old name, new name, inode)
        self.replace, self.fsync, self.unlink = os.replace, os.fsync, Path.unlink
        for path in directory.iterdir():
            self.names[path.name] = inode = path.stat().st_ino
            self.content[inode] = path.read_bytes()
        patch.setattr(os, "replace", self.faulty_replace)
        patch.setattr(os, "fsync", self.faulty_fsync)
        patch.setattr(Path, "unlink", lambda path, **options: self.faulty_unlink(path, **options))
        patch.setattr(atomic, "open", self.faulty_open, raising=False)
        patch.setattr(atomic, "_CHUNK", 700)

    @contextlib.contextmanager
    def operation(self):
        self.count += 1
        now = self.count == self.at
        if (now and not self.late) or (self.count > self.at and isinstance(self.failure, Crash)):
            raise self.failure
        yield
        if now:
            raise self.failure

    def faulty_replace(self, source: Path, target: Path) -> None:
        with self.operation():
            inode = source.stat().st_ino
            self.replace(source, target)
            self.changes.append((source.name, target.name, inode))

    def faulty_unlink(self, path: Path, **options) -> None:
        with self.operation():
            self.unlink(path, **options)
            self.changes.append((path.name, None, 0))

    def faulty_fsync(self, descriptor: int) -> None:
        with self.operation():
            self.fsync(descriptor)
            inode = os.fstat(descriptor).st_ino
            if inode == self.directory.stat().st_ino:
                self.names = {path.name: path.stat().st_ino for path in self.directory.iterdir()}
                self.changes = []
            else:
                self.content[inode] = Path(f"/proc/self/fd/{descriptor}").read_bytes()

    def faulty_open(self, path: Path, mode: str = "r"):
        if "w" not in mode:
            return builtins.open(path, mode)
        disk = self

        class Torn(io.FileIO):
            def write(self, data) -> int:
                half = len(data) // 2
                super().write(bytes(data)[:half])
                with disk.operation():
                    super().write(bytes(data)[half:])
                return len(data)

        with self.operation():
            file = Torn(path, mode)
            self.content.pop(os.fstat(file.fileno()).st_ino, None)
            self.changes.append((None, path.name, os.fstat(file.fileno()).st_ino))
            return file

    def cut_power(self, rng: random.Random) -> None:
        """Leave on the disk what is certain, and a random part of what is not."""
        survival = rng.choice([0.0, 0.5, 0.5, 0.5])
        for old, name, inode in self.changes:
            if rng.random() < survival:
                self.names.pop(old, None)
                if name is not None:
                    self.names[name] = inode
        for path in self.directory.iterdir():
            self.unlink(path)
        for name, inode in self.names.items():
            (self.directory / name).write_bytes(self.content.get(inode, b""))


def count_operations(directory: Path, candidate: dict) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, directory, at=10**9, failure=Crash())
        checkpoint.save(directory, **candidate)
        return disk.count


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_crash_at_any_moment_leaves_the_old_or_the_new(tmp_path, seed):
    """Without a seed the process is killed; with one the power fails."""
    old, new, later = parts(CONFIG, 1), parts(BIGGER, 2), parts(CONFIG, 3)
    checkpoint.save(tmp_path / "count", **old)
    total = count_operations(tmp_path / "count", new)
    assert total > 40
    found = []
    for at in range(1, total + 1):
        directory = tmp_path / str(at)
        checkpoint.save(directory, **old, tokenizer=FakeTokenizer())
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, directory, at, failure=Crash())
            with pytest.raises(Crash):
                checkpoint.save(directory, **new)
        if seed is not None:
            disk.cut_power(random.Random(f"{seed} {at}"))
        found.append(which(directory, [old, new]))
        # The next save sees to the remains, and may itself be interrupted.
        rng = random.Random(f"{seed} {at}")
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, directory, at=rng.randint(1, total // 2), failure=Crash())
            with pytest.raises(Crash):
                checkpoint.save(directory, **later)
        if seed is not None:
            disk.cut_power(rng)
        assert which(directory, [old, new, later]) in (found[-1], 2)
        checkpoint.save(directory, **later)
        assert which(directory, [old, new, later]) == 2
        assert not list(directory.glob(".*"))
    assert found == sorted(found) or seed is not None
    assert set(found) == {0, 1}


def test_the_power_fails_while_the_last_names_change(tmp_path):
    old, new = parts(CONFIG, 1), parts(CONFIG, 2)
    checkpoint.save(tmp_path / "count", **old)
    total = count_operations(tmp_path / "count", new)
    for seed in range(12):
        directory = tmp_path / str(seed)
        checkpoint.save(directory, **old)
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, directory, at=total - seed % 3, failure=Crash())
            with pytest.raises(Crash):
                checkpoint.save(directory, **new)
        disk.cut_power(random.Random(seed))
        assert which(directory, [old, new]) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_moment_leaves_the_old_or_the_new(tmp_path, number):
    old, new = parts(CONFIG, 1), parts(CONFIG, 2)
    checkpoint.save(tmp_path / "count", **old)
    found = []
    for at in range(1, count_operations(tmp_path / "count", new) + 1):
        directory = tmp_path / str(at)
        checkpoint.save(directory, **old)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, directory, at, failure=OSError(number, os.strerror(number)))
            with pytest.raises(CheckpointError, match=f"cannot be saved: {os.strerror(number)}"):
                checkpoint.save(directory, **new)
        found.append(which(directory, [old, new]))
        if found[-1] == 0:  # the room is given back
            assert not list(directory.glob(".*"))
    assert found == sorted(found)
    assert set(found) == {0, 1}


def test_an_interrupt_right_after_any_operation_leaves_the_old_or_the_new(tmp_path):
    old, new = parts(CONFIG, 1), parts(CONFIG, 2)
    checkpoint.save(tmp_path / "count", **old)
    found = []
    for at in range(1, count_operations(tmp_path / "count", new) + 1):
        directory = tmp_path / str(at)
        checkpoint.save(directory, **old)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, directory, at, failure=KeyboardInterrupt(), late=True)
            with pytest.raises(KeyboardInterrupt):
                checkpoint.save(directory, **new)
        found.append(which(directory, [old, new]))
    assert found == sorted(found)
    assert set(found) == {0, 1}


def run_python(code: str, *arguments: object, **options) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_a_full_disk(tmp_path):
    old = parts(CONFIG, 1)
    checkpoint.save(tmp_path, **old)
    process = run_python(
        """
        import resource, signal, sys
        import numpy as np
        from llmcore import checkpoint
        from llmcore.parameters import parameter_shapes
        from llmcore.errors import CheckpointError
        config = checkpoint.load(sys.argv[1]).config.replace(vocab_size=5000)
        ones = {name: np.ones(shape, "f4") for name, shape in parameter_shapes(config).items()}
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            checkpoint.save(sys.argv[1], config=config, parameters=ones)
        except CheckpointError as error:
            print(error)
        """,
        tmp_path,
    )
    output, _ = process.communicate(timeout=60)
    assert "cannot be saved: File too large; what was saved there before is kept" in output
    assert which(tmp_path, [old]) == 0
    assert not list(tmp_path.glob(".*"))


def test_kill_at_a_random_moment(tmp_path):
    code = """
        import sys
        import time
        import numpy as np
        from llmcore import checkpoint
        from llmcore.config import ModelConfig
        from llmcore.parameters import parameter_shapes
        config = ModelConfig(vocab_size=11, hidden_size=128, num_decoder_layers=2, num_heads=2)
        step = int(sys.argv[2])
        while True:
            step += 1
            values = {n: np.full(s, step, "f4") for n, s in parameter_shapes(config).items()}
            moments = {"m": np.full(100_000, step, "f4")}
            state = checkpoint.TrainState(step=step, moments=moments)
            checkpoint.save(sys.argv[1], config=config, parameters=values, state=state)
            print(step, flush=True)
            time.sleep(0.003)
        """
    rng, step = random.Random(0), 0
    for _ in range(8):
        process = run_python(code, tmp_path, step)
        assert process.stdout is not None
        step = int(process.stdout.readline())
        end = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < end:  # reading beside a writer gives whole checkpoints as well
            assert whole(tmp_path) >= step
        process.send_signal(signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split()]
        process.wait()
        assert whole(tmp_path) >= max([step, *told])
        step = whole(tmp_path)


def whole(directory: Path) -> int:
    loaded = checkpoint.load(directory)
    step = loaded.state.step
    assert all(np.all(array == step) for _, array in loaded.parameters)
    assert np.all(loaded.state.moments["m"] == step)
    return step


# --- corruption ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Path:
    checkpoint.save(tmp_path, **parts(CONFIG, 1))
    return tmp_path


def file_names() -> list[str]:
    return ["config.json", "model.safetensors", "training_state.json", "training_state.safetensors"]


@pytest.mark.parametrize(
    "load",
    [
        checkpoint.load,
        Transformer.from_pretrained,
        partial(Transformer.from_pretrained, dtype="int8"),
    ],
    ids=["load", "float32", "int8"],
)
@pytest.mark.parametrize("name", file_names())
def test_one_flipped_bit_is_found_anywhere(saved, name, load):
    path = saved / name
    content = path.read_bytes()
    for position in {*range(0, len(content), 1 + len(content) // 50), 7, len(content) - 1}:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="corrupt, or changed since") as caught:
            load(saved)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", file_names())
def test_truncated_and_missing_files_are_named(saved, name):
    path = saved / name
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        CheckpointError, match=f"expected {len(content)} bytes, got {len(content) - 1}"
    ):
        checkpoint.load(saved)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"../a": {"size": 1, "crc32": "0"}}}'],
)
def test_a_broken_manifest(saved, content):
    (saved / "checkpoint.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint.json: not a manifest of llmcore"):
        checkpoint.load(saved)
    checkpoint.save(saved, **parts(CONFIG, 2))
    assert which(saved, [parts(CONFIG, 2)]) == 0


def test_a_broken_training_state(saved):
    path = saved / "training_state.json"
    values = json.loads(path.read_text())
    del values["step"]
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="its keys are not those of a training state: step"):
        checkpoint.load(saved, verify=False)


def test_fuzzed_files_without_verification(saved):
    rng = random.Random(1)
    whole_files = {name: (saved / name).read_bytes() for name in [*file_names(), "checkpoint.json"]}
    for name, content in whole_files.items():
        for _ in range(60):
            data = bytearray(content)
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
            else:
                for _ in range(3):
                    data[rng.randrange(min(len(data), 900))] = rng.randrange(256)
            (saved / name).write_bytes(data)
            with contextlib.suppress(CheckpointError):
                dict(checkpoint.load(saved, verify=False).parameters)
        (saved / name).write_bytes(content)


def test_what_is_not_a_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        CheckpointError, match="expected a directory with a checkpoint, found a file"
    ):
        checkpoint.load(tmp_path / "file")
    with pytest.raises(CheckpointError, match="found nothing"):
        checkpoint.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot be saved: File exists"):
        checkpoint.save(tmp_path / "file", **parts(CONFIG, 1))


def test_state_that_is_no_json(tmp_path):
    values = parts(CONFIG, 1)
    values["state"] = TrainState(step=1, data={"cursor": object()})
    with pytest.raises(CheckpointError, match="expected numbers, strings, lists and dicts, got a"):
        checkpoint.save(tmp_path, **values)
    values["state"] = TrainState(step=1, moments={"m": np.zeros(3)})
    with pytest.raises(CheckpointError, match="moments: m: expected float32, got float64"):
        checkpoint.save(tmp_path, **values)
