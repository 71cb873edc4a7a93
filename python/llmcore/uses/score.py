"""Scoring: how likely a model finds given texts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmcore.errors import ConfigError, DataError
from llmcore.objectives import Batch, Seq2Seq
from llmcore.uses.texts import chunks, encode_texts

if TYPE_CHECKING:
    from llmcore.model import Transformer

_WINDOWS_AT_ONCE = 16


@dataclass(frozen=True)
class ScoreResult:
    """How likely one text is.

    Attributes:
        ids: the text's tokens.
        logprobs: natural log-probability of every token after the first, given those before it
            (of a model that reads from right to left: of every token before the last, given those
            after it; beside an encoder: of every token, given the source).
        score: their sum.
        perplexity: exp of minus their mean; NaN for a text of one token.
    """

    ids: list[int]
    logprobs: list[float]
    score: float
    perplexity: float


def score(model: Transformer, texts: Any, sources: Any | None) -> list[ScoreResult]:
    """Score texts; see `Transformer.score`."""
    if model.config.kind == "encoder":
        raise ConfigError(
            "score: the model is an encoder, which gives texts no probability; use a decoder"
        )
    rows = encode_texts(model, texts, "score", "texts")
    if model.config.kind == "encoder-decoder":
        return _score_beside(model, rows, sources)
    if sources is not None:
        raise ConfigError("score: sources are for a model with an encoder")
    turned = model.config.right_to_left
    read = [row[::-1].copy() for row in rows] if turned else rows
    logprobs = _read_alone(model, read)
    if turned:
        logprobs = [values[::-1] for values in logprobs]
    return [_result(ids, values) for ids, values in zip(rows, logprobs, strict=True)]


def _score_beside(
    model: Transformer, rows: list[np.ndarray], sources: Any | None
) -> list[ScoreResult]:
    """Score what a decoder says about sources, from its first token on."""
    if sources is None:
        raise ConfigError("score: an encoder-decoder model scores texts given sources; give both")
    about = encode_texts(model, sources, "score", "sources")
    if len(about) != len(rows):
        raise DataError(
            f"score: texts and sources must be as many, got {len(rows)} and {len(about)}"
        )
    objective = Seq2Seq(decoder_start_id=model.config.decoder_start_id)
    results = []
    for chosen in chunks(range(len(rows)), _WINDOWS_AT_ONCE):
        batch = objective([about[i] for i in chosen], [rows[i] for i in chosen])
        values = np.split(-model.row_losses(batch), np.cumsum([len(rows[i]) for i in chosen])[:-1])
        results += [_result(rows[i], part) for i, part in zip(chosen, values, strict=True)]
    return results


def _read_alone(model: Transformer, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Log-probability of every token but the first of each row."""
    logprobs = [np.zeros(len(ids) - 1, np.float32) for ids in rows]
    windows = [(row, *window) for row, ids in enumerate(rows) for window in _windows(model, ids)]
    for chunk in chunks(windows, _WINDOWS_AT_ONCE):
        batch, places = _batch(rows, list(chunk))
        losses = model.row_losses(batch)
        for (row, _, first, stop), place in zip(chunk, places, strict=True):
            logprobs[row][first - 1 : stop - 1] = -losses[place]
    return logprobs


def _windows(model: Transformer, ids: np.ndarray) -> list[tuple[int, int, int]]:
    """(start of the context, first token scored, end): all tokens but the first, once each.

    A text longer than the model's positions is read in windows that overlap by half, so that
    every token has at least half of them as context.
    """
    unlimited = model.config.positions in ("none", "relative")
    limit = len(ids) if unlimited else model.config.max_positions
    windows = []
    first = 1
    while first < len(ids):
        start = 0 if len(ids) <= limit + 1 or first == 1 else first - max(limit // 2, 1)
        stop = min(start + limit + 1, len(ids))
        windows.append((start, first, stop))
        first = stop
    return windows


def _batch(
    rows: list[np.ndarray], windows: list[tuple[int, int, int, int]]
) -> tuple[Batch, list[slice]]:
    """One padded batch of windows, and where each window's losses are in its rows."""
    longest = max(stop - 1 - start for _, start, _, stop in windows)
    ids = np.zeros((len(windows), longest), np.int32)
    lengths, scored, targets, places = [], [], [], []
    total = 0
    for b, (row, start, first, stop) in enumerate(windows):
        length = stop - 1 - start
        ids[b, :length] = rows[row][start : stop - 1]
        lengths.append(length)
        scored.append(b * longest + np.arange(first - 1 - start, length))
        targets.append(rows[row][first:stop])
        places.append(slice(total, total + stop - first))
        total += stop - first
    batch = Batch(
        dec_ids=ids,
        dec_lengths=np.array(lengths, np.int32),
        rows=np.concatenate(scored),
        targets=np.concatenate(targets),
    )
    return batch, places


def _result(ids: np.ndarray, logprobs: np.ndarray) -> ScoreResult:
    total = float(logprobs.sum(dtype=np.float64))
    perplexity = math.exp(-total / len(logprobs)) if len(logprobs) else math.nan
    return ScoreResult(ids.tolist(), logprobs.tolist(), total, perplexity)
