"""compute-sanitizer over `every_kernel.py`: memory, races in a block, what was never written."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

from gpu_items import Absent, Part, Result, Setting, Tell

_SCRIPT = Path(__file__).with_name("every_kernel.py")
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_KEPT = 12000  # characters of what a tool says


#: Seconds of the parts, and how many of them the script goes on for: a family may take a while.
_PLAIN, _TOOL, _END = 120, 90, 30


def parts(setting: Setting) -> list[Part]:
    """Return the item's parts: the script alone, then each tool."""
    tools = ("memcheck", "racecheck", "initcheck", "synccheck")
    alone = Part("plain", partial(_run, [], _PLAIN), _PLAIN)
    return [alone, *(Part(tool, partial(_sanitize, tool), _TOOL) for tool in tools)]


def _sanitize(tool: str, tell: Tell) -> Result:
    """Of initcheck, expect reads of the columns that pad rows of logits, which nobody writes."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        raise Absent("no compute-sanitizer")
    options = ["--tool", tool, "--print-limit", "40", "--target-processes", "all"]
    usage = subprocess.run([program, "--help"], capture_output=True, text=True).stdout
    if "--kernel-name" in usage:  # not those of cuBLASLt
        options += ["--kernel-name", "kernel_substring=llmcore"]
    return _run([program, *options], _TOOL, tell)


def _run(tool: list[str], seconds: float, tell: Tell) -> Result:
    """Run the script, for as long as lets it end by itself, and tell what it and the tool say."""
    command = [*tool, sys.executable, str(_SCRIPT), str(seconds - _END)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        end = threading.Timer(seconds - 5, process.kill)
        end.start()
        assert process.stdout is not None
        lines: list[str] = []
        for line in process.stdout:
            lines.append(line.rstrip("\n"))
            if line.startswith(("ok ", "failed ")):
                tell(_report(lines, None))
        status = process.wait()
        end.cancel()
    return _report(lines, status)


def _report(lines: list[str], status: int | None) -> Result:
    """Return what has been found; the script names each family as it begins with it."""
    ok = [line[3:] for line in lines if line.startswith("ok ")]
    failed = [line[7:] for line in lines if line.startswith("failed ")]
    text = "\n".join(lines)
    counts = [int(a or b) for a, b in _SUMMARY.findall(text)]
    if len(text) > _KEPT:
        text = f"{text[: _KEPT // 2]}\n…\n{text[-_KEPT // 2 :]}"
    line = f"{len(ok)} families ran, {len(failed)} failed, status {status}"
    line += f" ({failed[0]})" if failed else ""
    errors = sum(counts) if counts else None
    return {
        "status": status,
        "ran": ok,
        "failed": failed,
        "output": text,
        "errors": errors,
        "line": line if errors is None else f"{errors} errors; {line}",
    }
