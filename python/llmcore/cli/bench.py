"""Benchmarks: what this machine can do, and how much of it llmcore and its peers reach."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcore.cli.common import JsonOption, known_device, refuse, usage_errors
from llmcore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmcore.bench.report import Workload

app = typer.Typer(rich_markup_mode="rich", no_args_is_help=True)

AgainstOption = Annotated[
    str, typer.Option(help="Peers, as torch,torch-compile; see above which there are.")
]
RoundsOption = Annotated[int, typer.Option(help="How often it is everyone's turn.")]
SecondsOption = Annotated[float, typer.Option(help="Of a turn; what takes longer runs once.")]
ThreadsOption = Annotated[
    str | None,
    typer.Option(help="How many, as 2, or 1,2 for one after the other; all if not given."),
]
FileOption = Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda.", callback=known_device)]
PlotOption = Annotated[Path | None, typer.Option(help="Draw the rates into this SVG file.")]
VocabularyOption = Annotated[int | None, typer.Option(help="Instead of the preset's.")]


@app.callback()
def _bench() -> None:
    """Measure what this machine can do, and how much of it llmcore and its peers reach.

    [bold]Example[/bold]

    llmcore bench machine
    """


@app.command()
def machine(
    threads: Annotated[
        str | None, typer.Option(help="How many, as 1,2,4; 1 and all if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="For each rate.")] = 0.5,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Show the ceilings that no program on this machine can exceed.

    Multiply-adds on registers alone, two operations each, in fp32, bfloat16 and int8, and the bytes
    that all threads together read from their caches and from memory. Of a GPU, large products, and
    what it reads and writes.

    [bold]Example[/bold]

    llmcore bench machine --threads 1,2
    """
    from llmcore.bench import measure_ceilings
    from llmcore.bench.machine import measure_gpu

    with usage_errors():
        counts = None if threads is None else _numbers("threads", threads)
        found = (
            [measure_gpu(device)] if _on_gpu(device) else measure_ceilings(counts, seconds=seconds)
        )
    if as_json:
        print(json.dumps([dataclasses.asdict(ceilings) for ceilings in found], indent=2))
        return
    titles = ("fp32 GFLOP/s", "bfloat16", "int8 GOP/s", "cache GB/s", "memory GB/s")
    print(f"{'threads':>7}" + "".join(f"{title:>14}" for title in titles))
    for one in found:
        threads_used, *rates, _ = dataclasses.astuple(one)
        print(f"{threads_used:7}" + "".join(f"{rate / 1e9:14.1f}" for rate in rates))


@app.command()
def train(
    model: Annotated[str, typer.Option(help="Name of a preset, such as gpt2.")] = "gpt2",
    batch: Annotated[int, typer.Option(help="Sequences, or pairs, a step.")] = 4,
    length: Annotated[int, typer.Option(help="Tokens of each.")] = 64,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    vocab_size: VocabularyOption = None,
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 1.0,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    json_file: FileOption = None,
    plot: PlotOption = None,
) -> None:
    """Time training steps, beside torch and torch-compile.

    A decoder predicts the next token, an encoder what is masked, both stacks a target as long as
    its source; no dropout; clipping and AdamW. The first loss of all engines is the same.
    The ratio is llmcore's rate over the engine's.

    [bold]Example[/bold]

    llmcore bench train --model gpt2 --batch 4 --length 64 --against torch,torch-compile
    """
    from llmcore.bench.workloads import Training

    with usage_errors():
        workload = Training(model, batch, length, dtype, vocab_size)
    _run([workload], against, rounds, seconds, threads, json_file, plot, device)


@app.command()
def generate(
    model: Annotated[str, typer.Option(help="Name of a preset, such as gpt2.")] = "gpt2",
    prompt: Annotated[int, typer.Option(help="Tokens of each prompt or source.")] = 32,
    new: Annotated[int, typer.Option(help="Tokens to generate.")] = 128,
    batch: Annotated[str, typer.Option(help="Prompts at a time, as 1,8.")] = "1",
    beams: Annotated[int, typer.Option(help="Of the search; 1: greedy.")] = 1,
    prefill: Annotated[int, typer.Option(help="Tokens of the long prompt.")] = 512,
    weights: Annotated[
        str, typer.Option(help="float32, bfloat16, int8, int4; several one after the other.")
    ] = "float32",
    vocab_size: VocabularyOption = None,
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 1.0,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    json_file: FileOption = None,
    plot: PlotOption = None,
) -> None:
    """Time loading, prefill and decoding, beside transformers, ctranslate2 and llama.cpp.

    Weights are random, and written once for all. Loading, without imports, ends with the first
    token; prefill is the first token after a long prompt, decoding all tokens after the first. A
    model of two stacks is timed on whole translations.

    [bold]Example[/bold]

    llmcore bench generate --batch 1,8 --weights float32,int8 --against ctranslate2,llama.cpp
    """
    from llmcore.bench.workloads import Generation

    with usage_errors():
        batches = _numbers("batch", batch)
        workloads = [
            Generation(model, prompt, new, batches, prefill, beams, kind, vocab_size)
            for kind in _words(weights) or [weights]
        ]
    _run(workloads, against, rounds, seconds, threads, json_file, plot, device)


@app.command()
def ops(
    only: Annotated[
        str | None,
        typer.Option(
            help="Of matmul, matmul_bfloat16, packed, attention, layer_norm, cross_entropy, adamw; "
            "all if not given."
        ),
    ] = None,
    rows: Annotated[str, typer.Option(help="Of the products, as 256,512,1024.")] = "256",
    lengths: Annotated[str, typer.Option(help="Of attention's sequences.")] = "64,1024",
    against: AgainstOption = "",
    rounds: RoundsOption = 5,
    seconds: SecondsOption = 0.2,
    threads: ThreadsOption = None,
    json_file: FileOption = None,
    plot: PlotOption = None,
) -> None:
    """Time GPT-2's operations by themselves, beside torch, onnxruntime and numpy.

    The three forms of a linear layer's product (y = x Wᵀ, dx = dy W, dW += dyᵀ x), in float32 and
    in bfloat16, y of packed weights, causal attention, layer norm, cross-entropy, AdamW; +grad is
    forward and backward together.

    [bold]Example[/bold]

    llmcore bench ops --only matmul,attention --rows 256,1024 --against torch
    """
    from llmcore.bench.operations import FAMILIES, Operations

    with usage_errors():
        families = tuple(FAMILIES) if only is None else _words(only)
        workload = Operations(families, _numbers("rows", rows), _numbers("lengths", lengths))
    _run([workload], against, rounds, seconds, threads, json_file, plot)


def _run(
    workloads: Sequence[Workload],
    against: str,
    rounds: int,
    seconds: float,
    threads: str | None,
    json_file: Path | None,
    plot: Path | None,
    device: str = "cpu",
) -> None:
    """Hold a contest for each workload and number of threads; show them all."""
    from rich.console import Console

    import llmcore
    from llmcore.atomic import write_atomically
    from llmcore.bench import measure_ceilings
    from llmcore.bench.engines import contestants
    from llmcore.bench.machine import measure_gpu
    from llmcore.bench.plot import draw
    from llmcore.bench.report import hold_contest, report
    from llmcore.bench.turns import check_settings

    for file in (json_file, plot):
        if file is not None and not file.absolute().parent.is_dir():
            refuse(f"there is no directory {file.parent} to write {file.name} to")
    if plot is not None and plot.suffix != ".svg":
        refuse(f"--plot must name an SVG file, such as bench.svg, got {plot}")
    peers = _words(against)
    with usage_errors():
        counts = [llmcore.get_num_threads()] if threads is None else _numbers("threads", threads)
        where = {"device": device} if _on_gpu(device) else {}
        # Mistakes are told before anything takes its time.
        contestants(workloads[0], peers, **where)
        for count in counts:
            check_settings(rounds=rounds, seconds=seconds, threads=count)
        limits = (
            [measure_gpu(device, count) for count in counts] if where else measure_ceilings(counts)
        )
        contests = [
            hold_contest(
                workload, peers, ceilings=ceilings, rounds=rounds, seconds=seconds, tell=_tell
            )
            for workload in workloads
            for ceilings in limits
        ]
    # Piped output has no width of its own: rows must not break.
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for contest in contests:
        console.print(contest.table())
        if contest.summaries():
            console.print(contest.summary_table())
        for engine, text in (*contest.agreements().items(), *contest.absences().items()):
            console.print(f"  {engine}: {text}", markup=False, soft_wrap=True)
    if json_file is not None:
        settings: dict[str, Any] = {"against": peers, "rounds": rounds, "seconds": seconds}
        settings["device"] = device
        text = json.dumps(report(contests, settings), indent=1) + "\n"
        write_atomically(json_file, text.encode())
    if plot is not None:
        write_atomically(plot, draw(contests).encode())
    if not any(contest.rows(m) for contest in contests for m in contest.workload.measures()):
        reasons = contests[0].absences()
        raise ConfigError("no engine could run: " + "; ".join(map(": ".join, reasons.items())))


def _on_gpu(device: str) -> bool:
    """Whether a device is one; DeviceError where it cannot be used."""
    from llmcore.model import check_computation

    check_computation(device, "float32")
    return device != "cpu"


def _tell(text: str) -> None:
    """Show what is happening, where somebody looks on."""
    if sys.stderr.isatty():
        print(text, file=sys.stderr)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{name} must be whole numbers, as 1,2,4, got {text!r}") from None
