"""Runs an item in processes of its own, and keeps what they say whatever becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_items import Result, conclude

Save = Callable[[dict[str, Any], Path], None]
#: What runs the parts, told by `--serve`.
SCRIPT = Path(__file__).parents[1] / "gpu.py"
_LAST_WORDS = 4000


def oversee(item: str, limit: float, size: str, folder: Path, save: Save) -> dict[str, Any]:
    """Run an item for at most `limit` seconds and return its report, saved after every part."""
    start = time.monotonic()
    results: dict[str, Result] = {}
    report: dict[str, Any] = {
        "item": item,
        "size": size,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "limit_seconds": limit,
        "outcome": "running",
        "seconds": 0.0,
        "parts": results,
    }

    def keep() -> None:
        report["seconds"] = time.monotonic() - start
        report["conclusion"] = conclude(item, results)
        save(report, folder)

    names: list[str] = []
    while True:
        before = len(results)
        with _Child(item, size, folder, list(results)) as child:
            for message in child.messages(start + limit):
                if "parts" in message:
                    names = message["parts"]
                elif "so_far" in message:
                    results[message["of"]] = {**message["so_far"], "error": "not finished"}
                    keep()
                elif "end" in message:
                    results[message["end"]] = message["result"]
                    keep()
        if child.ending is not None:
            so_far = results.get(child.part or "", {})
            if child.part is not None:
                results[child.part] = {**so_far, "error": child.ending, "stderr": child.last_words}
            else:
                report["error"], report["stderr"] = child.ending, child.last_words
        over = time.monotonic() >= start + limit
        left = [name for name in names if name not in results]
        if over or not left or len(results) == before:
            break
    for name in left:
        results[name] = {"absent": "no time was left" if over else "the item ended before"}
    report["outcome"] = "out of time" if over and left else "complete" if names else "failed"
    keep()
    return report


class _Child:
    """A process that runs an item's parts.

    Attributes:
        part: What it was at when it ended; None if nothing.
        ending: How it ended, if not by having said all it had to.
        last_words: What it wrote to standard error.
    """

    def __init__(self, item: str, size: str, folder: Path, done: list[str]) -> None:
        self.part: str | None = None
        self.ending: str | None = None
        self.last_words = ""
        self._failed = False  # what it did last did, as it has said itself
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        command = [sys.executable, str(SCRIPT), "--serve", item]
        self._process = subprocess.Popen(
            [*command, "--size", size, "--output", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that those it starts end with it
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(done).encode() + b"\n")
        self._process.stdin.close()
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def messages(self, deadline: float) -> Iterator[dict[str, Any]]:
        """Yield what it says until it ends, the part it is at has no time left, or the item."""
        until = deadline
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                what = "the item" if until == deadline else "the part"
                self.ending = f"ended: {what} had no time left"
                return
            if line is None:
                status = self._process.wait()
                if self.part is not None or (status and not self._failed):
                    self.ending = f"ended with {_how(status)}"
                return
            message = json.loads(line)
            if "begin" in message:
                self.part = message["begin"]
                until = min(deadline, time.monotonic() + message["seconds"])
            elif "end" in message:
                self.part, until = None, deadline
                self._failed = "error" in message["result"]
            yield message

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.seek(0)
        self.last_words = self._errors.read().decode(errors="replace")[-_LAST_WORDS:]
        self._errors.close()


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
