"""Filling masks: what a masked language model puts in the place of a hidden token."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.errors import ConfigError, DataError
from llmcore.uses.texts import Int32Array, check_length, encode_texts, is_single

if TYPE_CHECKING:
    from llmcore.model import Transformer


@dataclass(frozen=True)
class MaskFill:
    """One token that may stand where the mask is.

    Attributes:
        id: the token.
        token: how the vocabulary spells it; "" without a tokenizer.
        score: its probability.
        text: the whole text with the token in the mask's place; "" without a tokenizer.
    """

    id: int
    token: str
    score: float
    text: str


def fill_mask(
    model: Transformer, texts: Any, top_k: int, mask_id: int | None, bidirectional: bool
) -> Any:
    """Fill masks; see `Transformer.fill_mask`."""
    check_model(model, bidirectional)
    mask = _mask_id(model, mask_id)
    if not isinstance(top_k, Integral) or not 1 <= top_k <= model.config.vocab_size:
        raise ConfigError(
            f"fill_mask: top_k must be from 1 to the vocabulary's {model.config.vocab_size}, "
            f"got {top_k!r}"
        )
    rows = encode_texts(model, texts, "fill_mask", "texts")
    results = [
        _fill_one(model, row, top_k, mask, f"fill_mask: texts[{index}]")
        for index, row in enumerate(rows)
    ]
    flat = [fills[0] if len(fills) == 1 else fills for fills in results]
    return flat[0] if is_single(texts, "texts") else flat


def check_model(model: Transformer, bidirectional: bool) -> None:
    """Raise `ConfigError` unless the model predicts tokens from both sides."""
    if model.config.kind == "encoder" or (model.config.kind == "decoder" and bidirectional):
        return
    if model.config.kind == "decoder":
        raise ConfigError(
            "fill_mask: the model is a decoder, which sees a token only after it has predicted it; "
            "use an encoder, or, for a decoder trained with MaskedLM(stack='decoder'), "
            "bidirectional=True"
        )
    raise ConfigError(
        "fill_mask: the model is an encoder-decoder, which rewrites texts and fills no masks; use "
        "an encoder"
    )


def _mask_id(model: Transformer, mask_id: int | None) -> int:
    if mask_id is None and model.tokenizer is not None:
        mask_id = model.tokenizer.mask_id
    if mask_id is None:
        raise ConfigError(
            "fill_mask: the tokenizer has no mask token; give mask_id, or a tokenizer with [MASK]"
            if model.tokenizer is not None
            else "fill_mask: the model has no tokenizer that names its mask token; give mask_id"
        )
    return mask_id


def _fill_one(
    model: Transformer, row: Int32Array, top_k: int, mask: int, place: str
) -> list[list[MaskFill]]:
    """The likeliest fills of every mask of one text."""
    check_length(model, row, place)
    places = np.flatnonzero(row == mask).astype(np.int32)
    if not places.size:
        shown = model.tokenizer.id_to_token(mask) if model.tokenizer is not None else mask
        raise DataError(f"{place} has no mask; put {shown} where a token is to be predicted")
    prefix = [len(row)] if model.config.kind == "decoder" else None
    logits = model(row[None], prefix_lengths=prefix).numpy()[0, places].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [_fill(model, row, at, int(token), float(probabilities[n, token])) for token in tokens]
        for n, (at, tokens) in enumerate(zip(places.tolist(), best, strict=True))
    ]


def _fill(model: Transformer, row: Int32Array, at: int, token: int, score: float) -> MaskFill:
    if model.tokenizer is None:
        return MaskFill(token, "", score, "")
    filled = row.copy()
    filled[at] = token
    spelled = model.tokenizer.id_to_token(token) or ""
    return MaskFill(token, spelled, score, model.tokenizer.decode(filled.tolist()))
