"""The command line: every command by name, and how mistakes are told.

Commands import what they need when they run, so that ``llmcore --help`` is quick.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

import typer

from llmcore.cli import bench, data, generate, machine, models, train, understand
from llmcore.cli.common import UsageError, complain, sentence

app = typer.Typer(
    help="Train, evaluate and run Transformers on this machine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train.train,
    "eval": train.evaluate,
    "generate": generate.generate,
    "translate": generate.translate,
    "fill-mask": understand.fill_mask,
    "classify": understand.classify,
    "embed": understand.embed,
    "score": understand.score,
    "attend": understand.attend,
    "tokenize": data.tokenize,
    "convert": models.convert,
    "quantize": models.quantize,
    "plan": train.plan,
    "tune": train.tune,
    "doctor": machine.doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(bench.app, name="bench")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of this process if not given.

    Returns:
        The exit status: 0 done, 2 the command line is wrong, 128 + n stopped by signal n,
        1 anything else, with one line on standard error (and the traceback with ``--debug``).
    """
    # NumPy's own products are not used, and the threads that OpenBLAS starts for them when it is
    # imported spin where ours are about to read a model.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        given_words = [word for word in words if word != "--debug"] or ["--help"]
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: complain(f"warning: {message}")
            status = app(given_words, "llmcore", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except UsageError as error:
        usage = cast(typer.BadParameter, error)
        where = usage.ctx.command_path if usage.ctx else "llmcore"
        # Where a group is given no command, Typer shows its help and has nothing to say.
        complain(f"{usage.format_message() or 'Missing command.'} (see {where} --help)")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        complain("stopped")
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it (llmcore … | head); nobody is left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        complain(sentence(error))
        return 1


def _show_version(wanted: bool) -> None:
    if wanted:
        import llmcore

        print(f"llmcore {llmcore.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; works anywhere.")
    ] = False,
) -> None:
    """Train, evaluate and run Transformers on this machine."""
