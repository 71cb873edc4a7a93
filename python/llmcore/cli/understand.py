"""Asking models about texts: fill-mask, classify, embed, score, attend."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmcore.cli.common import (
    DeviceOption,
    DtypeOption,
    JsonLinesOption,
    ModelArgument,
    load_model,
    refuse,
)
from llmcore.cli.texts import BatchSizeOption, InputOption, TextOption, read_texts
from llmcore.errors import ConfigError, DataError
from llmcore.training.train_config import TrainConfig

if TYPE_CHECKING:
    from llmcore.uses.fill_mask import MaskFill


def fill_mask(
    model: ModelArgument,
    text: TextOption = None,
    file: InputOption = None,
    top_k: Annotated[int, typer.Option(help="How many tokens to tell.", min=1)] = 5,
    bidirectional: Annotated[
        bool,
        typer.Option("--bidirectional", help="For a decoder that was trained with masks, too."),
    ] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    r"""Tell what a masked language model puts in the place of the mask.

    [bold]Example[/bold]

    llmcore fill-mask out/bert --text "a dog \[MASK] in the snow" --top-k 3
    """
    texts = read_texts(text, file)
    loaded = load_model(model, device, dtype)

    def work(batch: Any) -> list[list[list[MaskFill]]]:
        found = loaded.fill_mask(list(batch), top_k, bidirectional=bidirectional)
        return [fills if isinstance(fills[0], list) else [fills] for fills in found]

    for asked, masks in texts.each(1, work):
        if as_json:
            fills = [[dataclasses.asdict(fill) for fill in mask] for mask in masks]
            print(json.dumps({"text": asked, "masks": fills}, ensure_ascii=False), flush=True)
            continue
        print(asked)
        for number, mask in enumerate(masks, start=1):
            if len(masks) > 1:
                print(f"  mask {number}")
            for fill in mask:
                print(f"  {fill.score:.4f}  {fill.token}  {fill.text}", flush=True)


def classify(
    model: ModelArgument,
    text: TextOption = None,
    file: InputOption = None,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Say which label each text has: a line with the label, its probability and the text.

    [bold]Example[/bold]

    llmcore classify out/reviews --text "a film that stays with you"
    """
    texts = read_texts(text, file)
    loaded = load_model(model, device, dtype)
    for asked, found in texts.each(batch_size, lambda batch: loaded.classify(list(batch))):
        if as_json:
            facts = {"text": asked, **dataclasses.asdict(found)}
            print(json.dumps(facts, ensure_ascii=False), flush=True)
        else:
            print(f"{found.label}\t{found.score:.4f}\t{asked}", flush=True)


def embed(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="NumPy file for the vectors, one row a text.")],
    text: TextOption = None,
    file: InputOption = None,
    pooling: Annotated[
        str, typer.Option(help="mean of all tokens, first, last, or the model's pooler.")
    ] = "mean",
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Make every vector one long.")
    ] = False,
    batch_size: BatchSizeOption = 32,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Turn each text into a vector.

    [bold]Example[/bold]

    llmcore embed out/bert --input sentences.txt --out vectors.npy --pooling mean
    """
    import io
    from typing import cast, get_args

    import numpy as np

    from llmcore.atomic import write_atomically
    from llmcore.uses.classify import Pooling

    if out.suffix != ".npy":
        refuse(f"--out must end in .npy, got {out}")
    if pooling not in get_args(Pooling):
        refuse(f"--pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}")
    texts = read_texts(text, file)
    loaded = load_model(model, device, dtype)

    def work(batch: Any) -> Any:
        return loaded.embed(list(batch), pooling=cast(Pooling, pooling), normalize=normalize)

    vectors = np.stack([vector for _, vector in texts.each(batch_size, work)])
    content = io.BytesIO()
    np.save(content, vectors)
    write_atomically(out, content.getvalue())
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers in {out}")


def score(
    model: ModelArgument,
    text: TextOption = None,
    file: InputOption = None,
    sources: Annotated[
        Path | None,
        typer.Option(help="Beside an encoder: file with the source of each text on its line."),
    ] = None,
    batch_size: BatchSizeOption = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonLinesOption = False,
) -> None:
    """Tell how likely a model finds texts: a line with perplexity, log-probability and the text.

    [bold]Example[/bold]

    llmcore score out/shakespeare-char --text "To be, or not to be" --text "Be to not or"
    """
    texts = read_texts(text, file)
    about = None if sources is None else iter(read_texts(None, sources).items)
    loaded = load_model(model, device, dtype)
    if about is None and loaded.config.kind == "encoder-decoder":
        raise ConfigError("an encoder-decoder model scores texts given sources: give --sources")

    def work(batch: Any) -> Any:
        if about is None:
            return loaded.score(list(batch))
        beside = [source for _, source in zip(batch, about, strict=False)]
        if len(beside) < len(batch):
            raise DataError(f"{sources} has fewer lines than there are texts")
        return loaded.score(list(batch), beside)

    for asked, found in texts.each(batch_size, work):
        if as_json:
            print(json.dumps({"text": asked, **dataclasses.asdict(found)}, ensure_ascii=False))
        else:
            print(f"{found.perplexity:.3f}\t{found.score:.3f}\t{asked}", flush=True)
    if about is not None and next(about, None) is not None:
        raise DataError(f"{sources} has more lines than there are texts")


def attend(
    text: Annotated[str, typer.Argument(help="What the model reads.")],
    model: Annotated[Path, typer.Option(help="Checkpoint, or the directory of a run.")] = Path(
        TrainConfig.out_dir
    ),
    target: Annotated[
        str | None,
        typer.Option(help="What an encoder-decoder is to say; what it does say if not given."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="A page (.html), or heat maps of one kind (.png).")
    ] = Path("attention.html"),
    layers: Annotated[
        str | None, typer.Option(help="Layers, such as 0,2; all if not given.")
    ] = None,
    heads: Annotated[str | None, typer.Option(help="Heads, such as 0,2; all if not given.")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Let a decoder go on so far, or a target be so long.", min=1),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help="For .png: encoder, decoder or cross; the last it has if not given."),
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
) -> None:
    """Draw what a model looks at, as a page for any browser.

    [bold]Examples[/bold]

    llmcore attend "To be, or not" --model out/shakespeare-char --max-new-tokens 20

    llmcore attend "ein Hund im Schnee" --model out/de-en --out dog.html
    """
    from typing import get_args

    from llmcore.uses.attention import MapKind
    from llmcore.uses.explain import explain
    from llmcore.viz import attention_png, save_attention_page

    if not text.strip():
        refuse("TEXT must not be empty")
    if out.suffix not in (".html", ".png"):
        refuse(f"--out must end in .html or .png, got {out}")
    if kind is not None and kind not in get_args(MapKind):
        refuse(f"--kind must be one of {', '.join(get_args(MapKind))}, got {kind!r}")
    chosen: dict[str, Any] = {
        "layers": _numbers("--layers", layers),
        "heads": _numbers("--heads", heads),
    }
    loaded = load_model(model, device, dtype)
    found = explain(loaded, text, target, **chosen, max_new_tokens=max_new_tokens)
    if out.suffix == ".html":
        save_attention_page(out, found.maps, title=text, next_tokens=found.next_tokens)
    else:
        by_kind = {one.kind: one for one in found.maps}
        wanted: Any = kind or found.maps[-1].kind
        if wanted not in by_kind:
            raise ConfigError(f"the model has no {wanted} attention; it has {', '.join(by_kind)}")
        drawn = by_kind[wanted]
        single = len(drawn.layers) == len(drawn.heads) == 1
        attention_png(
            out,
            drawn,
            layer=drawn.layers[0] if single else None,
            head=drawn.heads[0] if single else None,
        )
    print(f"{' and '.join(one.kind for one in found.maps)} attention in {out}")


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is not None and not re.fullmatch(r"\d+(,\d+)*", text):
        refuse(f"{option} takes numbers such as 0,2, got {text!r}")
    return None if text is None else [int(word) for word in text.split(",")]
