"""Asks a GPU machine everything at once: what works there, and how fast.

python benchmarks/gpu.py --output FOLDER [--minutes 12] [--only ITEMS] [--skip ITEMS] [--size tiny]

Each item of `gpu_items` writes FOLDER/<item>.json, which is there and whole after every part of it,
so that a run that is cut still tells something. Parts run in a process that is not this one:
whatever hangs, crashes or fails costs itself alone, and becomes data. `--size tiny` takes what an
emulated GPU can take (LLMCORE_CUDA=EMULATED), to try the items themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gpu_items import ITEMS, SIZES, Setting, serve
from gpu_items.overseer import oversee
from rich.console import Console
from rich.table import Table

from llmcore.atomic import write_atomically

# For the table, and for the last item to say what it found.
_RESERVE_SECONDS = 5.0


def main() -> None:
    arguments = parse()
    # What is timed for the products is a result, and not to change what others compute here.
    os.environ.setdefault("LLMCORE_CACHE_DIR", str(arguments.output.resolve() / "cache"))
    if arguments.serve is not None:
        setting = Setting(arguments.size, arguments.output.resolve())
        serve(arguments.serve, setting, done=json.loads(sys.stdin.readline()))
        return
    chosen = [item for item in ITEMS if item in arguments.only and item not in arguments.skip]
    deadline = time.monotonic() + 60 * arguments.minutes - _RESERVE_SECONDS
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
    reports = []
    for number, item in enumerate(chosen):
        # What earlier items left of their shares is shared by those to come.
        share = ITEMS[item] / sum(ITEMS[later] for later in chosen[number:])
        limit = max(1.0, share * (deadline - time.monotonic()))
        report = oversee(item, limit, arguments.size, arguments.output.resolve(), save)
        reports.append(report)
        console.print(line(report), soft_wrap=True)
    console.print(table(reports))


def parse() -> argparse.Namespace:
    def items(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        if unknown := set(names) - set(ITEMS):
            raise argparse.ArgumentTypeError(
                f"items are {', '.join(ITEMS)}, got {', '.join(sorted(unknown))}"
            )
        return names

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all items together")
    parser.add_argument("--only", type=items, default=list(ITEMS), help=",".join(ITEMS))
    parser.add_argument("--skip", type=items, default=[])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--serve", choices=list(ITEMS), help=argparse.SUPPRESS)
    return parser.parse_args()


def save(report: dict[str, Any], folder: Path) -> None:
    """Write an item's report, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(folder / f"{report['item']}.json", text.encode())


def line(report: dict[str, Any]) -> str:
    """Say in one line what became of an item."""
    parts = report["parts"].values()
    failed = sum("error" in part for part in parts)
    missing = sum("absent" in part for part in parts)
    done = len(parts) - failed - missing
    outcome = f"{report['item']}: {report['outcome']} after {report['seconds']:.0f} s"
    return f"{outcome}; {done} parts done, {failed} failed, {missing} left out"


def table(reports: list[dict[str, Any]]) -> Table:
    """Return every part with its figures in a few words; an error that comes again, only once."""
    result = Table("part", "result", box=None, padding=(0, 1))
    for report in reports:
        result.add_row(report["item"].upper(), "")
        before = ""
        for name, part in report["parts"].items():
            text = part.get("line") or part.get("absent") or "done"
            if "error" in part:
                error = part["error"].strip().splitlines()[-1][:160]
                text = f"FAILED: {'as above' if error == before else error}"
                before = error
            result.add_row(f"  {name}", text)
        if report.get("conclusion"):
            result.add_row("  together", report["conclusion"].get("line", "failed"))
    return result


if __name__ == "__main__":
    main()
