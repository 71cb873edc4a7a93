"""Running contestants in turns: each in a process of its own, one at a time, in rotating order."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmcore.errors import ConfigError

# OpenMP's threads spin for up to 0.2 s after their last work (Intel's KMP_BLOCKTIME); whoever is
# next must not share the cores with them.
_SETTLE_SECONDS = 0.3
# The variables by which libraries learn how many threads they may use.
_THREADS = ("LLMCORE_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Contestant:
    """Who takes part, and how its process is set up.

    Attributes:
        name: What reports call it.
        build: `module:function` that returns a `llmcore.bench.worker.Built`.
        options: Its keyword arguments, as JSON can hold them.
        prepare: `module:function` that is called with the same arguments in a process of its own
            before, so that the memory it takes (to convert files) is not counted; or None.
    """

    name: str
    build: str
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: str | None = None


@dataclass
class Turns:
    """What one contestant did in one measure.

    Attributes:
        seconds: Of each run, in the order they were made.
        peak_bytes: The most memory its process held during them; None if the system does not say.
        error: Why there are no more, in one line; None if nothing went wrong.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    error: str | None = None


@dataclass
class Outcome:
    """What became of one contestant.

    Attributes:
        name: The contestant's.
        version: Of its engine; empty if it did not start.
        ready_seconds: From the first import to being ready for the first turn.
        witness: See `llmcore.bench.worker.Built`.
        turns: By measure.
        error: Why it did not start, or ended early, in one line; None if nothing went wrong.
    """

    name: str
    version: str = ""
    ready_seconds: float | None = None
    witness: Any = None
    turns: dict[str, Turns] = field(default_factory=dict)
    error: str | None = None


class Stopped(Exception):  # noqa: N818  (what happened, not what is wrong)
    """A contestant's process ended, or gave no answer in time."""


class Process:
    """A contestant's process, which is told what to do over a pipe and answers over another.

    Args:
        threads: How many the libraries in it may use.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, *, threads: int, timeout: float) -> None:
        self._timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        paths = [path or os.getcwd() for path in sys.path]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "llmcore.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                **dict.fromkeys(_THREADS, str(threads)),
                "PYTHONPATH": os.pathsep.join(paths),
            },
        )

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the answer.

        Raises:
            Stopped: There was none.
        """
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None  # both are pipes
        assert stdout is not None
        try:
            stdin.write(json.dumps(message).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise Stopped(self._last_words()) from None
        if not select.select([stdout], [], [], self._timeout)[0]:
            raise Stopped(f"no answer for {self._timeout:g} seconds")
        line = stdout.readline()
        if not line:
            raise Stopped(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        status = self._child.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"{how}: {lines[-1].strip()[:200]}" if lines else how


def check_settings(*, rounds: int, seconds: float, threads: int) -> None:
    """Raise a ConfigError for settings of `take_turns` that are out of range."""
    if rounds < 1 or threads < 1 or not seconds >= 0:
        raise ConfigError(
            f"rounds and threads must be from 1 on and seconds not below 0, got {rounds}, "
            f"{threads} and {seconds:g}"
        )


def take_turns(
    contestants: Sequence[Contestant],
    measures: Sequence[str],
    *,
    rounds: int = 5,
    seconds: float = 1.0,
    threads: int = 1,
    timeout: float = 900.0,
    tell: Tell = lambda text: None,
) -> list[Outcome]:
    """Measure contestants beside each other.

    Each lives in a process of its own from the first round to the last, so that what it compiles
    and loads is paid for once. They are started one after the other, each runs every measure once
    to warm up, and then they take turns: in each round, for each measure, each of them runs it for
    `seconds`, the others waiting. Every round begins with another contestant. A measure that a
    contestant does not have is left out of its outcome. One that does not start, stops or fails is
    left out from there on, and its outcome says why.

    Args:
        contestants: Who takes part; no two of a name.
        measures: The names of what is measured, in order.
        rounds: How many.
        seconds: Of one turn; what takes longer runs once.
        threads: How many each may use.
        timeout: Seconds after which an answer is no longer waited for.
        tell: Called with a line on what is happening.

    Returns:
        An outcome for each contestant, in order.

    Raises:
        ConfigError: A setting is out of range, or two contestants share a name.

    Example:
        >>> contestant = Contestant("nobody", "llmcore.bench.no_such_module:build")
        >>> take_turns([contestant], ["run"], rounds=1)[0].error is None
        False
    """
    names = [contestant.name for contestant in contestants]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"some engines must take part, each of them once, got {names}")
    check_settings(rounds=rounds, seconds=seconds, threads=threads)
    outcomes = {name: Outcome(name) for name in names}
    processes: dict[str, Process] = {}
    try:
        for contestant in contestants:
            outcome = outcomes[contestant.name]
            try:
                process, known = _start(contestant, outcome, threads, timeout)
            except Stopped as stopped:
                outcome.error = str(stopped)
            if outcome.error is not None:
                tell(f"{contestant.name}: {outcome.error}")
                continue
            processes[contestant.name] = process
            for measure in (measure for measure in measures if measure in known):
                outcome.turns[measure] = Turns()
                _take_turn(processes, outcome, measure, seconds=0.0, keep=False)
            tell(f"{contestant.name}: ready after {outcome.ready_seconds or 0.0:.1f} s")
        for number in range(rounds):
            first = number % len(names)
            for measure in measures:
                for name in (*names[first:], *names[:first]):
                    _take_turn(processes, outcomes[name], measure, seconds=seconds, keep=True)
            tell(f"round {number + 1} of {rounds}")
    finally:
        for process in processes.values():
            process.close()
    return list(outcomes.values())


def _start(
    contestant: Contestant, outcome: Outcome, threads: int, timeout: float
) -> tuple[Process, set[str]]:
    """Start a contestant's process and let it build: the process, and what can be measured in it.

    What else it answers becomes the outcome's.
    """
    options = dict(contestant.options)
    if contestant.prepare is not None:
        helper = Process(threads=threads, timeout=timeout)
        try:
            answer = helper.ask(build=contestant.prepare, options=options)
        finally:
            helper.close()
        if "error" in answer:
            raise Stopped(answer["error"])
    start = time.perf_counter()
    process = Process(threads=threads, timeout=timeout)
    try:
        answer = process.ask(build=contestant.build, options=options)
    except Stopped:
        process.close()
        raise
    if "error" in answer:
        process.close()
        raise Stopped(answer["error"])
    outcome.ready_seconds = time.perf_counter() - start
    outcome.version, outcome.witness = answer["version"], answer["witness"]
    return process, set(answer["measures"])


def _take_turn(
    processes: dict[str, Process], outcome: Outcome, measure: str, *, seconds: float, keep: bool
) -> None:
    """Let one contestant run one measure, unless it has failed."""
    process, turns = processes.get(outcome.name), outcome.turns.get(measure)
    if process is None or turns is None or turns.error is not None:
        return
    time.sleep(_SETTLE_SECONDS)
    try:
        answer = process.ask(run=measure, seconds=seconds, least=1)
    except Stopped as stopped:
        outcome.error = str(stopped)
        processes.pop(outcome.name).close()
        return
    if "error" in answer:
        turns.error = answer["error"]
        return
    if answer["peak_bytes"] is not None:
        turns.peak_bytes = max(turns.peak_bytes or 0, answer["peak_bytes"])
    if keep:
        turns.seconds += answer["seconds"]
