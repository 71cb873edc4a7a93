"""Text generation: the settings, the results, and the loop around the core's decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError, DataError, DTypeError, TokenIndexError
from llmcore.objectives import as_ids
from llmcore.validation import Check

if TYPE_CHECKING:
    from llmcore.model import Transformer
    from llmcore.tokenizer_stream import StreamDecoder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to continue prompts.

    Greedy unless one of temperature, top_k, top_p or min_p is given, or do_sample is. Processors
    act in the order penalties, temperature, top_k, top_p, min_p, as in transformers.

    Attributes:
        max_new_tokens: most tokens to add to each prompt.
        min_new_tokens: stop ids are not chosen before this many.
        num_beams: 1; beam search is not part of this version.
        do_sample: draw from the distribution instead of taking its maximum.
        temperature: logits are divided by this; 0 means greedy.
        top_k: draw from the k most likely tokens; 0: all.
        top_p: draw from the fewest tokens whose probability reaches p (Holtzman et al. 2020).
        min_p: draw from tokens at least this likely relative to the likeliest (Nguyen et al. 2024).
        repetition_penalty: above 1 makes tokens already seen less likely (Keskar et al. 2019).
        presence_penalty: subtracted from the logit of every token already generated.
        frequency_penalty: subtracted once for each time it was generated.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0: no limit.
        stop_ids: tokens that end a text; None: the model's or tokenizer's end-of-text token.
        stop_strings: texts that end a text; they are cut off. Needs a tokenizer.
        banned_ids: tokens never chosen.
        seed: of the draws. A text depends on its prompt and on this, not on the other prompts;
            a prompt given several times gets as many different texts.
        overflow: what happens when the model's positions are used up: "stop" ends the text with
            finish_reason "length"; "slide" goes on from the latest half of the context, and of a
            longer prompt only the end is read.

    Raises:
        ConfigError: with every problem found.

    Example:
        >>> GenerationConfig(max_new_tokens=8).do_sample
        False
        >>> GenerationConfig(temperature=0.8, top_k=20).do_sample
        True
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    stop_ids: Sequence[int] | None = None
    stop_strings: Sequence[str] = ()
    banned_ids: Sequence[int] = ()
    seed: int = 0
    overflow: Literal["stop", "slide"] = "stop"

    def __post_init__(self) -> None:
        if self.do_sample is None:
            given = (self.temperature, self.top_k, self.top_p, self.min_p)
            object.__setattr__(self, "do_sample", any(value is not None for value in given))
        if self.temperature == 0:
            object.__setattr__(self, "do_sample", False)
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        check = Check(self)
        for name, holds, meaning in (
            ("max_new_tokens", lambda n: 1 <= n < 2**31, "at least 1"),
            ("min_new_tokens", lambda n: 0 <= n < 2**31, "at least 0"),
            ("num_beams", lambda n: n == 1, "1 (this version has no beam search)"),
            ("temperature", lambda t: t is None or t >= 0, "at least 0 (0: greedy)"),
            ("top_k", lambda k: k is None or 0 <= k < 2**31, "at least 0 (0: all)"),
            ("top_p", lambda p: p is None or 0 < p <= 1, "above 0 and at most 1"),
            ("min_p", lambda p: p is None or 0 <= p <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda penalty: penalty > 0, "above 0"),
            ("no_repeat_ngram_size", lambda n: 0 <= n < 2**31, "at least 0"),
            ("stop_strings", all, "texts that are not empty"),
            ("seed", lambda seed: 0 <= seed < 2**64, "from 0 to 2**64 - 1"),
        ):
            check.require(name, holds, meaning)
        check.done()

    def core_options(self, stop_ids: Sequence[int]) -> _core.GenerationOptions:
        """The settings as the core takes them."""
        given = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "do_sample": self.do_sample,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "stop_ids": list(stop_ids),
            "banned_ids": list(self.banned_ids),
            "seed": self.seed,
        }
        options = _core.GenerationOptions()
        for name, value in given.items():
            if value is not None and (name, value) != ("temperature", 0):
                setattr(options, name, value)
        return options


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
        score: sum of the tokens' log-probabilities.
        finish_reason: "stop": a stop token or string came; "length": max_new_tokens or the model's
            positions were used up.
        logprobs: one log-probability for each of `ids`.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    score: float = 0.0
    finish_reason: FinishReason = "length"
    logprobs: list[float] = field(default_factory=list)


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


def stream(model: Transformer, prompts: Any, config: GenerationConfig) -> Iterator[GeneratedToken]:
    """Yield tokens of all prompts as they come, a round of one token each at a time."""
    rows = encode_prompts(model, prompts)
    if config.overflow == "slide" and model.config.positions != "none":
        rows = [_core.as_tensor(row.numpy()[-model.config.max_positions :]) for row in rows]
    stop_ids = _stop_ids(model, config)
    if config.stop_strings and model.tokenizer is None:
        raise ConfigError("generate: stop_strings need a model with a tokenizer")
    return _rounds(model, rows, config, stop_ids)


def _rounds(
    model: Transformer, rows: list[Tensor], config: GenerationConfig, stop_ids: Sequence[int]
) -> Iterator[GeneratedToken]:
    slide = config.overflow == "slide"
    core = _core.Generation(model._core, rows, [], config.core_options(stop_ids), slide)
    tokenizer = model.tokenizer
    texts = [_Text(tokenizer.stream() if tokenizer else None, config.stop_strings) for _ in rows]
    while not core.done:
        for index, token, logprob, reason in core.step(model._core):
            text_token = None if token in stop_ids else token
            shown, stopped = texts[index].push(text_token, last=reason is not None)
            if stopped and not reason:
                core.finish(index)
            yield GeneratedToken(index, token, shown, logprob, "stop" if stopped else reason)


def generate(model: Transformer, prompts: Any, config: GenerationConfig) -> list[GenerationResult]:
    """Continue every prompt to its end."""
    results = [GenerationResult() for _ in range(_count(prompts))]
    for token in stream(model, prompts, config):
        result = results[token.index]
        result.ids.append(token.id)
        result.logprobs.append(token.logprob)
        result.text += token.text
        result.score += token.logprob
        if token.finish_reason is not None:
            result.finish_reason = token.finish_reason
    return results


def encode_prompts(
    model: Transformer, prompts: Any, caller: str = "generate", what: str = "prompts"
) -> list[Tensor]:
    """Prompts as int32 tensors: a text, a list of texts, a list of ids, or a list of such lists.

    Args:
        model: whose tokenizer and vocabulary count.
        prompts: one or several.
        caller: named in errors.
        what: the argument, named in errors.

    Raises:
        ConfigError: a text, but the model has no tokenizer.
        DataError: no prompt, or one without tokens.
        TokenIndexError: an id outside the vocabulary.
    """
    rows = []
    for index, prompt in enumerate(_as_list(prompts)):
        place = f"{caller}: {what}[{index}]"
        if isinstance(prompt, str):
            if model.tokenizer is None:
                raise ConfigError(
                    f"{place} is text, but the model has no tokenizer; give token ids"
                )
            prompt = model.tokenizer.encode(prompt)
        ids = np.zeros(0, np.int32) if len(prompt) == 0 else as_ids(prompt, place, ndim=1)
        if ids.size == 0:
            raise DataError(f"{place} has no tokens; give at least one")
        outside = np.flatnonzero((ids < 0) | (ids >= model.config.vocab_size))
        if outside.size:
            raise TokenIndexError(
                f"{place}: id {ids[outside[0]]} at position {outside[0]} is outside the vocabulary "
                f"of {model.config.vocab_size}"
            )
        rows.append(_core.as_tensor(ids))
    if not rows:
        raise DataError(f"{caller}: expected at least one of {what}, got none")
    return rows


def _as_list(prompts: Any) -> list[Any]:
    if isinstance(prompts, str):
        return [prompts]
    if hasattr(prompts, "__array__"):
        array = np.asarray(prompts)
        return list(array) if array.ndim > 1 else [array]
    if not isinstance(prompts, Iterable):
        raise DTypeError(
            f"prompts must be texts or lists of ids, one or several, got a {type(prompts).__name__}"
        )
    items = list(prompts)
    single = bool(items) and not isinstance(items[0], str) and not hasattr(items[0], "__len__")
    return [items] if single else items


def _count(prompts: Any) -> int:
    return len(_as_list(prompts))


def _stop_ids(model: Transformer, config: GenerationConfig) -> Sequence[int]:
    if config.stop_ids is not None:
        return config.stop_ids
    found = [model.config.eos_id, model.tokenizer.eos_id if model.tokenizer else None]
    return sorted({token for token in found if token is not None})
