"""benchmarks/gpu.py: its items on a GPU, emulated or not, and what it makes of failures."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import llmcore

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/gpu.py"


def run(folder: Path, *arguments: str, timeout: float = 300) -> dict[str, dict]:
    """Run items at the tiny size and return their reports."""
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(folder), "--size", "tiny", *arguments],
        capture_output=True, text=True, timeout=timeout, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")}


@pytest.mark.slow
def test_a_few_items_run_on_the_gpu(tmp_path: Path) -> None:
    if not llmcore.cuda_available():
        pytest.skip("there is no GPU")
    items = ("environment", "ceilings", "trajectory", "products")
    reports = run(tmp_path, "--only", ",".join(items), "--minutes", "4")
    assert sorted(reports) == sorted(items)
    for item, report in reports.items():
        assert report["outcome"] == "complete", item
        errors = {name: part["error"] for name, part in report["parts"].items() if "error" in part}
        assert not errors, item
    product = reports["products"]["parts"]["tiny up"]
    assert product["shape"] == {"M": 64, "K": 32, "N": 128}
    assert product["forms"]["y"]["epilogue"] == ["bias", "activation", "pre_activation"]
    time = product["forms"]["dw"]["times"]["llmcore"]
    assert time["median_seconds"] > 0
    assert len(time["rounds"]) == 2
    conclusion = reports["trajectory"]["conclusion"]
    assert conclusion["largest_relative_difference"]["cuda float32"] <= 1e-4
    assert conclusion["largest_relative_difference"]["cuda bfloat16"] <= conclusion["bar"]


def test_without_a_gpu_every_part_says_why(tmp_path: Path) -> None:
    if llmcore.cuda_available():
        pytest.skip("there is a GPU")
    reason = llmcore.device_info()["cuda"]["reason"]
    reports = run(tmp_path, "--only", "ceilings,environment", "--minutes", "2")
    assert reports["environment"]["parts"]["build"]["cuda"]["reason"] == reason
    parts = reports["ceilings"]["parts"]
    assert list(parts) == ["copy", "product bfloat16", "product float32"]
    for part in parts.values():
        assert reason in part["error"].splitlines()[-1]


def test_what_a_sanitizer_found_is_kept_when_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    sanitizer = importlib.import_module("gpu_items.sanitizer")
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import time\nprint('ok one', flush=True)\nprint('failed two: why', flush=True)\n"
        "print('========= ERROR SUMMARY: 3 errors', flush=True)\ntime.sleep(100)\n"
    )
    monkeypatch.setattr(sanitizer, "_SCRIPT", slow)
    told: list[dict] = []
    report = sanitizer._run([], 7, told.append)
    assert [len(so_far["ran"]) + len(so_far["failed"]) for so_far in told] == [1, 2]
    assert report["status"] == -9
    assert (report["ran"], report["failed"]) == (["one"], ["two: why"])
    assert report["errors"] == 3


@pytest.mark.parametrize("item", ["crash", "hang", "fail"])
def test_a_part_that_ends_badly_costs_itself_alone(tmp_path: Path, item: str) -> None:
    # An item of three parts, the second of which does what its name says.
    overseer = tmp_path / "try.py"
    overseer.write_text(
        f"""
import sys, json, types
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_items
from gpu_items import Part, overseer, serve, Setting
from pathlib import Path

def parts(setting):
    def bad(tell):
        tell({{"line": "begun"}})
        import ctypes, time
        {{"crash": lambda: ctypes.string_at(0), "hang": lambda: time.sleep(100),
          "fail": lambda: 1 / 0}}[{item!r}]()
    good = lambda tell: {{"line": "well"}}
    return [Part("before", good, 60), Part("bad", bad, 3), Part("after", good, 60)]

sys.modules["gpu_items.trial"] = types.SimpleNamespace(parts=parts)
if "--serve" in sys.argv:
    serve("trial", Setting("tiny", Path(".")), json.loads(sys.stdin.readline()))
else:
    overseer.SCRIPT = Path(__file__)
    print(json.dumps(overseer.oversee("trial", 60, "tiny", Path("."), lambda *report: None)))
"""
    )
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    done = subprocess.run(
        [sys.executable, str(overseer)], capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    parts = report["parts"]
    assert report["outcome"] == "complete"
    assert list(parts) == ["before", "bad", "after"]
    assert parts["before"]["line"] == parts["after"]["line"] == "well"
    expected = {"crash": "SIGSEGV", "hang": "the part had no time left", "fail": "ZeroDivision"}
    assert expected[item] in parts["bad"]["error"]
    if item != "fail":
        assert parts["bad"]["line"] == "begun"
