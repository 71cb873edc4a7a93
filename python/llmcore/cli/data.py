"""Data: tokenize."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmcore.cli.common import usage_errors


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
    from llmcore.data.documents import list_files
    from llmcore.data.tokenizing import tokenize_files
    from llmcore.training.log import format_bytes, format_count
    from llmcore.training.run_data import check_tokenizer_name, choose_tokenizer

    with usage_errors():
        check_tokenizer_name(tokenizer)
    files = list_files(inputs)
    chosen = choose_tokenizer(tokenizer, files, vocab_size)
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
