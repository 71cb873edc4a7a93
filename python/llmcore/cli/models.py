"""Models as files: convert, quantize."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmcore.cli.common import load_model, refuse
from llmcore.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from llmcore.model import Transformer

_ADAPTER = "adapter_config.json"
_FORMATS = ("int8", "int4", "bfloat16")
_NEW_TOKENS = 64

OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace a model that is there.")
]


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
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model anew: one file of float32 weights, in the layout that transformers reads, too.

    [bold]Examples[/bold]

    llmcore convert downloads/sharded-model my-model

    llmcore convert out/lora/adapter my-model --merge-lora
    """
    _check_target(target, overwrite)
    model = _load(source, base)
    if merge_lora:
        if model.config.lora is None:
            raise ConfigError(f"{source} has no adapters; leave out --merge-lora")
        model.merge_lora()
    model.save_pretrained(target)
    print(f"{model.config.num_parameters():,} parameters in {target}")


def quantize(
    source: Annotated[Path, typer.Argument(help="Any model directory llmcore reads, or a run.")],
    target: Annotated[Path, typer.Argument(help="Directory for the model.")],
    format: Annotated[str, typer.Option(help="int8, int4 or bfloat16.")] = "int8",
    text: Annotated[
        Path | None,
        typer.Option(help="Text, best one the model has not seen, to tell the perplexity of."),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model with its matrices rounded, and tell size and speed before and after.

    The speed is that of greedy decoding, of decoders alone. With --text, so is the perplexity.

    [bold]Example[/bold]

    llmcore quantize out/shakespeare-char shakespeare-int4 --format int4 --text notes.txt
    """
    from llmcore.hf_weights import weight_files
    from llmcore.training.log import format_bytes
    from llmcore.training.run_directory import find_checkpoint

    if format not in _FORMATS:
        refuse(f"--format must be one of {', '.join(_FORMATS)}, got {format!r}")
    _check_target(target, overwrite)
    directory = find_checkpoint(source)
    words = text.read_text(encoding="utf-8") if text else None
    model = load_model(directory, "cpu", None, tokenizer=words is not None)
    if words is not None and model.config.kind != "decoder":
        raise ConfigError(f"--text is for a decoder; {source} is an {model.config.kind}")
    if model.dtype == format:
        raise ConfigError(f"{source} is {format} already")
    names, before = (model.dtype, format), _measure(model, words)
    del model  # the memory of one model at a time
    model = load_model(directory, "cpu", format, tokenizer=False)
    model.save_pretrained(target)
    after = _measure(model, words)
    sizes = [sum(f.stat().st_size for f in weight_files(d)) for d in (directory, target)]
    print(f"{'':<12}{names[0]:>12}{names[1]:>12}")
    print(f"{'size':<12}" + "".join(f"{format_bytes(size):>12}" for size in sizes))
    for name, value in before.items():
        print(f"{name:<12}{value:12,.3f}{after[name]:12,.3f}")


def _measure(model: Transformer, text: str | None) -> dict[str, float]:
    """What can be told of a decoder: the perplexity of a text, tokens a second."""
    found: dict[str, float] = {}
    if text is not None:
        found["perplexity"] = model.score([text])[0].perplexity
        if math.isnan(found["perplexity"]):
            raise ConfigError("--text must be two tokens long at least")
    if model.config.kind != "decoder":
        return found
    from llmcore.generation_config import GenerationConfig

    new = min(_NEW_TOKENS, model.config.max_positions - 1)
    options = GenerationConfig(max_new_tokens=new, min_new_tokens=new, stop_ids=[])
    seconds = math.inf
    for _ in range(3):
        start = time.perf_counter()
        model.generate([[0]], options)
        seconds = min(seconds, time.perf_counter() - start)
    return {**found, "tokens/s": new / seconds}


def _check_target(target: Path, overwrite: bool) -> None:
    from llmcore import checkpoint

    if checkpoint.exists(target) and not overwrite:
        raise CheckpointError(f"{target} already holds a model; replace it with --overwrite")


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
