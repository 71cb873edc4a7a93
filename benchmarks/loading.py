"""How long from the files of a model to its first token, beside the peers, each time anew.

python benchmarks/loading.py [--model gpt2] [--rounds 7] [--threads 2]

Every round starts a process for each engine, in changing order: a virtual machine may take a second
to give memory that another process did not just leave. "first" is the process's first load, with
what the engine still imports then, "again" the second. The files are in the page cache. "llmcore,
hf" reads the same folder without checkpoint.json, as one by transformers is: no checksums to
compare. The prompt is 8 tokens long.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from llmcore.atomic import MANIFEST
from llmcore.bench.engines import contestants
from llmcore.bench.engines.llmcore import write_model
from llmcore.bench.turns import Contestant, Process, Stopped
from llmcore.bench.workloads import Generation

PEERS = ("transformers", "ctranslate2", "llama.cpp")


def load_times(contestant: Contestant, threads: int) -> tuple[float, float]:
    """Load in a new process, twice: seconds to the first token of each."""
    process = Process(threads=threads, timeout=600.0)
    try:
        built = process.ask(build=contestant.build, options=dict(contestant.options))
        answers = (
            [built] if "error" in built else [built, process.ask(run="load", seconds=0, least=1)]
        )
        for answer in answers:
            if "error" in answer:
                raise Stopped(answer["error"])
        return answers[0]["load_seconds"], answers[1]["seconds"][0]
    finally:
        process.close()


def prepare(contestant: Contestant, threads: int) -> None:
    """Convert the files for those that read others."""
    if contestant.prepare is not None:
        process = Process(threads=threads, timeout=600.0)
        try:
            answer = process.ask(build=contestant.prepare, options=dict(contestant.options))
        finally:
            process.close()
        if "error" in answer:
            raise Stopped(answer["error"])


def main() -> None:
    """Print the medians, and their ratios to llmcore's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    workload = Generation(options.model, prompt=8, new=2, prefill=8)
    with tempfile.TemporaryDirectory() as folder:
        own, foreign = Path(folder, "own"), Path(folder, "hf")
        write_model(workload, str(own))
        shutil.copytree(own, foreign)
        (foreign / MANIFEST).unlink()
        found = contestants(workload, PEERS, folder=str(own))
        hf = {**found[0].options, "folder": str(foreign)}
        found.insert(1, replace(found[0], name="llmcore, hf", options=hf))
        times: dict[str, list[tuple[float, float]]] = {}
        for contestant in found:
            try:
                prepare(contestant, options.threads)
                load_times(contestant, options.threads)
                times[contestant.name] = []
            except Stopped as stopped:
                print(f"{contestant.name}: {stopped}")
        for number in range(options.rounds):
            first = number % len(found)
            order = [*found[first:], *found[:first]]
            for contestant in order if number % 2 else reversed(order):
                if contestant.name in times:
                    times[contestant.name].append(load_times(contestant, options.threads))
    medians = {
        name: [statistics.median(kind) for kind in zip(*pairs, strict=True)]
        for name, pairs in times.items()
    }
    ours, kinds = medians["llmcore"], ("first", "again")
    for name, seconds in medians.items():
        least = [min(kind) for kind in zip(*times[name], strict=True)]
        for kind, median, lowest, other in zip(kinds, seconds, least, ours, strict=True):
            figures = f"{median * 1e3:6.0f} ms, least {lowest * 1e3:5.0f}, {median / other:5.2f} x"
            print(f"{name:14} {kind}: {figures} llmcore's")


if __name__ == "__main__":
    main()
