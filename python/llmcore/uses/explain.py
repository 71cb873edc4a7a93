"""What a model looks at while it reads a text, ready to be drawn: attention and likely tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.errors import ConfigError, DataError
from llmcore.generation_config import GenerationConfig
from llmcore.uses.texts import Int32Array, check_length, encode_texts
from llmcore.viz import AttentionMap

if TYPE_CHECKING:
    from llmcore.model import Transformer
    from llmcore.tokenizer import Tokenizer

#: Tokens of the target of an encoder–decoder model, at most, where none is given.
_TARGET_TOKENS = 64


@dataclass(frozen=True)
class Explanation:
    """What `llmcore.viz.attention_page` draws.

    Attributes:
        maps: one for each kind of attention that the model has.
        next_tokens: for each position of the decoder the likeliest next tokens with their
            probabilities; None for an encoder, which predicts none.
    """

    maps: list[AttentionMap]
    next_tokens: list[list[tuple[str, float]]] | None


def explain(
    model: Transformer,
    text: Any,
    target: Any | None = None,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    max_new_tokens: int | None = None,
    top_k: int = 5,
) -> Explanation:
    """Run a model on a text and tell what it looks at.

    Args:
        model: any. One that reads from right to left has its tokens in the order it reads them.
        text: one text or list of ids; of an encoder–decoder model the source.
        target: what an encoder–decoder model is to say; what it says greedily if None.
        layers: which layers, counted from 0; None: all.
        heads: which heads; None: all.
        max_new_tokens: how far a decoder goes on from the text (None: not at all), or how long the
            target may become that is not given.
        top_k: how many next tokens to tell.

    Returns:
        Attention of the whole text at once. Tokens are as `token_texts` spells them.

    Raises:
        ConfigError: a target without an encoder–decoder model, new tokens of an encoder, or layers
            and heads that the model does not have.
        DataError: several texts, none, or one longer than the model's positions.

    Example:
        >>> from llmcore import ModelConfig, Transformer
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> found = explain(model, [1, 2, 3], heads=[0, 1], max_new_tokens=2)
        >>> found.maps, len(found.next_tokens), len(found.next_tokens[0])
        ([AttentionMap(decoder: 1 layer × 2 heads, 5 queries × 5 keys)], 5, 5)
    """
    if max_new_tokens is not None and (model.config.kind == "encoder" or target is not None):
        why = "an encoder writes nothing" if target is None else "the target is given"
        raise ConfigError(f"explain: leave out max_new_tokens: {why}")
    if target is not None and model.config.kind != "encoder-decoder":
        raise ConfigError("explain: a target is for a model with an encoder and a decoder")
    if not 1 <= top_k <= model.config.vocab_size:
        raise ConfigError(
            f"explain: top_k must be from 1 to the vocabulary's {model.config.vocab_size}, "
            f"got {top_k}"
        )
    ids = _one(model, text, "text")
    kind = model.config.kind
    decoded: Int32Array | None = None
    if kind == "encoder-decoder":
        decoded = _decoder_reads(model, ids, target, max_new_tokens or _TARGET_TOKENS)
    elif kind == "decoder":
        ids = _continued(model, ids, max_new_tokens)
    names = {"encoder": token_texts(model.tokenizer, ids), "decoder": []}
    if kind != "encoder":
        read = ids if decoded is None else decoded
        names["decoder"] = token_texts(model.tokenizer, read)
    sides = {"encoder": "encoder", "decoder": "decoder", "cross": "encoder"}
    kinds: Any = [kind] if kind != "encoder-decoder" else list(sides)
    maps = [
        AttentionMap(
            kind=name,
            weights=model.attention_maps(
                ids[None],
                layers,
                heads,
                name,
                decoder_ids=None if decoded is None or name == "encoder" else decoded[None],
            )[0],
            queries=names["encoder" if name == "encoder" else "decoder"],
            keys=names[sides[name]],
            layers=layers or (),
            heads=heads or (),
        )
        for name in kinds
    ]
    return Explanation(maps, _next_tokens(model, ids, decoded, top_k))


def token_texts(tokenizer: Tokenizer | None, ids: Sequence[int] | Int32Array) -> list[str]:
    """What each token adds to the text of those before it; its number without a tokenizer.

    Example:
        >>> from llmcore.tokenizer import Tokenizer
        >>> tokenizer = Tokenizer.train(["to be"], kind="char")
        >>> token_texts(tokenizer, tokenizer.encode("to be"))
        ['t', 'o', ' ', 'b', 'e']
    """
    row = [int(token) for token in ids]
    return [
        _spelled(tokenizer, token, before)
        for token, before in zip(row, [None, *row[:-1]], strict=True)
    ]


def _spelled(tokenizer: Tokenizer | None, token: int, before: int | None) -> str:
    """The text of one token; as the vocabulary has it where it is half a character."""
    if tokenizer is None:
        return str(token)
    context = [] if before is None else [before]
    start = tokenizer.decode(context, skip_special_tokens=False)
    text = tokenizer.decode([*context, token], skip_special_tokens=False)
    if len(text) > len(start) and text.startswith(start) and "\ufffd" not in text:
        return text[len(start) :]
    return tokenizer.id_to_token(token) or ""


def _one(model: Transformer, text: Any, what: str) -> Int32Array:
    rows = encode_texts(model, text, "explain", what)
    if len(rows) != 1:
        raise DataError(f"explain: expected one {what}, got {len(rows)}")
    check_length(model, rows[0], f"explain: {what}")
    return rows[0]


def _continued(model: Transformer, ids: Int32Array, new: int | None) -> Int32Array:
    """A text with what a decoder adds to it, in the order it reads them."""
    if new is not None:
        [result] = model.generate(ids, GenerationConfig(max_new_tokens=new))
        added = np.array(result.ids, np.int32)
        ids = np.concatenate([added, ids] if model.config.right_to_left else [ids, added])
    ids = ids[::-1].copy() if model.config.right_to_left else ids
    # The last token that fits into the positions is written, but not read any more.
    unlimited = model.config.positions in ("none", "relative")
    return ids if unlimited else ids[: model.config.max_positions]


def _decoder_reads(model: Transformer, source: Int32Array, target: Any, new: int) -> Int32Array:
    """What the decoder reads beside a source: its first token and the target but for its end."""
    start = model.config.decoder_start_id
    if start is None:
        raise ConfigError("explain: the model's config has no decoder_start_id")
    if target is None:
        [result] = model.generate(source, GenerationConfig(max_new_tokens=new))
        ids = np.array(result.ids, np.int32)
    else:
        ids = _one(model, target, "target")
    if ids.size and ids[-1] == model.config.eos_id:
        ids = ids[:-1]
    read = np.concatenate([np.array([start], np.int32), ids])
    unlimited = model.config.positions in ("none", "relative")
    return read if unlimited else read[: model.config.max_positions]


def _next_tokens(
    model: Transformer, ids: Int32Array, decoded: Int32Array | None, top_k: int
) -> list[list[tuple[str, float]]] | None:
    if model.config.kind == "encoder":
        return None
    read = ids if decoded is None else decoded
    logits = model(ids[None], decoder_ids=None if decoded is None else decoded[None]).numpy()[0]
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top_k]
    return [
        [(_spelled(model.tokenizer, int(n), int(token)), float(row[n])) for n in chosen]
        for token, row, chosen in zip(read, probabilities, best, strict=True)
    ]
