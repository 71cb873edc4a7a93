"""Text generation: the results, and the loops around the core's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError
from llmcore.generation_config import GenerationConfig
from llmcore.uses.texts import encode_texts

if TYPE_CHECKING:
    from llmcore.model import Transformer
    from llmcore.tokenizer.stream import StreamDecoder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GeneratedToken:
    """One token as `generate(..., stream=True)` yields it.

    Attributes:
        index: which prompt it continues.
        id: the token.
        text: what it adds to the text, never half a character; "" without a tokenizer.
        logprob: its natural log-probability under the model, before temperature and penalties.
        finish_reason: "stop" or "length" with a prompt's last token, else None.
    """

    index: int
    id: int
    text: str
    logprob: float
    finish_reason: FinishReason | None


@dataclass
class GenerationResult:
    """What was added to one prompt.

    Attributes:
        ids: the new tokens, a stop token included.
        text: the new text, without stop token or stop string; "" without a tokenizer.
        score: sum of the tokens' log-probabilities; with beam search that by which
            `GenerationConfig` ranks them.
        finish_reason: "stop": a stop token or string came; "length": max_new_tokens or the model's
            positions were used up.
        logprobs: one log-probability for each of `ids`.
        alternatives: with num_return_sequences, the next best, best first.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    score: float = 0.0
    finish_reason: FinishReason = "length"
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[GenerationResult] = field(default_factory=list)


class _Text:
    """The growing text of one prompt, watched for stop strings."""

    def __init__(self, decoder: StreamDecoder | None, stop_strings: Sequence[str]) -> None:
        self.decoder = decoder
        self.stop_strings = stop_strings
        self.text = ""
        self.shown = 0  # characters already given out

    def push(self, token: int | None, last: bool) -> tuple[str, bool]:
        """Add a token (None: one without text); return what to show, and if a stop string came."""
        if self.decoder is None:
            return "", False
        if token is not None:
            self.text += self.decoder.push(token)
        if last:
            self.text += self.decoder.finish()
        found = [at for stop in self.stop_strings if (at := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)]
        # What could be the beginning of a stop string is held back until it is known.
        end = len(self.text) if found or last else len(self.text) - self._held_back()
        shown, self.shown = self.text[self.shown : end], max(end, self.shown)
        return shown, bool(found)

    def _held_back(self) -> int:
        return max(
            (
                size
                for stop in self.stop_strings
                for size in range(1, len(stop))
                if self.text.endswith(stop[:size])
            ),
            default=0,
        )


@dataclass(frozen=True)
class _Job:
    """Prompts made ready for the core: what the decoder begins with, and what it is about."""

    prompts: list[Tensor]
    sources: list[Tensor]
    options: _core.GenerationOptions
    stop_ids: Sequence[int]


def _prepare(model: Transformer, prompts: Any, config: GenerationConfig) -> _Job:
    architecture = model.config
    if architecture.kind == "encoder":
        raise ConfigError(
            "generate: the model is an encoder, which has no decoder to write with; "
            "fill_mask(text) predicts hidden tokens"
        )
    if config.stop_strings and model.tokenizer is None:
        raise ConfigError("generate: stop_strings need a model with a tokenizer")
    if config.stop_strings and architecture.right_to_left:
        raise ConfigError("generate: stop_strings need a model that writes from left to right")
    rows = [_core.as_tensor(row) for row in encode_texts(model, prompts, "generate", "prompts")]
    stop_ids = _stop_ids(model, config)
    options = config.core_options(architecture, stop_ids)
    if architecture.kind == "encoder-decoder":
        start = architecture.decoder_start_id
        if start is None:
            raise ConfigError(
                "generate: the model's config has no decoder_start_id, the token its decoder "
                "starts from; set it with config.replace(decoder_start_id=…)"
            )
        first = _core.as_tensor(np.array([start], np.int32))
        return _Job([first] * len(rows), rows, options, stop_ids)
    if architecture.right_to_left:
        rows = [_core.as_tensor(row.numpy()[::-1].copy()) for row in rows]
    if config.overflow == "slide" and architecture.positions not in ("none", "relative"):
        rows = [_core.as_tensor(row.numpy()[-architecture.max_positions :]) for row in rows]
    return _Job(rows, [], options, stop_ids)


def stream(model: Transformer, prompts: Any, config: GenerationConfig) -> Iterator[GeneratedToken]:
    """Yield tokens of all prompts as they come, a round of one token each at a time."""
    if config.num_beams > 1:
        raise ConfigError(
            "generate: beam search knows its tokens only at the end; leave out stream"
        )
    if model.config.right_to_left:
        raise ConfigError(
            "generate: the model writes from right to left, so that its text is known only at the "
            "end; leave out stream"
        )
    return _rounds(model, _prepare(model, prompts, config), config)


def _rounds(model: Transformer, job: _Job, config: GenerationConfig) -> Iterator[GeneratedToken]:
    slide = config.overflow == "slide"
    core = _core.Engine(model._core, job.prompts, job.sources, job.options, slide)
    tokenizer = None if model.config.right_to_left else model.tokenizer
    texts = [
        _Text(tokenizer.stream() if tokenizer else None, config.stop_strings) for _ in job.prompts
    ]
    while not core.done:
        for index, token, logprob, reason, failure in core.step(model._core):
            if failure:
                raise ConfigError(failure)
            text_token = None if token in job.stop_ids else token
            shown, stopped = texts[index].push(text_token, last=reason is not None)
            if stopped and not reason:
                core.leave(index)
            yield GeneratedToken(index, token, shown, logprob, "stop" if stopped else reason)


def generate(model: Transformer, prompts: Any, config: GenerationConfig) -> list[GenerationResult]:
    """Continue every prompt to its end."""
    job = _prepare(model, prompts, config)
    if config.num_beams > 1:
        return _search(model, job)
    results = [GenerationResult() for _ in job.prompts]
    for token in _rounds(model, job, config):
        result = results[token.index]
        result.ids.append(token.id)
        result.logprobs.append(token.logprob)
        result.text += token.text
        result.score += token.logprob
        if token.finish_reason is not None:
            result.finish_reason = token.finish_reason
    return [_turned(model, result, job.stop_ids) for result in results]


def _turned(
    model: Transformer, result: GenerationResult, stop_ids: Sequence[int]
) -> GenerationResult:
    """The result in reading order, where the model wrote it from right to left."""
    if not model.config.right_to_left:
        return result
    result.ids.reverse()
    result.logprobs.reverse()
    result.text = _decode(model, result.ids, stop_ids)
    return result


def _search(model: Transformer, job: _Job) -> list[GenerationResult]:
    """Beam search for all prompts together."""
    core = _core.BeamGeneration(model._core, job.prompts, job.sources, job.options)
    while not core.done:
        core.step(model._core)
    results = []
    for index in range(len(job.prompts)):
        found = [
            _turned(
                model,
                GenerationResult(
                    ids=hypothesis.ids,
                    text=_decode(model, hypothesis.ids, job.stop_ids),
                    score=hypothesis.score,
                    finish_reason="stop" if hypothesis.stopped else "length",
                    logprobs=hypothesis.log_probabilities,
                ),
                job.stop_ids,
            )
            for hypothesis in core.best(index)
        ]
        best = found[0]
        best.alternatives = found[1:]
        results.append(best)
    return results


def _decode(model: Transformer, ids: list[int], stop_ids: Sequence[int]) -> str:
    if model.tokenizer is None:
        return ""
    return model.tokenizer.decode([token for token in ids if token not in stop_ids])


def _stop_ids(model: Transformer, config: GenerationConfig) -> Sequence[int]:
    if config.stop_ids is not None:
        return config.stop_ids
    found = [model.config.eos_id, model.tokenizer.eos_id if model.tokenizer else None]
    return sorted({token for token in found if token is not None})
