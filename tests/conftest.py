"""Fixtures every test may use."""

from __future__ import annotations

import os
import signal
import zlib
from pathlib import Path

import numpy as np
import pytest

import llmcore
import on_device
from command import SMALL, TEXT, child
from llmcore import _core
from llmcore.tensor import write

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# A shell's background jobs ignore Ctrl-C, and so would the tests of it, for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="where all runs that can: cpu or cuda")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device != "cpu" and llmcore.cuda_available():
        on_device.make_default(device)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what a device does not promise; all, where there is no such device."""
    device = config.getoption("--device")
    if device == "cpu":
        return
    missing = llmcore.device_info()["cuda"]["reason"]
    for item in items:
        mark = item.get_closest_marker("cpu")
        if missing or mark is not None:
            reason = missing or f"of the CPU: {mark.args[0]}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers that differ from test to test and are the same in every run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def _nan_filled_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs hold NaN before an operation writes them: what it forgets shows."""
    empty = _core.empty

    def nan_filled(*args: object, **kwargs: object) -> llmcore.Tensor:
        tensor = empty(*args, **kwargs)
        if tensor.dtype == "float32":
            write(tensor, np.nan)
        return tensor

    monkeypatch.setattr(_core, "empty", nan_filled)


@pytest.fixture
def threads() -> object:
    """A function that sets the number of threads; the default comes back after the test."""
    before = llmcore.get_num_threads()
    yield llmcore.set_num_threads
    llmcore.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The research data beside the checkout; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LLMCORE_TEST_DATA", SHARED))
    if not path.is_dir():
        pytest.skip("the shared research data is not here")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text file to train on."""
    file = tmp_path / "text.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run on text.txt beside it; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("to be or not to be\n" * 200)
    process = child("train", *SMALL, "--data", folder / "text.txt", "--out-dir", folder / "out")
    assert process.communicate()[1] == ""
    return folder / "out"
