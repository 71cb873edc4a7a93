"""Models as files: convert."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcore.cli.common import load_model
from llmcore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from llmcore.model import Transformer

_ADAPTER = "adapter_config.json"


def convert(
    source: Annotated[
        Path, typer.Argument(help="Any model directory llmcore reads, a run, or an adapter.")
    ],
    target: Annotated[Path, typer.Argument(help="Directory for the model.")],
    base: Annotated[
        Path | None,
        typer.Option(help="Model that an adapter belongs to; the one it names if not given."),
    ] = None,
    merge_lora: Annotated[
        bool, typer.Option("--merge-lora", help="Add adapters to the weights beside them.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a model that is there.")
    ] = False,
) -> None:
    """Write a model anew: one file of float32 weights, in the layout that transformers reads, too.

    [bold]Examples[/bold]

    llmcore convert downloads/sharded-model my-model

    llmcore convert out/lora/adapter my-model --merge-lora
    """
    from llmcore import checkpoint

    if checkpoint.exists(target) and not overwrite:
        raise CheckpointError(f"{target} already holds a model; replace it with --overwrite")
    model = _load(source, base)
    if merge_lora:
        if model.config.lora is None:
            raise ConfigError(f"{source} has no adapters; leave out --merge-lora")
        model.merge_lora()
    model.save_pretrained(target)
    print(f"{model.config.num_parameters():,} parameters in {target}")


def _load(source: Path, base: Path | None) -> Transformer:
    if not (source / _ADAPTER).exists():
        if base is not None:
            raise ConfigError(f"--base is for an adapter; {source} has no {_ADAPTER}")
        return load_model(source, "cpu", "float32", tokenizer=False)
    from llmcore.safetensors_io import read_json

    named = base or read_json(source / _ADAPTER).get("base_model_name_or_path")
    if not named:
        raise ConfigError(f"{source} does not name the model that it belongs to; give --base")
    model = load_model(Path(named), "cpu", "float32", tokenizer=False)
    model.load_adapter(source)
    return model
