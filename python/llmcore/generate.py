"""Text generation: the results, and the loops around the core's decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from llmcore import _core
from llmcore.errors import ConfigError, DeviceError
from llmcore.generation_config import GenerationConfig
from llmcore.uses.texts import Int32Array, encode_texts

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
        guessed: whether speculation had guessed it.
    """

    index: int
    id: int
    text: str
    logprob: float
    finish_reason: FinishReason | None
    guessed: bool = field(default=False, compare=False)


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
        guessed_tokens: how many of `ids` speculation had guessed. Results that differ in this alone
            are equal, and so are tokens.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    score: float = 0.0
    finish_reason: FinishReason = "length"
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[GenerationResult] = field(default_factory=list)
    guessed_tokens: int = field(default=0, compare=False)


class Writing:
    """One text while it is written: its result so far, watched for stop strings.

    Args:
        model: whose tokens come.
        config: whose stop strings are watched for.
        stop_ids: tokens without text.
    """

    def __init__(
        self, model: Transformer, config: GenerationConfig, stop_ids: Sequence[int]
    ) -> None:
        self._model = model
        self._stop_strings = config.stop_strings
        self._stop_ids = stop_ids
        # A text written from right to left is known only at its end.
        readable = model.tokenizer if not model.config.right_to_left else None
        self._decoder: StreamDecoder | None = readable.stream() if readable else None
        self._result = GenerationResult()
        self._text = ""

    def push(
        self, index: int, token: int, logprob: float, reason: str | None, guessed: bool
    ) -> GeneratedToken:
        """Add what the core has chosen for prompt `index`, and why it was the last, if it was."""
        shown, stopped = self._show(token, last=reason is not None)
        finish_reason = cast(FinishReason | None, "stop" if stopped else reason)
        self._result.ids.append(token)
        self._result.logprobs.append(logprob)
        self._result.score += logprob
        self._result.text += shown
        self._result.guessed_tokens += guessed
        if finish_reason is not None:
            self._result.finish_reason = finish_reason
        return GeneratedToken(index, token, shown, logprob, finish_reason, guessed)

    def result(self) -> GenerationResult:
        """The whole, once the last token has come."""
        return _turned(self._model, self._result, self._stop_ids)

    def _show(self, token: int, last: bool) -> tuple[str, bool]:
        """Text to show now that `token` has come, and whether a stop string has."""
        if self._decoder is None:
            return "", False
        if token not in self._stop_ids:
            self._text += self._decoder.push(token)
        if last:
            self._text += self._decoder.finish()
        found = [at for stop in self._stop_strings if (at := self._text.find(stop)) >= 0]
        if found:
            self._text = self._text[: min(found)]
        # What could be the beginning of a stop string is held back until it is known.
        end = len(self._text) if found or last else len(self._text) - self._held_back()
        return self._text[len(self._result.text) : end], bool(found)

    def _held_back(self) -> int:
        return max(
            (
                size
                for stop in self._stop_strings
                for size in range(1, len(stop))
                if self._text.endswith(stop[:size])
            ),
            default=0,
        )


@dataclass(frozen=True)
class Job:
    """Prompts made ready for the core: what the decoder begins with, and what it is about."""

    prompts: list[Int32Array]
    sources: list[Int32Array]
    options: _core.GenerationOptions
    stop_ids: Sequence[int]


def check_draft(model: Transformer, draft: Transformer) -> None:
    """Raise unless `draft` can guess what `model` writes.

    Raises:
        ConfigError: they are not two decoders of one vocabulary.
        DeviceError: they are on different devices.
    """
    from llmcore.model import check_model

    check_model(draft, "generate", "draft_model")
    if draft.device != model.device:
        raise DeviceError(
            f"generate: the draft model must be on {model.device} as the model is, got "
            f"{draft.device}"
        )
    for role, one in (("draft model", draft), ("model", model)):
        if one.config.kind != "decoder":
            raise ConfigError(
                f"generate: a draft model guesses for a decoder and is one; the {role} is an "
                f"{one.config.kind}"
            )
    for name, what in (("vocab_size", "vocabulary"), ("right_to_left", "direction")):
        ours, theirs = getattr(model.config, name), getattr(draft.config, name)
        if ours != theirs:
            raise ConfigError(
                f"generate: the draft model needs the model's {what}; its {name} is {theirs}, "
                f"not {ours}"
            )


def prepare(model: Transformer, prompts: Any, config: GenerationConfig) -> Job:
    """Check prompts against the model, and turn them into ids.

    Raises:
        ConfigError, DataError, TokenIndexError: as for `Transformer.generate`.
    """
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
    rows = encode_texts(model, prompts, "generate", "prompts")
    stop_ids = _stop_ids(model, config)
    options = config.core_options(architecture, stop_ids)
    if architecture.kind == "encoder-decoder":
        start = architecture.decoder_start_id
        if start is None:
            raise ConfigError(
                "generate: the model's config has no decoder_start_id, the token its decoder "
                "starts from; set it with config.replace(decoder_start_id=…)"
            )
        first = np.array([start], np.int32)
        return Job([first] * len(rows), rows, options, stop_ids)
    if architecture.right_to_left:
        rows = [row[::-1].copy() for row in rows]
    if config.overflow == "slide" and architecture.positions not in ("none", "relative"):
        rows = [row[-architecture.max_positions :] for row in rows]
    return Job(rows, [], options, stop_ids)


def stream(
    model: Transformer, prompts: Any, config: GenerationConfig, draft: Transformer | None
) -> Iterator[GeneratedToken]:
    """Yield tokens of all prompts as they come: in each round one of each, or with guesses more."""
    if config.num_beams > 1:
        raise ConfigError(
            "generate: beam search knows its tokens only at the end; leave out stream"
        )
    if model.config.right_to_left:
        raise ConfigError(
            "generate: the model writes from right to left, so that its text is known only at the "
            "end; leave out stream"
        )
    job = prepare(model, prompts, config)
    return _rounds(
        model, job, config, _drafting(model, draft, config), _writings(model, job, config)
    )


def _writings(model: Transformer, job: Job, config: GenerationConfig) -> list[Writing]:
    return [Writing(model, config, job.stop_ids) for _ in job.prompts]


def _drafting(
    model: Transformer, draft: Transformer | None, config: GenerationConfig
) -> _core.Transformer | None:
    if draft is None:
        return None
    if config.speculate != "draft":
        raise ConfigError(
            "generate: draft_model guesses where speculate='draft' asks for it, "
            f"got speculate={config.speculate!r}"
        )
    check_draft(model, draft)
    return draft._core


def _rounds(
    model: Transformer,
    job: Job,
    config: GenerationConfig,
    draft: _core.Transformer | None,
    writings: Sequence[Writing],
) -> Iterator[GeneratedToken]:
    slide = config.overflow == "slide"
    core = _core.Engine(model._core, job.prompts, job.sources, job.options, slide, draft)
    stopped: set[int] = set()  # by a stop string, of which the core does not know
    while not core.done:
        for index, token, logprob, reason, guessed, failure in core.step(model._core, draft):
            if index in stopped:
                continue
            if failure:
                raise ConfigError(failure)
            piece = writings[index].push(index, token, logprob, reason, guessed)
            if piece.finish_reason and not reason:
                stopped.add(index)
                core.leave(index)
            yield piece


def generate(
    model: Transformer, prompts: Any, config: GenerationConfig, draft: Transformer | None
) -> list[GenerationResult]:
    """Continue every prompt to its end."""
    job = prepare(model, prompts, config)
    drafting = _drafting(model, draft, config)
    if config.num_beams > 1:
        return _search(model, job)
    writings = _writings(model, job, config)
    for _ in _rounds(model, job, config, drafting, writings):
        pass
    return [writing.result() for writing in writings]


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


def _search(model: Transformer, job: Job) -> list[GenerationResult]:
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
