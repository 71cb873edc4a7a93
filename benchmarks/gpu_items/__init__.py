"""What `benchmarks/gpu.py` asks of a GPU machine: one module an item, each a list of parts."""

from __future__ import annotations

import importlib
import json
import os
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llmcore

#: The items in order, and their shares of the time.
ITEMS = {
    "environment": 2,
    "ceilings": 4,
    "tests": 16,
    "sanitizer": 14,
    "trajectory": 6,
    "training": 34,
    "decode": 14,
    "kernels": 8,
    "products": 6,
}
SIZES = ("full", "tiny")
#: Of contestants: where they make their weights, the GPU waits for the CPU.
THREADS = os.cpu_count() or 1

Result = dict[str, Any]
Tell = Callable[[Result], None]


class Absent(Exception):  # noqa: N818  (nothing has gone wrong)
    """A part cannot be had here, for a reason that is its message."""


@dataclass(frozen=True)
class Setting:
    """What is asked of every item.

    Attributes:
        size: One of `SIZES`.
        folder: Where the results of the items before lie.
    """

    size: str
    folder: Path

    @property
    def tiny(self) -> bool:
        """Whether the GPU may be an emulated one."""
        return self.size == "tiny"


@dataclass(frozen=True)
class Part:
    """What fails, or is left out, by itself.

    Attributes:
        name: No two of an item share it.
        run: Returns what JSON can hold; "line" is the result in a few words. It may call its
            argument with what it has so far.
        seconds: After these it is ended.
    """

    name: str
    run: Callable[[Tell], Result]
    seconds: float


def serve(item: str, setting: Setting, done: Collection[str]) -> None:
    """Run an item's parts but those done, saying so in lines of JSON on standard output.

    The process ends with a failure that has left the GPU unusable: `overseer` starts another for
    the parts that are left.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not come between

    def say(**message: Any) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    parts = importlib.import_module(f"gpu_items.{item}").parts(setting)
    say(parts=[part.name for part in parts])
    for part in parts:
        if part.name in done:
            continue
        say(begin=part.name, seconds=part.seconds)
        start = time.perf_counter()
        try:
            result = part.run(lambda so_far, name=part.name: say(so_far=so_far, of=name))
        except Absent as absent:
            result = {"absent": str(absent)}
        except Exception:
            result = {"error": traceback.format_exc()}
        say(end=part.name, result={**result, "seconds": time.perf_counter() - start})
        if "error" in result and _is_lost():
            replies.close()
            os._exit(1)  # a destructor that waits for the GPU must not hold up the rest


def _is_lost() -> bool:
    """Whether the GPU does nothing more for this process, as after an access out of bounds."""
    if not llmcore.cuda_available():
        return False
    try:
        llmcore.zeros([1], device="cuda").numpy()
    except llmcore.LlmcoreError:
        return True
    return False


def conclude(item: str, results: dict[str, Result]) -> Result | None:
    """Return what an item's parts say together; None where that is nothing."""
    try:
        module = importlib.import_module(f"gpu_items.{item}")
        return module.conclusion(results) if hasattr(module, "conclusion") else None
    except Exception:
        return {"error": traceback.format_exc()}


def torch_on_gpu() -> Any:
    """Import PyTorch.

    Raises:
        Absent: There is none here, or none that has a GPU.
    """
    try:
        import torch
    except ImportError as error:
        raise Absent(f"no torch: {error}") from None
    if not torch.cuda.is_available():
        raise Absent("torch has no GPU here")
    return torch
