"""Benchmarks: what this machine can do."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer

from llmcore.cli.common import JsonOption, usage_errors

app = typer.Typer(rich_markup_mode="rich", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Measure what this machine can do.

    [bold]Example[/bold]

    llmcore bench machine
    """


@app.command()
def machine(
    threads: Annotated[
        str | None, typer.Option(help="How many, as 1,2,4; 1 and all if not given.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="For each rate.")] = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Show the ceilings that no program on this machine can exceed.

    fp32 multiply-adds on registers alone, two operations each, and the bytes that all threads
    together read from their caches and from memory.

    [bold]Example[/bold]

    llmcore bench machine --threads 1,2
    """
    from llmcore.bench import measure_ceilings
    from llmcore.errors import ConfigError

    with usage_errors():
        try:
            counts = None if threads is None else [int(word) for word in threads.split(",")]
        except ValueError:
            raise ConfigError(f"threads must be whole numbers, as 1,2,4, got {threads!r}") from None
        found = measure_ceilings(counts, seconds=seconds)
    if as_json:
        print(json.dumps([dataclasses.asdict(ceilings) for ceilings in found], indent=2))
        return
    print(f"{'threads':>7}{'GFLOP/s':>10}{'cache GB/s':>12}{'memory GB/s':>13}")
    for one in found:
        print(
            f"{one.threads:7}{one.flops / 1e9:10.1f}{one.cache_bytes_per_second / 1e9:12.1f}"
            f"{one.memory_bytes_per_second / 1e9:13.1f}"
        )
