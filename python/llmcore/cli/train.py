"""Training: train, eval, plan, and the settings of a run from options and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from llmcore.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    default_device,
    usage_errors,
)
from llmcore.cli.generate import print_stream
from llmcore.cli.options import given, options_from
from llmcore.errors import ConfigError
from llmcore.training.train_config import DataConfig, RunConfig, TrainConfig, merge, parse_overrides

if TYPE_CHECKING:
    from llmcore.config import ModelConfig
    from llmcore.model import Transformer

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


@options_from(Data=DataConfig, Training=TrainConfig)
def train(
    model: ModelOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    **settings: Any,
) -> int:
    """Train a language model. Without options: a small one on Shakespeare, in minutes.

    [bold]Examples[/bold]

    llmcore train

    llmcore train --data notes.txt --tokenizer bpe --vocab-size 4096 --out-dir out/notes

    llmcore train --resume --out-dir out/notes
    """
    run = run_config(model, config, overrides, settings)
    from llmcore.training.assemble import build_trainer

    trainer = build_trainer(run, device=device or default_device())
    result = trainer.fit()
    if result.signal:
        return 128 + result.signal
    prompt = trainer.sample_prompt() if run.train.sample_tokens else None
    if prompt is not None:
        from llmcore.generation_config import GenerationConfig

        options = GenerationConfig(
            max_new_tokens=run.train.sample_tokens,
            temperature=0.8,
            top_k=200,
            seed=run.train.seed,
            overflow="slide",
        )
        print("\nA sample:\n")
        print_stream(cast("Transformer", trainer.model), prompt, options)
    return 0


def evaluate(
    model: Annotated[Path, typer.Argument(help="Checkpoint, or the directory of a run.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Text, TSV or JSONL file or shards; the validation data of the run if not given."
        ),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="File whose lines are the targets of those of the data.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="What to measure; the objective of the run if not given."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Blocks or examples in a batch.", min=1)] = 12,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens in a block; as many as the model takes.", min=1)
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches; 0 takes all the data.", min=0)] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's loss and perplexity on data, by the objective it was trained with.

    [bold]Example[/bold]

    llmcore eval out/shakespeare-char --data notes.txt
    """
    from llmcore.model import Transformer
    from llmcore.training.evaluate import evaluate as measure
    from llmcore.training.feed import eval_batches
    from llmcore.training.run_data import evaluation_data, evaluation_settings
    from llmcore.training.run_directory import find_checkpoint
    from llmcore.training.tasks import block_frame, check_objective, make_objective

    directory = find_checkpoint(model)
    with usage_errors():
        settings = evaluation_settings(directory, objective)
    dataset = evaluation_data(directory, data, target, settings)
    loaded = Transformer.from_pretrained(directory, device=device or default_device(), dtype=dtype)
    dataset.check_vocab(loaded.config.vocab_size)
    measured = make_objective(settings, loaded.config, loaded.tokenizer, dataset)
    check_objective(measured, loaded.config, dataset)
    size = block_size or loaded.config.max_positions
    result = measure(
        loaded,
        eval_batches(
            dataset,
            measured,
            block_size=size,
            batch_size=batch_size,
            max_batches=batches,
            frame=block_frame(measured, loaded.tokenizer),
        ),
    )
    if as_json:
        facts = {"loss": result.loss, "perplexity": result.perplexity, "tokens": result.targets}
        print(json.dumps({**facts, "model": str(directory), "data": dataset.name}))
    else:
        print(
            f"loss {result.loss:.4f}  perplexity {result.perplexity:.3f}"
            f"  over {result.targets:,.0f} tokens of {dataset.name}"
        )


@options_from(Training=TrainConfig)
def plan(
    model: ModelOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Tell memory and time of a training run without starting it.

    What it takes of a GPU is told where there is none, too.

    [bold]Examples[/bold]

    llmcore plan --model gpt2 --batch-size 4 --block-size 256 --steps 1000

    llmcore plan --model gpt2 --batch-size 64 --block-size 1024 --dtype bfloat16 --device cuda
    """
    run = run_config(model, config, overrides, settings)
    from llmcore.training.plan import find_shortages, make_plan

    architecture = _architecture(run)
    device = device or default_device()
    cost = make_plan(architecture, run.train, device=device)
    if as_json:
        print(
            json.dumps({**vars(cost), "memory_bytes": cost.memory_bytes, "seconds": cost.seconds})
        )
    else:
        print("\n".join(cost.describe()))
        for shortage in find_shortages(architecture, run.train, ".", loaded=False, device=device):
            print(f"warning    {shortage}")


@options_from(Training=TrainConfig)
def tune(
    model: ModelOption = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
    **settings: Any,
) -> None:
    """Time a GPU's matrix products for a training run, and remember the fastest on this machine.

    Later runs of the same shapes take them. Without this, or where LLMCORE_CACHE_DIR is off, it is
    cuBLASLt's own first choice. The file is $LLMCORE_CACHE_DIR/products-…, by default in
    ~/.cache/llmcore; delete it to forget.

    [bold]Example[/bold]

    llmcore tune --model gpt2 --batch-size 64 --block-size 1024 --dtype bfloat16
    """
    run = run_config(model, config, overrides, settings)
    from llmcore import _core
    from llmcore.training import tune as tuner

    where = device or default_device()
    where = "cuda" if where == "cpu" and device is None else where
    architecture = _architecture(run)
    tuned = tuner.tune(architecture, run.train, where)
    choices = _core.product_choices(where)
    if as_json:
        print(json.dumps({"timed": tuned.timed, "choices": choices}))
        return
    print(f"{tuned.timed} products were timed, {len(choices) - tuned.timed} were known before")
    for product, choice in choices.items():
        print(f"  {product}: algorithm {choice}")


def _architecture(run: RunConfig) -> ModelConfig:
    """The model of a run whose data are not looked at, if its objective can train it."""
    from llmcore.training.assemble import build_model_config
    from llmcore.training.tasks import check_models, parse_objective

    architecture = build_model_config(run.model, tokenizer=None, train=run.train)
    if run.train.objective is not None:
        check_models(parse_objective(run.train.objective), architecture)
    return architecture


def run_config(
    model: str | None, file: Path | None, overrides: list[str] | None, options: dict[str, Any]
) -> RunConfig:
    """Merge, from weak to strong: the run that is resumed, the TOML file, the options.

    Raises:
        ConfigError: the file or the stored run is wrong.
        click.UsageError: the options are.
    """
    from llmcore.training.train_config import read_toml

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
    with usage_errors():
        stated = merge(stated, parse_overrides(overrides or []))
        merged = merge(below, stated)
        first = RunConfig.from_dict(merged)
    if first.train.resume:
        from llmcore.training.assemble import run_to_resume

        before = run_to_resume(Path(first.train.out_dir), merged)
        below = merge(before, below, {"train": {"resume": True, "overwrite": False}})
    with usage_errors():
        run = RunConfig.from_dict(merge(below, stated))
        _check_names(run)
    return run


def _check_names(run: RunConfig) -> None:
    """Find misspelt tokenizers, presets and fields before anything large is read."""
    from llmcore.config import ModelConfig
    from llmcore.training.assemble import check_model_name, is_whole
    from llmcore.training.run_data import check_tokenizer_name
    from llmcore.training.run_directory import is_directory

    if run.data.tokenizer is not None and not run.train.resume:  # a run has its own by then
        check_tokenizer_name(run.data.tokenizer)

    name = str(run.model["name"])
    fields = {key: value for key, value in run.model.items() if key != "name"}
    if is_whole(fields):
        ModelConfig.from_dict(fields)
        return
    check_model_name(name)
    if not is_directory(name):
        ModelConfig.preset(name, **fields)
