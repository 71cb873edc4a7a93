"""Writing: generate, translate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmcore.cli.common import (
    DeviceOption,
    DtypeOption,
    ModelArgument,
    load_model,
    refuse,
    usage_errors,
)
from llmcore.cli.texts import BatchSizeOption, InputOption, TextOption, read_texts
from llmcore.errors import ConfigError
from llmcore.training.train_config import TrainConfig

if TYPE_CHECKING:
    from llmcore.generate import GenerationResult
    from llmcore.generation_config import GenerationConfig
    from llmcore.model import Transformer

LengthPenaltyOption = Annotated[
    float, typer.Option(help="Of beam search: above 0 favours long texts, below 0 short ones.")
]
NoRepeatOption = Annotated[
    int, typer.Option(help="No n-gram of this size occurs twice; 0 no limit.", min=0)
]
CacheDtypeOption = Annotated[
    str | None,
    typer.Option(
        help="How keys and values of the text so far are kept: float32, bfloat16 or int8."
    ),
]
NBestOption = Annotated[int, typer.Option(help="Best texts to give, at most --num-beams.", min=1)]


def generate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or the directory of a run.")] = Path(
        TrainConfig.out_dir
    ),
    prompt: Annotated[
        str,
        typer.Option(help="The text to continue, a text of its own if not given; or the source."),
    ] = "",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens to add at most.", min=1)] = 200,
    temperature: Annotated[
        float | None,
        typer.Option(help="0 is greedy; 0.8 if not given, but for beams.", min=0.0),
    ] = None,
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
    no_repeat_ngram_size: NoRepeatOption = 0,
    num_beams: Annotated[
        int, typer.Option(help="Texts grown side by side: beam search.", min=1)
    ] = 1,
    length_penalty: LengthPenaltyOption = 1.0,
    n_best: NBestOption = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text at which to stop; repeatable.")
    ] = None,
    speculate: Annotated[
        str | None,
        typer.Option(
            help="Guess several tokens at a time, which changes the time and not the text: ngram, "
            "from the text before; or draft, by --draft-model."
        ),
    ] = None,
    draft_model: Annotated[
        Path | None, typer.Option(help="A smaller model of the same vocabulary, which guesses.")
    ] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option(help="Guesses at a time at most.", min=1)
    ] = None,
    draft_ngram: Annotated[
        int | None, typer.Option(help="Longest run of tokens looked up in the text before.", min=1)
    ] = None,
    cache_dtype: CacheDtypeOption = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Continue a text with a trained model.

    [bold]Examples[/bold]

    llmcore generate out/shakespeare-char --prompt "ROMEO:" --max-new-tokens 300

    llmcore generate out/shakespeare-char --prompt "ROMEO:" --num-beams 4 --n-best 2

    llmcore generate out/large --prompt "Once upon a time" --draft-model out/small
    """
    from llmcore.generation_config import GenerationConfig

    _check_n_best(n_best, num_beams)
    draws: dict[str, Any] = {
        "top_k": top_k or None,
        "top_p": top_p if top_p != 1 else None,
        "min_p": min_p or None,
    }
    guesses: dict[str, Any] = {
        "speculate": "draft" if draft_model and not speculate else speculate,
        "num_draft_tokens": num_draft_tokens,
        "draft_ngram": draft_ngram,
    }
    if num_beams == 1:
        temperature = 0.8 if temperature is None else temperature
    with usage_errors():
        options = GenerationConfig(
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            **draws,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_beams=num_beams,
            length_penalty=length_penalty,
            num_return_sequences=n_best,
            stop_strings=stop or (),
            **{name: value for name, value in guesses.items() if value is not None},
            cache_dtype=cast(Any, cache_dtype),
            seed=seed,
            overflow="slide" if num_beams == 1 else "stop",
        )
    if options.speculate == "draft" and not draft_model:
        refuse("--speculate draft needs a --draft-model")
    loaded = load_model(model, device, dtype)
    draft = load_model(draft_model, device, dtype, tokenizer=False) if draft_model else None
    if loaded.config.kind == "encoder-decoder" and not prompt.strip():
        raise ConfigError("an encoder-decoder model writes about a source: give it as --prompt")
    if num_beams == 1:
        print_stream(loaded, prompt, options, draft)
    else:
        _print_best(loaded, prompt, options)


def translate(
    model: ModelArgument,
    text: TextOption = None,
    file: InputOption = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File for the translations, written as they come; else printed."),
    ] = None,
    num_beams: Annotated[int, typer.Option(help="Width of the beam search.", min=1)] = 4,
    length_penalty: LengthPenaltyOption = 1.0,
    no_repeat_ngram_size: NoRepeatOption = 0,
    n_best: NBestOption = 1,
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens of a translation at most.", min=1)
    ] = 256,
    source_prefix: Annotated[
        str, typer.Option(help='Set before each text, such as "translate English to German: ".')
    ] = "",
    target_language: Annotated[
        str | None, typer.Option(help="Token that translations begin with, such as de_DE.")
    ] = None,
    batch_size: BatchSizeOption = 32,
    cache_dtype: CacheDtypeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Translate texts with an encoder-decoder model, a line for each, in order.

    Empty lines stay empty. With --n-best, each line is "number ||| translation ||| score", where
    the number is that of the text, from 0.

    [bold]Examples[/bold]

    llmcore translate out/de-en --text "Ein Hund spielt im Schnee."

    llmcore translate out/de-en --input test.de --output test.out --batch-size 64
    """
    from llmcore.generation_config import GenerationConfig
    from llmcore.uses.translate import translations

    _check_n_best(n_best, num_beams)
    with usage_errors():
        options = GenerationConfig(
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
            num_return_sequences=n_best,
            cache_dtype=cast(Any, cache_dtype),
        )
    texts = read_texts(text, file)
    loaded = load_model(model, device, dtype)

    def work(batch: Sequence[str]) -> list[list[GenerationResult]]:
        found = translations(loaded, list(batch), options, source_prefix, target_language)
        return [[best, *best.alternatives] for best in found]

    with open(output, "w", encoding="utf-8") if output else nullcontext(sys.stdout) as out:
        blank: list[GenerationResult] = []
        for number, (_, found) in enumerate(texts.each(batch_size, work, blank=blank)):
            if n_best == 1:
                print(_line(found[0]) if found else "", file=out, flush=True)
            else:
                for one in found:
                    print(f"{number} ||| {_line(one)} ||| {one.score:.4f}", file=out, flush=True)


def _check_n_best(n_best: int, num_beams: int) -> None:
    if n_best > num_beams:
        refuse(f"--n-best must be at most --num-beams, {num_beams}, got {n_best}")


def _line(result: GenerationResult) -> str:
    """The text of a result on one line, as its number counts lines."""
    return " ".join(result.text.split())


def _print_best(model: Transformer, prompt: str, options: GenerationConfig) -> None:
    [best] = model.generate(_prompts(model, prompt), options)
    results = [best, *best.alternatives]
    for number, result in enumerate(results, start=1):
        if len(results) > 1:
            print(f"{number}. score {result.score:.4f}")
        if model.config.right_to_left:
            print(result.text + prompt)
        else:
            between = "\n" if model.config.kind == "encoder-decoder" else ""
            print(prompt, result.text, sep=between)


def print_stream(
    model: Transformer,
    prompt: str,
    options: GenerationConfig,
    draft_model: Transformer | None = None,
) -> None:
    """Print a prompt, or nothing for a text from its beginning, and go on as it is generated.

    What a model writes about a source follows on a line of its own; what one writes from right to
    left stands before the prompt, and is known at the end only.
    """
    prompts = _prompts(model, prompt)
    if model.config.right_to_left:
        [result] = model.generate(prompts, options, draft_model=draft_model)
        print(result.text + prompt)
        return
    # A prompt that cannot be encoded is told before anything is printed.
    tokens = model.generate(prompts, options, stream=True, draft_model=draft_model)
    print(prompt, end="\n" if model.config.kind == "encoder-decoder" else "", flush=True)
    for token in tokens:
        print(token.text, end="", flush=True)
    print()


def _prompts(model: Transformer, prompt: str) -> list[str] | list[list[int]]:
    """A prompt, or what texts begin with: the token between documents, a line break, or any."""
    if prompt:
        return [prompt]
    assert model.tokenizer is not None
    tokenizer = model.tokenizer
    candidates = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.token_to_id("\n"), 0)
    return [[next(token for token in candidates if token is not None)]]
