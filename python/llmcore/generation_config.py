"""`GenerationConfig`: every setting of generation, and the core's options made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Literal

from llmcore import _core
from llmcore.errors import ConfigError
from llmcore.validation import Check, build, told_at_once

if TYPE_CHECKING:
    from llmcore.config import ModelConfig

CacheDtype = Literal["float32", "bfloat16", "int8"]

# Any logit divided by this is still a float32. What is colder is greedy.
_COLDEST = 1e-30


@told_at_once(build)
@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How to continue prompts.

    Greedy unless one of temperature, top_k, top_p or min_p is given, or do_sample is, or num_beams
    is above 1. Processors act in the order penalties, temperature, top_k, top_p, min_p, as in
    transformers.

    Beam search keeps the `num_beams` continuations with the highest sum of log-probabilities, and
    ranks those that have ended by

        score = sum of log-probabilities / n ** length_penalty,   n new tokens, a stop token counted

    Diverse beams (Vijayakumar et al. 2018) are `num_beam_groups` groups that search one after the
    other; a token's log-probability in one group is less by diversity_penalty for each beam of an
    earlier group that goes on with it.

    Speculation runs the model on several guessed tokens at once and keeps those that it would have
    chosen, so that a text is the same, bit for bit, and sooner there the more guesses are right.
    It goes with sampling, penalties and stops. (On a GPU sums over more rows may differ in their
    last bits, and so may a choice between tokens that are that close.)

    Attributes:
        max_new_tokens: most tokens to add to each prompt.
        min_new_tokens: stop ids are not chosen before this many.
        num_beams: sequences grown side by side; 1: no beam search.
        num_beam_groups: groups of beams that are to differ; a divisor of num_beams.
        diversity_penalty: see above; needs groups.
        length_penalty: see above; above 0 favours long texts, below 0 short ones.
        early_stopping: when a search with num_beams finished texts ends. True: at once; False: when
            no beam would score better if it ended now; "never": when none could ever.
        num_return_sequences: the best so many are given for each prompt; needs as many beams.
        do_sample: draw from the distribution instead of taking its maximum.
        temperature: logits are divided by this; 0 means greedy, as does what is too small to divide
            by, below 1e-30.
        top_k: draw from the k most likely tokens; 0: all.
        top_p: draw from the fewest tokens whose probability reaches p (Holtzman et al. 2020).
        min_p: draw from tokens at least this likely relative to the likeliest (Nguyen et al. 2024).
        repetition_penalty: above 1 makes tokens already seen less likely (Keskar et al. 2019).
        presence_penalty: subtracted from the logit of every token already generated.
        frequency_penalty: subtracted once for each time it was generated.
        no_repeat_ngram_size: no n-gram of this size occurs twice; 0: no limit.
        forced_prefix: ids that every new text begins with, such as the tag of a language; None: the
            model's forced_bos_id, if it has one.
        stop_ids: tokens that end a text; None: the model's or tokenizer's end-of-text token.
        stop_strings: texts that end a text; they are cut off. Needs a tokenizer.
        banned_ids: tokens never chosen, beside the model's suppressed_ids.
        speculate: where guesses come from. "ngram": the text itself, and the source where there is
            one, which pays where it repeats itself or its prompt; "draft": the smaller model given
            as draft_model; None: no guesses.
        num_draft_tokens: guesses at a time, at most: fewer where the last ones were wrong.
        draft_ngram: longest run of tokens that is looked up in the text before.
        cache_dtype: how keys and values are kept for the tokens that follow, those of an encoder's
            output too. "float32"; "bfloat16", half the memory and bandwidth, and attention
            multiplies in bfloat16; "int8", about a quarter, with a scale for each token and head.
            None: float32, or what the engine has.
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
        >>> GenerationConfig(cache_dtype="int4")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        llmcore.errors.ConfigError: GenerationConfig: cache_dtype: expected one of 'float32', ...
    """

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    forced_prefix: Sequence[int] | None = None
    stop_ids: Sequence[int] | None = None
    stop_strings: Sequence[str] = ()
    banned_ids: Sequence[int] = ()
    speculate: Literal["ngram", "draft"] | None = None
    num_draft_tokens: int = 7
    draft_ngram: int = 3
    cache_dtype: CacheDtype | None = None
    seed: int = 0
    overflow: Literal["stop", "slide"] = "stop"

    def __post_init__(self) -> None:
        if self.do_sample is None:
            given = (self.temperature, self.top_k, self.top_p, self.min_p)
            object.__setattr__(self, "do_sample", any(value is not None for value in given))
        if isinstance(self.temperature, Real) and 0 <= self.temperature < _COLDEST:
            object.__setattr__(self, "do_sample", False)
            object.__setattr__(self, "temperature", 0.0)
        if isinstance(self.stop_strings, str):
            object.__setattr__(self, "stop_strings", (self.stop_strings,))
        check = Check(self)
        for name, holds, meaning in (
            ("max_new_tokens", lambda n: 1 <= n < 2**31, "from 1 to 2**31 - 1"),
            ("min_new_tokens", lambda n: 0 <= n < 2**31, "from 0 to 2**31 - 1"),
            ("num_beams", lambda n: 1 <= n < 2**31, "from 1 to 2**31 - 1"),
            ("num_beam_groups", lambda n: 1 <= n < 2**31, "from 1 to 2**31 - 1"),
            ("diversity_penalty", lambda penalty: penalty >= 0, "at least 0"),
            ("num_return_sequences", lambda n: n >= 1, "at least 1"),
            ("temperature", lambda t: t is None or t >= 0, "at least 0 (0: greedy)"),
            ("top_k", lambda k: k is None or 0 <= k < 2**31, "from 0 (all) to 2**31 - 1"),
            ("top_p", lambda p: p is None or 0 < p <= 1, "above 0 and at most 1"),
            ("min_p", lambda p: p is None or 0 <= p <= 1, "from 0 to 1"),
            ("repetition_penalty", lambda penalty: penalty > 0, "above 0"),
            ("no_repeat_ngram_size", lambda n: 0 <= n < 2**31, "from 0 to 2**31 - 1"),
            ("num_draft_tokens", lambda n: 1 <= n < 2**31, "from 1 to 2**31 - 1"),
            ("draft_ngram", lambda n: 1 <= n < 2**31, "from 1 to 2**31 - 1"),
            ("stop_strings", all, "texts that are not empty"),
            ("seed", lambda seed: 0 <= seed < 2**64, "from 0 to 2**64 - 1"),
        ):
            check.require(name, holds, meaning)
        self._check_beams(check)
        check.done()

    def _check_beams(self, check: Check) -> None:
        check.rule(
            ("num_beam_groups", "num_beams"),
            lambda: self.num_beams % self.num_beam_groups == 0,
            lambda: f"a divisor of num_beams = {self.num_beams}",
        )
        check.rule(
            ("diversity_penalty", "num_beam_groups"),
            lambda: self.diversity_penalty == 0 or self.num_beam_groups > 1,
            lambda: "0 without several num_beam_groups",
        )
        check.rule(
            ("num_return_sequences", "num_beams"),
            lambda: self.num_return_sequences <= self.num_beams,
            lambda: f"at most num_beams = {self.num_beams}",
        )
        check.rule(
            ("num_beams", "do_sample"),
            lambda: self.num_beams == 1 or not self.do_sample,
            lambda: "1 where tokens are drawn: beam search does not sample",
        )
        check.rule(
            ("overflow", "num_beams"),
            lambda: self.overflow == "stop" or self.num_beams == 1,
            lambda: "'stop' with beam search",
        )
        check.rule(
            ("stop_strings", "num_beams"),
            lambda: not self.stop_strings or self.num_beams == 1,
            lambda: "none with beam search: it stops at stop_ids alone",
        )
        check.rule(
            ("speculate", "num_beams"),
            lambda: self.speculate is None or self.num_beams == 1,
            lambda: "None with beam search",
        )

    def core_options(self, model: ModelConfig, stop_ids: Sequence[int]) -> _core.GenerationOptions:
        """The settings as the core takes them, with what the model's config adds.

        Raises:
            ConfigError: a setting does not fit the model.
        """
        if self.num_beams > model.vocab_size:
            raise ConfigError(
                f"generate: num_beams must be at most the vocabulary's size {model.vocab_size}, "
                f"got {self.num_beams}"
            )
        forced = self.forced_prefix
        if forced is None:
            forced = () if model.forced_bos_id is None else (model.forced_bos_id,)
        given = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "num_beams": self.num_beams,
            "num_beam_groups": self.num_beam_groups,
            "diversity_penalty": self.diversity_penalty,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
            "num_return_sequences": self.num_return_sequences,
            "do_sample": self.do_sample,
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "forced_ids": list(forced),
            "forced_eos_id": model.forced_eos_id,
            "stop_ids": list(stop_ids),
            "banned_ids": [*self.banned_ids, *model.suppressed_ids],
            "speculate": self.speculate,
            "num_draft_tokens": self.num_draft_tokens,
            "draft_ngram": self.draft_ngram,
            "cache_dtype": self.cache_dtype,
            "seed": self.seed,
        }
        options = _core.GenerationOptions()
        for name, value in given.items():
            if value is not None and (name, value) != ("temperature", 0):
                setattr(options, name, value)
        return options
