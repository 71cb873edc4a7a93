"""The process of one contestant: it builds what is measured, then runs turns as it is told."""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmcore.errors import LlmcoreError

#: Runs what is measured once and returns the seconds it took.
Run = Callable[[], float]


@dataclass(frozen=True)
class Built:
    """What an engine can run.

    Attributes:
        runs: What each measure runs, by the measure's name.
        version: Of the engine.
        witness: Numbers by which it can be seen that the engines do the same: the first loss, or
            the first ids of a greedy search.
        load_seconds: What loading took the first time, to the first token; None where nothing is.
        device_peak: Tells the most bytes of a GPU's memory that were held; None on the CPU, where
            it is the process's.
    """

    runs: Mapping[str, Run]
    version: str
    witness: Any = None
    load_seconds: float | None = None
    device_peak: Callable[[], int] | None = None


def timed(call: Callable[[], object]) -> Run:
    """Make what a measure runs of a function.

    Example:
        >>> timed(lambda: sum(range(1000)))() > 0
        True
    """

    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def timed_steps(step: Callable[[], Any], wait: Callable[[Any], object], count: int) -> Run:
    """Make what a measure runs of steps that may go on after they return: the time of one of many.

    Args:
        step: Takes one.
        wait: Is given what the last one returned, and returns when that is done.
        count: How many a run takes.

    Example:
        >>> timed_steps(lambda: 2.0, float, 3)() > 0
        True
    """

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            last = step()
        wait(last)
        return (time.perf_counter() - start) / count

    return run


def steps_a_run(device: str) -> int:
    """Return how many training steps are timed together: a GPU is asked for many before it waits.

    Example:
        >>> steps_a_run("cpu"), steps_a_run("cuda:0")
        (1, 5)
    """
    return 1 if device == "cpu" else 5


def resolve(target: str) -> Callable[..., Any]:
    """Import a function named as `module:function`.

    Example:
        >>> resolve("math:sqrt")(4.0)
        2.0
    """
    module, _, function = target.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def serve() -> None:
    """Answer each line of standard input, a JSON object, with one of ours.

    `{"build": target, "options": {…}}` calls `target(**options)`, which returns a `Built` or, if it
    only prepares files, None. `{"run": measure, "seconds": s, "least": n}` runs a measure at least
    n times, and until s seconds are over. An answer with "error" says in one line what went wrong.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    built: Built | None = None
    for line in sys.stdin:
        message = json.loads(line)
        answer: dict[str, Any]
        try:
            if "build" in message:
                start = time.perf_counter()
                built = resolve(message["build"])(**message["options"])
                answer = {"ready_seconds": time.perf_counter() - start}
                if built is not None:
                    answer |= {
                        "measures": list(built.runs),
                        "version": built.version,
                        "witness": built.witness,
                        "load_seconds": built.load_seconds,
                    }
            else:
                assert built is not None  # the parent builds first
                answer = _turn(built, message["run"], message["seconds"], message["least"])
        except Exception as error:
            answer = {"error": one_line(error)}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


def _turn(built: Built, measure: str, seconds: float, least: int) -> dict[str, Any]:
    run = built.runs[measure]
    gc.collect()
    reset_peak_memory()
    samples: list[float] = []
    start = time.perf_counter()
    while len(samples) < least or time.perf_counter() - start < seconds:
        samples.append(run())
    return {"seconds": samples, "peak_bytes": (built.device_peak or peak_memory)()}


def one_line(error: Exception) -> str:
    """Say what went wrong in one line: our own errors speak for themselves, others are named.

    Example:
        >>> one_line(KeyError("x"))
        "KeyError: 'x'"
        >>> one_line(ModuleNotFoundError("No module named 'torch'", name="torch"))
        'torch is not installed'
    """
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"{error.name.split('.')[0]} is not installed"
    text = " ".join(str(error).split())
    if not isinstance(error, LlmcoreError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"


def peak_memory() -> int | None:
    """Return the most bytes of memory this process held since the last reset; None if not known."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return None
    return next(
        (int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")),
        None,
    )


def reset_peak_memory() -> None:
    """Begin a new peak, where the system lets us; elsewhere the peak is that of the whole life."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


if __name__ == "__main__":
    serve()
