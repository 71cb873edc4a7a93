"""Models as files: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmcore.cli.common import load_model
from llmcore.errors import CheckpointError


def convert(
    source: Annotated[Path, typer.Argument(help="Any model directory llmcore reads, or a run.")],
    target: Annotated[Path, typer.Argument(help="Directory for the model.")],
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Add adapters to the weights beside them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is there.")
    ] = False,
) -> None:
    """Write a model anew: one file of float32 weights, in the layout that transformers reads, too.

    [bold]Example[/bold]

    llmcore convert downloads/sharded-model my-model
    """
    from llmcore import checkpoint

    if checkpoint.exists(target) and not overwrite:
        raise CheckpointError(f"{target} already holds a model; replace it with --overwrite")
    model = load_model(source, "cpu", "float32", tokenizer=False)
    model.save_pretrained(target)
    print(f"{model.config.num_parameters():,} parameters in {target}")
