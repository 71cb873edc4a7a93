"""Classification and embedding: one answer, or one vector, for a whole text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmcore import _core
from llmcore.errors import ConfigError
from llmcore.inputs import Inputs
from llmcore.uses.texts import Int32Array, check_length, chunks, encode_texts, pad

if TYPE_CHECKING:
    from llmcore.model import Transformer

Float32Array = NDArray[np.float32]
Pooling = Literal["mean", "first", "last", "pooler"]


@dataclass(frozen=True)
class Classified:
    """What a classifier says of a text.

    Attributes:
        label: name of the likeliest label, or "LABEL_n" where labels have no names.
        index: its number.
        score: its probability.
        scores: probability of every label, by name.
    """

    label: str
    index: int
    score: float
    scores: dict[str, float]


def classify(model: Transformer, texts: Any, types: Any | None) -> list[Classified]:
    """Classify texts; see `Transformer.classify`."""
    count = model.config.num_labels
    if count == 0:
        raise ConfigError(
            "classify: the model has no classifier (num_labels is 0); train one with the objective "
            "classification"
        )
    names = model.config.label_names or [f"LABEL_{index}" for index in range(count)]
    results = []
    for inputs in _batches(model, texts, "classify", types):
        out = _core.empty([inputs.batch_size, count], device=model.device)
        model._core.label_logits(inputs, out)
        logits = out.numpy().astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        for row in weights / weights.sum(axis=1, keepdims=True):
            best = int(row.argmax())
            scores = dict(zip(names, row.tolist(), strict=True))
            results.append(Classified(names[best], best, float(row[best]), scores))
    return results


def embed(model: Transformer, texts: Any, pooling: Pooling, normalize: bool) -> Float32Array:
    """Embed texts; see `Transformer.embed`."""
    if pooling not in get_args(Pooling):
        raise ConfigError(
            f"embed: pooling must be one of {', '.join(get_args(Pooling))}, got {pooling!r}"
        )
    if pooling == "pooler" and not model.config.pooler:
        raise ConfigError("embed: the model has no pooler; use pooling 'mean' or 'first'")
    parts = [_pooled(model, inputs, pooling) for inputs in _batches(model, texts, "embed", None)]
    vectors = np.concatenate(parts)
    if normalize:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def _pooled(model: Transformer, inputs: Inputs, pooling: Pooling) -> Float32Array:
    width = model.config.hidden_size
    if pooling == "pooler":
        out = _core.empty([inputs.batch_size, width], device=model.device)
        model._core.pooled(inputs, out)
        pooled: Float32Array = out.numpy()
        return pooled
    out = _core.empty([*inputs.stack_shape, width], device=model.device)
    model._core.encode(inputs, out)
    hidden, lengths = out.numpy(), inputs.stack_lengths
    if pooling == "mean":
        rows = [row[:length].mean(axis=0) for row, length in zip(hidden, lengths, strict=True)]
        return np.stack(rows)
    last = lengths - 1 if pooling == "last" else np.zeros_like(lengths)
    chosen: Float32Array = hidden[np.arange(len(hidden)), last]
    return chosen


def _batches(model: Transformer, texts: Any, caller: str, types: Any | None) -> list[Inputs]:
    """Texts in batches; the rows asked about are the first token of an encoder's, else the last."""
    rows = encode_texts(model, texts, caller, "texts")
    kinds = None if types is None else encode_types(types, rows, caller)
    for index, row in enumerate(rows):
        check_length(model, row, f"{caller}: texts[{index}]")
    batches = []
    for chosen in chunks(range(len(rows))):
        ids, lengths = pad([rows[i] for i in chosen])
        first = np.arange(len(chosen), dtype=np.int32) * ids.shape[1]
        asked = first if model.config.kind != "decoder" else first + lengths - 1
        batches.append(
            Inputs.of(
                model.config,
                ids,
                lengths,
                types=None if kinds is None else pad([kinds[i] for i in chosen])[0],
                rows=asked.astype(np.int32),
                encoder_only=True,
            )
        )
    return batches


def encode_types(types: Any, rows: list[Int32Array], caller: str) -> list[Int32Array]:
    """Segment ids, one list for each row and as long as it."""
    kinds = [np.asarray(kind, np.int32) for kind in types]
    if [len(kind) for kind in kinds] != [len(row) for row in rows]:
        raise ConfigError(f"{caller}: types must have one segment id for each token of each text")
    return kinds
