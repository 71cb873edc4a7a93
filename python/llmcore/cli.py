"""The command line: llmcore train, eval, generate, tokenize, plan, doctor.

Imports happen inside the commands, so that ``llmcore --help`` is quick.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmcore.cli_options import given, options_from
from llmcore.errors import ConfigError
from llmcore.train_config import DataConfig, RunConfig, TrainConfig, merge, parse_overrides

if TYPE_CHECKING:
    from llmcore.generation_config import GenerationConfig
    from llmcore.model import Transformer
    from llmcore.tokenizer import Tokenizer

# typer may carry its own copy of click; its usage errors are recognised by what they derive from.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

app = typer.Typer(
    help="Train, evaluate and run Transformer language models on this machine.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ModelOption = Annotated[
    str | None,
    typer.Option(
        help="A preset (gpt-nano, gpt2, llama-tiny, …) or a checkpoint to start from; gpt-nano if"
        " not given."
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="TOML file with the tables model, data and train.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override any setting, for example model.num_heads=8; repeatable."),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="Number format of the computation: float32.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of this process if not given.

    Returns:
        The exit status: 0 done, 2 the command line is wrong, 128 + n stopped by signal n,
        1 anything else, with one line on standard error (and the traceback with ``--debug``).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        given_words = [word for word in words if word != "--debug"] or ["--help"]
        status = app(given_words, "llmcore", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except _UsageError as error:
        usage = cast(typer.BadParameter, error)
        where = usage.ctx.command_path if usage.ctx else "llmcore"
        _complain(f"{usage.format_message()} (see {where} --help)")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped")
        return 130
    except BrokenPipeError:
        # Whoever read our output has closed it (llmcore … | head); nobody is left to complain to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
        _complain(_sentence(error))
        return 1


def _complain(text: str) -> None:
    print("llmcore: " + " ".join(text.split()), file=sys.stderr)


def _sentence(error: Exception) -> str:
    """One line for any error: our own speak for themselves, others are named."""
    from llmcore.errors import LlmcoreError

    if isinstance(error, LlmcoreError):
        return "; ".join(line.strip() for line in str(error).splitlines()).replace(":; ", ": ")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if isinstance(error, MemoryError):
        return "out of memory: lower batch_size or block_size, or use recompute"
    return f"unexpected {type(error).__name__}: {error} (--debug shows where)"


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
    """Train, evaluate and run Transformer language models on this machine."""


@app.command()
@options_from(Data=DataConfig, Training=TrainConfig)
def train(
    model: ModelOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    **settings: Any,
) -> int:
    """Train a language model. Without options: a small one on Shakespeare, in minutes.

    [bold]Examples[/bold]

    llmcore train

    llmcore train --data notes.txt --tokenizer bpe --vocab-size 4096 --out-dir out/notes

    llmcore train --resume --out-dir out/notes
    """
    run = _run_config(model, config, overrides, settings)
    from llmcore.assemble import build_trainer

    trainer = build_trainer(run, device=device or _default_device(), dtype=dtype)
    result = trainer.fit()
    if result.signal:
        return 128 + result.signal
    if run.train.sample_tokens and trainer.tokenizer is not None:
        from llmcore.generation_config import GenerationConfig

        options = GenerationConfig(
            max_new_tokens=run.train.sample_tokens,
            temperature=0.8,
            top_k=200,
            seed=run.train.seed,
            overflow="slide",
        )
        print("\nA sample:\n")
        _print_stream(cast("Transformer", trainer.model), "", options)
    return 0


def _first_tokens(tokenizer: Tokenizer) -> list[int]:
    """What a text begins with: the token between documents, a line break, or any token."""
    candidates = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.token_to_id("\n"), 0)
    return [next(token for token in candidates if token is not None)]


def _run_config(
    model: str | None, file: Path | None, overrides: list[str] | None, options: dict[str, Any]
) -> RunConfig:
    """Merge, from weak to strong: the run that is resumed, the TOML file, the options.

    Raises:
        ConfigError: the file or the stored run is wrong.
        click.UsageError: the options are.
    """
    from llmcore.train_config import read_toml

    stated = {
        "data": given(options, DataConfig),
        "train": given(options, TrainConfig),
        "model": {"name": model} if model else {},
    }
    below = read_toml(file) if file else {}
    try:
        RunConfig.from_dict(below)
    except ConfigError as error:  # the file's fault, and said as such
        raise ConfigError(f"{file}: {'; '.join(error.problems)}") from error
    with _usage_errors():
        stated = merge(stated, parse_overrides(overrides or []))
        merged = merge(below, stated)
        first = RunConfig.from_dict(merged)
    if first.train.resume:
        from llmcore.assemble import run_to_resume

        before = run_to_resume(Path(first.train.out_dir), merged)
        below = merge(before, below, {"train": {"resume": True, "overwrite": False}})
    with _usage_errors():
        run = RunConfig.from_dict(merge(below, stated))
        _check_model(run)
    return run


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Blame the command line for settings that are wrong."""
    try:
        yield
    except ConfigError as error:
        text = "; ".join(error.problems) or _sentence(error)
        # Options are named by their setting alone, tables by --set.
        raise _UsageError(re.sub(r"\[(data|train)\] ", "", text)) from error


def _check_model(run: RunConfig) -> None:
    """Find misspelt presets and fields before anything large is read."""
    from llmcore.assemble import check_model_name, is_directory, is_whole
    from llmcore.config import ModelConfig

    name = str(run.model["name"])
    fields = {key: value for key, value in run.model.items() if key != "name"}
    if is_whole(fields):
        ModelConfig.from_dict(fields)
        return
    check_model_name(name)
    if not is_directory(name):
        ModelConfig.preset(name, **fields)


def _default_device() -> str:
    import llmcore

    settings = llmcore.device_info().get("settings", {})
    return str(settings.get("LLMCORE_DEVICE") or "cpu")


def _print_stream(model: Transformer, prompt: str, options: GenerationConfig) -> None:
    """Print a prompt, or nothing for a text from its beginning, and go on as it is generated."""
    from llmcore.generate import stream

    assert model.tokenizer is not None
    # A prompt that cannot be encoded is told before anything is printed.
    tokens = stream(model, [prompt or _first_tokens(model.tokenizer)], options)
    print(prompt, end="", flush=True)
    for token in tokens:
        print(token.text, end="", flush=True)
    print()


@app.command("eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or the directory of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Text file or shards; the validation data of the run if not given."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks in a batch.", min=1)] = 12,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens in a block; as many as the model takes.", min=1)
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches; 0 takes all the data.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Measure a model's loss and perplexity on text.

    [bold]Example[/bold]

    llmcore eval out/shakespeare-char --data notes.txt
    """
    from llmcore.assemble import evaluation_data, find_checkpoint
    from llmcore.evaluate import evaluate as measure
    from llmcore.model import Transformer
    from llmcore.objectives import CausalLM

    directory = find_checkpoint(model)
    dataset = evaluation_data(directory, data)
    loaded = Transformer.from_pretrained(directory, device=device or _default_device(), dtype=dtype)
    dataset.check_vocab(loaded.config.vocab_size)
    size = block_size or loaded.config.max_positions
    objective = CausalLM()
    blocks = dataset.eval_batches(size, batch_size, batches or None)
    result = measure(loaded, (objective(ids, lengths) for ids, lengths in blocks))
    if as_json:
        facts = {"loss": result.loss, "perplexity": result.perplexity, "tokens": result.targets}
        print(json.dumps({**facts, "model": str(directory), "data": dataset.name}))
    else:
        print(
            f"loss {result.loss:.4f}  perplexity {result.perplexity:.3f}"
            f"  over {result.targets:,.0f} tokens of {dataset.name}"
        )


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or the directory of a run.")] = Path(
        TrainConfig.out_dir
    ),
    prompt: Annotated[
        str, typer.Option(help="The text to continue; a text of its own if not given.")
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 200,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0)] = 0.8,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest; 0 all.", min=0)] = 0,
    top_p: Annotated[
        float, typer.Option(help="Only the likeliest that make up p.", min=0.0, max=1.0)
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(help="Only those p times as likely as the best.", min=0.0, max=1.0)
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes repetition less likely.", min=0.0)
    ] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text at which to stop; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
) -> None:
    """Continue a text with a trained model.

    [bold]Example[/bold]

    llmcore generate out/shakespeare-char --prompt "ROMEO:" --max-new-tokens 300
    """
    from llmcore.assemble import find_checkpoint
    from llmcore.generation_config import GenerationConfig
    from llmcore.model import Transformer

    with _usage_errors():
        options = GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop_strings=stop or (),
            seed=seed,
            overflow="slide",
        )
    directory = find_checkpoint(model)
    loaded = Transformer.from_pretrained(directory, device=device or _default_device(), dtype=dtype)
    if loaded.tokenizer is None:
        raise ConfigError(f"{directory} has no tokenizer.json, so it takes and gives no text")
    _print_stream(loaded, prompt, options)


@app.command()
def tokenize(
    inputs: Annotated[list[Path], typer.Argument(help="Text, .jsonl or .parquet files.")],
    out: Annotated[Path, typer.Option(help="Directory for the shards.")],
    tokenizer: Annotated[
        str, typer.Option(help="bpe, char, wordpiece, unigram (trained on the input), or a path.")
    ] = "bpe",
    vocab_size: Annotated[
        int | None,
        typer.Option(help="Size of a vocabulary that is trained; 4096 if not given.", min=1),
    ] = None,
    validation_fraction: Annotated[
        float, typer.Option(help="Share kept for validation.", min=0.0, max=0.9)
    ] = 0.0,
    text_field: Annotated[str, typer.Option(help="Key or column that holds the text.")] = "text",
    workers: Annotated[
        int | None, typer.Option(help="Processes; one per thread llmcore uses.", min=1)
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards that are there.")
    ] = False,
) -> None:
    """Turn text into shards of token ids that training maps into memory.

    [bold]Example[/bold]

    llmcore tokenize books/*.txt --tokenizer bpe --vocab-size 8192 --out shards
    """
    from rich.progress import Progress, TextColumn, TimeElapsedColumn

    import llmcore
    from llmcore.assemble import choose_tokenizer
    from llmcore.documents import list_files
    from llmcore.log import format_bytes, format_count
    from llmcore.tokenizing import tokenize_files

    files = list_files(inputs)
    chosen = choose_tokenizer(DataConfig(tokenizer=tokenizer, vocab_size=vocab_size), files)
    total = sum(file.stat().st_size for file in files)
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[tokens]}"))
    with Progress(*columns, TimeElapsedColumn(), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("tokenizing", total=total, tokens="")

        def show(documents: int, read: int, tokens: int) -> None:
            bar.update(task, completed=read, tokens=f"{format_count(tokens)} tokens")

        result = tokenize_files(
            files,
            chosen,
            out,
            workers=workers or llmcore.get_num_threads(),
            text_field=text_field,
            val_fraction=validation_fraction,
            overwrite=overwrite,
            progress=show,
        )
    counts = ", ".join(f"{count:,} tokens for {name}" for name, count in result.tokens.items())
    print(
        f"{format_bytes(total)} of text became {counts} (vocabulary {chosen.vocab_size}) in {out}"
    )


@app.command()
@options_from(Training=TrainConfig)
def plan(
    model: ModelOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Tell memory and time of a training run without starting it.

    [bold]Example[/bold]

    llmcore plan --model gpt2 --batch-size 4 --block-size 256 --steps 1000
    """
    run = _run_config(model, config, overrides, settings)
    from llmcore.assemble import build_model_config
    from llmcore.plan import make_plan

    cost = make_plan(build_model_config(run.model, tokenizer=None, train=run.train), run.train)
    if as_json:
        print(
            json.dumps({**vars(cost), "memory_bytes": cost.memory_bytes, "seconds": cost.seconds})
        )
    else:
        print("\n".join(cost.describe()))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine and installation offer, and why something is not there.

    [bold]Example[/bold]

    llmcore doctor --json
    """
    from llmcore.doctor import examine, report

    facts = examine()
    print(json.dumps(facts, indent=2) if as_json else report(facts))


if __name__ == "__main__":
    sys.exit(main())
