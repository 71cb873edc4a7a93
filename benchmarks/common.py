"""What the benchmarks that train share: turns of the engines, their record, and the report."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import llmcore
from llmcore.atomic import write_atomically
from llmcore.objectives import Batch

#: Where the research data lies: beside the repository.
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


class Trainer(Protocol):
    """An engine with a model of its own."""

    def step(self, batch: Batch, lr: float) -> float:
        """Update the weights; return the loss before."""

    def arrays(self) -> Mapping[str, Any]:
        """Return the parameters by llmcore's names."""


class LlmcoreTrainer:
    """llmcore's training step."""

    def __init__(self, model: llmcore.Transformer, **settings: Any) -> None:
        self.model = model
        self._step = llmcore.TrainStep(model, lr=0.0, **settings)

    def step(self, batch: Batch, lr: float) -> float:
        return self._step(batch, lr).loss

    def arrays(self) -> Mapping[str, Any]:
        return self.model.parameters()


def make_trainers(
    engines: Sequence[str], config: llmcore.ModelConfig, *, seed: int, **settings: Any
) -> dict[str, Trainer]:
    """Return a trainer for each of "llmcore", "torch" and "torch-compile", of equal weights."""
    model = llmcore.Transformer(config, seed=seed)
    trainers: dict[str, Trainer] = {}
    for engine in engines:
        if engine == "llmcore":
            trainers[engine] = LlmcoreTrainer(model, dropout_seed=seed, **settings)
        elif engine in ("torch", "torch-compile"):
            import torch
            from peer import TorchTrainer

            torch.manual_seed(seed)
            trainers[engine] = TorchTrainer(
                config, model.parameters(), compile=engine == "torch-compile", **settings
            )
        else:
            raise SystemExit(f"engines are llmcore, torch and torch-compile, got {engine!r}")
    return trainers


@dataclass
class Record:
    """What one engine did: its losses and, turn by turn, its time."""

    losses: list[float] = field(default_factory=list)
    turns: list[dict[str, float]] = field(default_factory=list)

    def train(self, trainer: Trainer, batches: Sequence[Batch], rates: Sequence[float]) -> None:
        """Take one step with each batch, timed as one turn."""
        wall, cpu = time.perf_counter(), time.process_time()
        losses = [trainer.step(batch, lr) for batch, lr in zip(batches, rates, strict=True)]
        turn = {
            "steps": len(batches),
            "tokens": sum(batch.tokens for batch in batches),
            "targets": sum(batch.num_targets for batch in batches),
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
        }
        self.losses += losses
        self.turns.append(turn)

    def summary(self) -> dict[str, float]:
        """Return totals, and the rate of the median turn, which a busy moment does not move."""
        totals = {key: sum(turn[key] for turn in self.turns) for key in self.turns[0]}
        rates = [turn["targets"] / turn["seconds"] for turn in self.turns]
        return {
            **totals,
            "targets_per_second": totals["targets"] / totals["seconds"],
            "median_targets_per_second": statistics.median(rates),
        }


def compare(records: Mapping[str, Record]) -> dict[str, dict[str, float]]:
    """Return each engine's summary, with its time over llmcore's: of all turns and the median."""
    summaries = {engine: record.summary() for engine, record in records.items()}
    ours = records.get("llmcore")
    if ours is not None:
        for engine, record in records.items():
            ratios = [
                turn["seconds"] / own["seconds"]
                for turn, own in zip(record.turns, ours.turns, strict=True)
            ]
            summaries[engine]["time_over_llmcore"] = (
                summaries[engine]["seconds"] / summaries["llmcore"]["seconds"]
            )
            summaries[engine]["median_time_over_llmcore"] = statistics.median(ratios)
    return summaries


def load_weights(model: llmcore.Transformer, arrays: Mapping[str, Any]) -> None:
    """Copy an engine's parameters into a model of llmcore, which then decodes and judges them."""
    for name, parameter in model.parameters().items():
        np.copyto(parameter.numpy(), np.asarray(arrays[name]))


def smooth(losses: Sequence[float], every: int) -> list[tuple[int, float]]:
    """Average losses over stretches of `every` steps, each named by its last step."""
    return [
        (min(start + every, len(losses)), float(np.mean(losses[start : start + every])))
        for start in range(0, len(losses), every)
    ]


def set_threads(count: int) -> None:
    """Let both engines use this many threads."""
    llmcore.set_num_threads(count)
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(count)


def new_report(args: argparse.Namespace, doc: str, **more: Any) -> dict[str, Any]:
    """Return the beginning of a report: the question, and what was run, where.

    Where files lie is of no interest.
    """
    paths = ("data", "out", "plot")
    return {
        "question": doc.splitlines()[0],
        "arguments": {key: value for key, value in vars(args).items() if key not in paths},
        "environment": environment(args.threads),
        **more,
    }


def environment(threads: int) -> dict[str, Any]:
    """Return what figures depend on beside the code: machine, threads and versions."""
    packages = ("torch", "sacrebleu", "tokenizers", "numpy")
    return {
        "machine": platform.processor() or platform.machine(),
        "device": llmcore.device_info(),
        "threads": threads,
        "versions": {
            "llmcore": llmcore.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in packages},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(path: str | Path, report: Mapping[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(Path(path), (json.dumps(report, indent=1) + "\n").encode())
