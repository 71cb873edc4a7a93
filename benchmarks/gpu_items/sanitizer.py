"""compute-sanitizer over `every_kernel.py`: memory, races in a block, what was never written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from gpu_items import Absent, Part, Result, Setting, Tell

_SCRIPT = Path(__file__).with_name("every_kernel.py")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_KEPT = 12000  # characters of what a tool says


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts: the script alone, then each tool."""
    tools = [Part(tool, partial(_sanitize, tool), 150) for tool in ("memcheck", "racecheck")]
    late = [Part(tool, partial(_sanitize, tool), 90) for tool in ("initcheck", "synccheck")]
    return [Part("plain", _plain, 120), *tools, *late]


def _plain(tell: Tell) -> Result:
    return _run([sys.executable, str(_SCRIPT)])


def _sanitize(tool: str, tell: Tell) -> Result:
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        raise Absent("no compute-sanitizer")
    options = ["--tool", tool, "--print-limit", "40", "--target-processes", "all"]
    report = _run([program, *options, sys.executable, str(_SCRIPT)])
    text = report["output"]
    counts = [int(a or b) for a, b in _SUMMARY.findall(text)]
    report["errors"] = sum(counts) if counts else None
    found = "no summary" if not counts else f"{sum(counts)} errors"
    report["line"] = f"{found}; {report['line']}"
    return report


def _run(command: list[str]) -> Result:
    """Run to the end; the script names each family as it begins with it, and those that failed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    lines = done.stdout.splitlines()
    ok = [line[3:] for line in lines if line.startswith("ok ")]
    failed = [line[7:] for line in lines if line.startswith("failed ")]
    text = done.stdout
    if len(text) > _KEPT:
        text = f"{text[: _KEPT // 2]}\n…\n{text[-_KEPT // 2 :]}"
    summary = f"{len(ok)} families ran, {len(failed)} failed, status {done.returncode}"
    return {
        "status": done.returncode,
        "ran": ok,
        "failed": failed,
        "output": text,
        "line": summary + (f" ({failed[0]})" if failed else ""),
    }
