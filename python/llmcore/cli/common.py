"""What the commands share: options that several have, models by path, and words for mistakes."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from llmcore.errors import ConfigError

if TYPE_CHECKING:
    from llmcore.model import Transformer

# typer may carry its own copy of click; its usage errors are recognised by what they derive from.
UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

ModelArgument = Annotated[Path, typer.Argument(help="Checkpoint, or the directory of a run.")]


def known_device(device: str | None) -> str | None:
    """Refuse what names no device; whether it can be used is another question."""
    if device is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UsageError(f"--device must be cpu, cuda or cuda:<index>, got {device!r}")
    return device


def _known_format(dtype: str | None) -> str | None:
    from llmcore.quantized import WEIGHT_BITS

    if dtype is not None and dtype not in WEIGHT_BITS:
        raise UsageError(f"--dtype must be one of {', '.join(WEIGHT_BITS)}, got {dtype!r}")
    return dtype


DeviceOption = Annotated[str | None, typer.Option(help="cpu, or cuda.", callback=known_device)]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        help="Format to keep weights in: float32, bfloat16, int8, int4; else as stored.",
        callback=_known_format,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
JsonLinesOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a text instead of text.")
]


def complain(text: str) -> None:
    """Print one line on standard error."""
    print("llmcore: " + " ".join(text.split()), file=sys.stderr)


def sentence(error: Exception) -> str:
    """One line for any error: our own speak for themselves, others are named."""
    from llmcore.errors import LlmcoreError

    if isinstance(error, LlmcoreError):
        return "; ".join(line.strip() for line in str(error).splitlines()).replace(":; ", ": ")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory: lower batch_size or block_size, or use recompute"
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Blame the command line for settings that are wrong."""
    try:
        yield
    except ConfigError as error:
        text = "; ".join(error.problems) or sentence(error)
        # Options are named by their setting alone, tables by --set.
        raise UsageError(re.sub(r"\[(data|train)\] ", "", text)) from error


def refuse(text: str) -> NoReturn:
    """Raise the error of a command line that is wrong."""
    raise UsageError(text)


def default_device() -> str:
    """The device of LLMCORE_DEVICE, or the CPU."""
    import llmcore

    settings = llmcore.device_info().get("settings", {})
    return str(settings.get("LLMCORE_DEVICE") or "cpu")


def load_model(
    path: Path, device: str | None, dtype: str | None, *, tokenizer: bool = True
) -> Transformer:
    """The model of a checkpoint or a run.

    Args:
        path: as `llmcore.training.run_directory.find_checkpoint` takes it.
        device: None: `default_device`.
        dtype: as in `Transformer.from_pretrained`.
        tokenizer: whether it must have one.

    Raises:
        ConfigError: it has no tokenizer.
        CheckpointError: there is no model, or it is damaged.
    """
    from llmcore.model import Transformer
    from llmcore.training.run_directory import find_checkpoint

    directory = find_checkpoint(path)
    model = Transformer.from_pretrained(directory, device=device or default_device(), dtype=dtype)
    if tokenizer and model.tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer.json, so it takes and gives no text")
    return model
