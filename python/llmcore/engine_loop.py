"""The thread behind `Engine`: what waits, what runs, and who learns of what."""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmcore.errors import ConfigError, EngineClosed, QueueFull, RequestCancelled

if TYPE_CHECKING:
    from llmcore import _core
    from llmcore.engine import Request
    from llmcore.model import Transformer


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """What an engine has at hand, and what it has done.

    Attributes:
        running: requests that have a place.
        queued: requests that wait for one.
        finished: requests that came to their end.
        cancelled: requests that were cancelled, or were open when the engine closed.
        failed: requests that ended with an error.
        tokens: new tokens given out.
        prompt_tokens: tokens of prompts that the model has read.
        reused_tokens: tokens of prompts whose keys and values were there already.
        guessed_tokens: tokens that speculation has guessed.
        accepted_tokens: those of them that the model has confirmed.
        steps: passes through the loop.
    """

    running: int
    queued: int
    finished: int
    cancelled: int
    failed: int
    tokens: int
    prompt_tokens: int
    reused_tokens: int
    guessed_tokens: int
    accepted_tokens: int
    steps: int


class Loop:
    """Moves requests from the queue to the core, and tokens from the core to the requests.

    The core belongs to the thread; everything else is guarded by `lock`. The thread ends when the
    loop is closed, or on an error, of which every open request learns.
    """

    def __init__(
        self,
        model: Transformer,
        core: _core.Engine,
        max_queue: int,
        draft: _core.Transformer | None,
    ) -> None:
        self.core = core
        self.lock = threading.RLock()
        self.stepping = threading.Lock()  # held while the core is at work; see `_before_fork`
        self._model = model
        self._draft = draft
        self._max_queue = max_queue
        self._process = os.getpid()
        self._work = threading.Condition(self.lock)  # there is something to do
        self._space = threading.Condition(self.lock)  # the queue is shorter
        self._queue: deque[Request] = deque()
        self._running: dict[int, Request] = {}
        self._closing = False  # takes no requests
        self._failure: BaseException | None = None
        self._counts = dict.fromkeys(("finished", "cancelled", "failed", "tokens", "steps"), 0)
        self._thread = threading.Thread(target=self._run, name="llmcore-engine", daemon=True)
        _loops.add(self)
        self._thread.start()

    def check_process(self) -> None:
        """Raise `EngineClosed` in a process made by fork: the thread is not there."""
        if os.getpid() != self._process:
            raise EngineClosed(
                "engine: it belongs to the process that made it; make one after the fork"
            )

    def put(self, request: Request, timeout: float | None) -> None:
        """Queue a request, within `timeout` seconds."""
        with self.lock:
            self._space.wait_for(
                lambda: self._closing or len(self._queue) < self._max_queue, timeout
            )
            if self._closing:
                raise self._closed() from self._failure
            if len(self._queue) >= self._max_queue:
                raise QueueFull(
                    f"engine: {self._max_queue} requests are waiting, as many as max_queue allows; "
                    "try again later, or wait with timeout=None"
                )
            self._queue.append(request)
            self._work.notify()

    def cancel(self, request: Request) -> bool:
        """End a request; False if it has ended."""
        self.check_process()
        with self.lock:
            if request.done:
                return False
            self._end(request, RequestCancelled("engine: the request was cancelled"), "cancelled")
            if request in self._queue:
                self._queue.remove(request)
                self._space.notify()
            return True

    def stats(self) -> EngineStats:
        """See `Engine.stats`."""
        self.check_process()
        with self.lock:
            return EngineStats(
                running=sum(not request.done for request in self._running.values()),
                queued=len(self._queue),
                prompt_tokens=self.core.read_tokens,
                reused_tokens=self.core.copied_tokens,
                guessed_tokens=self.core.guessed_tokens,
                accepted_tokens=self.core.accepted_tokens,
                **self._counts,
            )

    def close(self, drain: bool) -> None:
        """See `Engine.close`."""
        if os.getpid() != self._process:
            return
        with self.lock:
            self._closing = True
            if not drain:
                self._end_all(self._closed(), "cancelled")
            self._work.notify()
            self._space.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_in():
                with self.stepping:
                    tokens = self.core.step(self._model._core, self._draft)
                self._give_out(tokens)
        except BaseException as error:  # whoever waits has to learn of any
            with self.lock:
                self._closing, self._failure = True, error
                closed = self._closed()
                closed.__cause__ = error
                self._end_all(closed, "failed")
                self._space.notify_all()

    def _take_in(self) -> bool:
        """Wait until there is something to compute; False: there will be nothing any more."""
        with self.lock:
            while True:
                self._fill_places()
                if self._running:
                    return True
                if self._closing:
                    return False
                self._work.wait()  # with no request in hand, which would keep its engine alive

    def _fill_places(self) -> None:
        for number in [n for n, request in self._running.items() if request.done]:
            self.core.leave(number)
            del self._running[number]
        while self._queue and self.core.has_room:
            request = self._queue.popleft()
            self._running[self.core.join(request.core)] = request
            self._space.notify()

    def _give_out(self, tokens: list[tuple[int, int, float, str | None, bool, str]]) -> None:
        with self.lock:
            self._counts["steps"] += 1
            for number, token, logprob, reason, guessed, failure in tokens:
                request = self._running[number]
                if reason is not None:
                    del self._running[number]
                if request.done:  # cancelled during the step, or ended by a stop string
                    continue
                if failure:
                    self._end(request, ConfigError(failure), "failed")
                    continue
                self._counts["tokens"] += 1
                piece = request.writing.push(0, token, logprob, reason, guessed)
                self._counts["finished"] += piece.finish_reason is not None
                request.add(piece)

    def _end(self, request: Request, error: Exception, count: str) -> None:
        self._counts[count] += 1
        request.end(error)

    def _end_all(self, error: Exception, count: str) -> None:
        for request in [*self._queue, *self._running.values()]:
            if not request.done:
                self._end(request, error, count)
        self._queue.clear()

    def _closed(self) -> EngineClosed:
        if self._failure is None:
            return EngineClosed("engine: it is closed")
        kind = type(self._failure).__name__
        return EngineClosed(f"engine: it has stopped on an error: {kind}: {self._failure}")


# A process made by fork must not inherit a model that a step holds locked.
_loops: weakref.WeakSet[Loop] = weakref.WeakSet()
_forking = threading.Lock()
_held: list[Loop] = []


def _before_fork() -> None:
    _forking.acquire()
    _held.extend(_loops)
    for loop in _held:
        loop.stepping.acquire()


def _after_fork() -> None:
    while _held:
        _held.pop().stepping.release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )
