"""`Engine`: continuous batching, requests that join and leave a running batch at any time."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

from llmcore import _core
from llmcore.engine_loop import EngineStats, Loop
from llmcore.errors import ConfigError, DataError, DTypeError
from llmcore.generate import GeneratedToken, GenerationResult, Writing, check_draft, prepare
from llmcore.generation_config import CacheDtype, GenerationConfig
from llmcore.uses.texts import as_list

if TYPE_CHECKING:
    from llmcore.model import Transformer

__all__ = ["Engine", "EngineStats", "Request"]

#: Tokens of a request where the model's positions allow more, or have no end.
DEFAULT_CAPACITY = 2048


class Request:
    """What `Engine.submit` gives: the tokens of one prompt as they come, and the result.

    Iterating yields each `GeneratedToken` (its index is 0) as soon as it is there, from the first
    on, however often and from whichever thread.
    """

    def __init__(self, engine: Engine, core: _core.Request, writing: Writing) -> None:
        self.core = core
        self.writing = writing
        self._engine = engine  # which lives as long as somebody waits for this
        self._loop = engine._loop
        self._changed = threading.Condition(self._loop.lock)
        self._tokens: list[GeneratedToken] = []
        self._done = False
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether there will be no more tokens: it has ended, was cancelled, or has failed."""
        return self._done

    def cancel(self) -> bool:
        """End it now; False if it had ended before. Its place is free from the next step on."""
        return self._loop.cancel(self)

    def result(self, timeout: float | None = None) -> GenerationResult:
        """Wait for the end, and return the whole: what `Transformer.generate` gives.

        Args:
            timeout: seconds to wait at most; None: no limit.

        Raises:
            TimeoutError: it takes longer.
            RequestCancelled: `cancel` was called.
            EngineClosed: the engine was closed before the end, or stopped on an error.
            ConfigError: the logits are not finite, or the settings leave no token to choose.
        """
        self._wait(None, timeout)
        if self._error is not None:
            raise type(self._error)(*self._error.args) from self._error.__cause__
        return self.writing.result()

    def __iter__(self) -> Iterator[GeneratedToken]:
        """Tokens as they come; at the end of one that has no result, what `result` raises."""
        self._engine._check_readable()
        place = 0
        while True:
            self._wait(place + 1, None)
            if place == len(self._tokens):
                break
            yield self._tokens[place]
            place += 1
        if self._error is not None:
            self.result()

    def add(self, piece: GeneratedToken) -> None:
        """Take in a token; the loop's part."""
        self._tokens.append(piece)
        self._done = piece.finish_reason is not None
        self._changed.notify_all()

    def end(self, error: Exception) -> None:
        """Take in that no more tokens come; the loop's part."""
        self._done, self._error = True, error
        self._changed.notify_all()

    def _wait(self, count: int | None, timeout: float | None) -> None:
        """Until so many tokens are there, or the end is."""

        def ready() -> bool:
            return self._done or (count is not None and len(self._tokens) >= count)

        if ready():
            return
        self._loop.check_process()
        with self._loop.lock:
            if not self._changed.wait_for(ready, timeout):
                raise TimeoutError(f"engine: the request has not ended within {timeout} seconds")


class Engine:
    """Runs many requests on one model, a step of each at a time, from a thread of its own.

    Requests join as soon as one of `max_batch` places is free, each with its own settings, and
    leave when they end; long prompts are read in pieces between the others' tokens. Each gets, bit
    for bit, what `model.generate` gives it alone; on a GPU, whose kernels depend on how many rows
    there are, up to the last bits of log-probabilities. A prompt that begins like one that is still
    in a place, of a running request or an ended one, reuses its keys and values.

    The model can be used meanwhile; calls take turns, one of the engine's steps at a time. Its
    weights must not change while there is an engine, which remembers what they computed. A
    process made by fork has no engine: its calls raise `EngineClosed`.

    Args:
        model: a decoder, or an encoder with a decoder.
        max_batch: requests that run at a time.
        max_queue: requests that may wait beside them.
        capacity: tokens a request may have, prompt and new ones; beside an encoder, also those of
            its source. None: the model's positions, but at most 2048. Memory for max_batch times as
            many keys and values is taken as it is first needed.
        prompt_tokens: most tokens of prompts that are read in one step: fewer let running requests
            wait less, more read prompts faster.
        draft_model: guesses for requests with speculate="draft", as in `Transformer.generate`.
        cache_dtype: how keys and values are kept, as in `GenerationConfig`: "float32", "bfloat16"
            or "int8".

    Raises:
        ConfigError: the model has no decoder, an argument is out of its range, or the draft model
            does not fit.
        OutOfMemory: there is no room for the keys and values.

    Example:
        >>> from llmcore import ModelConfig, Transformer
        >>> model = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1))
        >>> with Engine(model, max_batch=4) as engine:
        ...     short = engine.submit([1, 2, 3], GenerationConfig(max_new_tokens=2))
        ...     long = engine.submit([4], GenerationConfig(max_new_tokens=5, temperature=0.8))
        ...     streamed = [token.id for token in long]
        >>> len(short.result().ids), streamed == long.result().ids
        (2, True)
    """

    def __init__(
        self,
        model: Transformer,
        *,
        max_batch: int = 8,
        max_queue: int = 256,
        capacity: int | None = None,
        prompt_tokens: int = 256,
        draft_model: Transformer | None = None,
        cache_dtype: CacheDtype = "float32",
    ) -> None:
        from llmcore.model import check_model

        check_model(model, "Engine")
        self.model = model
        self.cache_dtype = cache_dtype
        self.capacity = _capacity(model, capacity)
        for name, value in (
            ("max_batch", max_batch),
            ("max_queue", max_queue),
            ("prompt_tokens", prompt_tokens),
        ):
            if not isinstance(value, Integral) or not 1 <= value < 2**31:
                raise ConfigError(
                    f"Engine: {name} must be a whole number from 1 to 2**31 - 1, got {value!r}"
                )
        if cache_dtype not in get_args(CacheDtype):
            choices = ", ".join(map(repr, get_args(CacheDtype)))
            raise ConfigError(f"Engine: cache_dtype must be one of {choices}, got {cache_dtype!r}")
        if draft_model is not None:
            check_draft(model, draft_model)
        draft = None if draft_model is None else draft_model._core
        core = _core.Engine(
            model._core, max_batch, self.capacity, prompt_tokens, draft, cache_dtype
        )
        self._loop = Loop(model, core, max_queue, draft)
        # When nobody refers to the engine any more, and when the interpreter ends.
        self._finalize = weakref.finalize(self, self._loop.close, False)

    def submit(
        self, prompt: Any, config: GenerationConfig | None = None, *, timeout: float | None = 0.0
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: a text, or a list of ids.
            config: as for `Transformer.generate`; no beam search.
            timeout: seconds to wait for room in the queue; None: no limit.

        Returns:
            The request, at once.

        Raises:
            QueueFull: max_queue requests are waiting, after `timeout` seconds still.
            EngineClosed: the engine is closed, or has stopped on an error.
            ConfigError: settings that do not fit the model, or beam search.
            DataError: the prompt has no tokens, or there are several.
            ShapeError: the prompt and the new tokens do not fit the capacity.
            TokenIndexError: an id outside the vocabulary.
        """
        self._loop.check_process()
        settings = GenerationConfig() if config is None else config
        if not isinstance(settings, GenerationConfig):
            raise DTypeError(
                "engine: config must be a GenerationConfig, for example "
                f"GenerationConfig(max_new_tokens=20), got a {type(settings).__name__}"
            )
        if settings.cache_dtype not in (None, self.cache_dtype):
            raise ConfigError(
                f"engine: its cache_dtype is {self.cache_dtype!r} for all requests, got "
                f"{settings.cache_dtype!r}; leave it out, or make the engine with it"
            )
        prompts = as_list(prompt, "engine: a prompt")
        if len(prompts) != 1:
            raise DataError(
                f"engine: a request has one prompt, a text or a list of ids, got {len(prompts)}; "
                "submit each by itself"
            )
        job = prepare(self.model, prompts, settings)
        source = job.sources[0] if job.sources else None
        core = _core.Request(job.prompts[0], source, job.options, settings.overflow == "slide")
        self._loop.core.check(core)
        request = Request(self, core, Writing(self.model, settings, job.stop_ids))
        self._loop.put(request, timeout)
        return request

    def stats(self) -> EngineStats:
        """Counts since the engine was made, and what it has at hand."""
        return self._loop.stats()

    def close(self, *, drain: bool = False) -> None:
        """Take no more requests, and end the thread.

        Args:
            drain: finish those that there are first; otherwise they end with `EngineClosed`.
        """
        self._loop.close(drain)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish the requests, unless an error leaves the block."""
        self.close(drain=error is None)

    def _check_readable(self) -> None:
        if self.model.config.right_to_left:
            raise ConfigError(
                "engine: the model writes from right to left, so that its text is known only at "
                "the end; wait for result()"
            )


def _capacity(model: Transformer, capacity: int | None) -> int:
    config = model.config
    if config.kind == "encoder":
        raise ConfigError("Engine: the model is an encoder, which has no decoder to write with")
    bounded = config.positions not in ("none", "relative")
    if capacity is None:
        return min(config.max_positions, DEFAULT_CAPACITY) if bounded else DEFAULT_CAPACITY
    most = config.max_positions if bounded else 2**31 - 1
    if not isinstance(capacity, Integral) or not 1 <= capacity <= most:
        raise ConfigError(
            f"Engine: capacity must be a number of tokens from 1 to {most}, got {capacity!r}"
        )
    return capacity
