"""The test suite on the GPU: a process a file, since a crash leaves nothing usable behind it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

from gpu_items import Part, Result, Setting, Tell

_ROOT = Path(__file__).resolve().parents[2]
# The files of whole models, what everything else stands on first.
_MODELS = (
    "device", "model", "gradcheck", "train_bfloat16", "generate", "kv_cache", "beam", "engine",
    "speculative", "masked", "seq2seq", "mixture", "lora", "quantize", "train_objectives",
    "parity", "parity_generate",
)  # fmt: skip
_TINY = ("ops/test_rope.py", "ops/test_norm.py")
_VERDICT = re.compile(
    r"^(tests/\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b", re.MULTILINE
)
_BEGUN = re.compile(r"^(tests/\S+::\S.*?) *$", re.MULTILINE)
_REASON = re.compile(r"^(?:FAILED|ERROR) (tests/\S+::.*?) - (.*)$", re.MULTILINE)
_FAILURES = 200  # kept with their reasons


@dataclass
class _Run:
    """pytest on one file."""

    file: str
    output: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def start(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--device", "cuda", "-vv", "-rfE", "--tb=line",
             "-p", "no:cacheprovider", f"tests/{self.file}"],
            cwd=_ROOT, stdout=self.output, stderr=subprocess.STDOUT,
            # Reasons in one line each, however long.
            env={**os.environ, "COLUMNS": "400"},
        )  # fmt: skip

    def ended(self) -> bool:
        if self.process.poll() is None and time.monotonic() > self.until:
            self.process.kill()
            self.process.wait()
        return self.process.poll() is not None

    def result(self) -> Result:
        self.output.seek(0)
        text = self.output.read().decode(errors="replace")
        verdicts = dict(_VERDICT.findall(text))
        reasons = dict(_REASON.findall(text))
        counts = Counter(verdict.lower() for verdict in verdicts.values())
        failed = [name for name, verdict in verdicts.items() if verdict in ("FAILED", "ERROR")]
        report: Result = {
            "counts": dict(counts),
            "status": self.process.returncode,
            "failures": {name: reasons.get(name, "")[:300] for name in failed[:_FAILURES]},
        }
        if self.process.returncode not in (0, 1, 5):
            begun = [name for name in _BEGUN.findall(text) if name not in verdicts]
            report["ended_in"] = begun[-1] if begun else None
            report["last_words"] = text[-1500:]
        return report


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts."""
    return [Part("pytest", partial(_suite, setting), 3600)]


def _suite(setting: Setting, tell: Tell) -> Result:
    """Run the files, a few at a time, telling after each."""
    operations = sorted(f"ops/{path.name}" for path in (_ROOT / "tests/ops").glob("test_*.py"))
    models = [f"test_{name}.py" for name in _MODELS]
    names = _TINY if setting.tiny else [*operations, *models]
    waiting = [_Run(name) for name in names if (_ROOT / "tests" / name).exists()]
    at_once = max(1, min(6, (os.cpu_count() or 1) // 2))
    running: list[_Run] = []
    files: dict[str, Result] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop(0))
            running[-1].start(seconds=300)
        time.sleep(0.1)
        for run in [run for run in running if run.ended()]:
            running.remove(run)
            files[run.file] = run.result()
            tell(_report(files))
    return _report(files)


def _report(files: dict[str, Result]) -> Result:
    total: Counter[str] = Counter()
    for result in files.values():
        total.update(result["counts"])
    crashed = [name for name, result in files.items() if "last_words" in result]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in total.items()) or "no tests"
    crashes = f"; ended early: {', '.join(crashed)}" if crashed else ""
    return {"counts": dict(total), "files": files, "line": f"{counts}{crashes}"}
