"""What a contest found: rates with their spread, shares of the machine's ceilings, ratios."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import llmcore
from llmcore.bench.engines import OURS, contestants
from llmcore.bench.machine import Ceilings, measure_ceilings
from llmcore.bench.operations import Operations
from llmcore.bench.turns import Outcome, Tell, Turns, take_turns
from llmcore.bench.workloads import Generation, Measure, Training
from llmcore.training.log import format_bytes

if TYPE_CHECKING:
    from rich.table import Table

Workload = Training | Generation | Operations


@dataclass(frozen=True)
class Row:
    """What one engine reached in one measure.

    Attributes:
        engine: Its name.
        runs: How many times it ran.
        seconds: Of the median run.
        rate: What it got done in a second, in the median run.
        slow_rate: The lower quartile of the rates.
        fast_rate: The upper quartile.
        share_of_peak: Of the peak of fp32 arithmetic measured in the same contest; None where there
            are no operations to count.
        share_of_memory: Of the bandwidth of memory; above 1 where caches hold what is read.
        peak_bytes: Most memory its process held; None if the system does not say.
        ratio: llmcore's rate over this engine's; None without llmcore.
    """

    engine: str
    runs: int
    seconds: float
    rate: float
    slow_rate: float
    fast_rate: float
    share_of_peak: float | None
    share_of_memory: float | None
    peak_bytes: int | None
    ratio: float | None


@dataclass(frozen=True)
class Contest:
    """One workload, and what became of everyone who took part.

    Attributes:
        workload: What they ran.
        ceilings: What the machine could do with as many threads, measured before.
        outcomes: Of llmcore and its peers.
    """

    workload: Workload
    ceilings: Ceilings
    outcomes: Sequence[Outcome]

    def rows(self, measure: Measure) -> list[Row]:
        """Return what each engine reached in a measure; those that did not run are left out."""
        turns = {o.name: o.turns[measure.name] for o in self.outcomes if measure.name in o.turns}
        ran = {name: turn for name, turn in turns.items() if turn.seconds}
        ours = statistics.median(ran[OURS].seconds) if OURS in ran else None
        return [self._row(measure, name, turn, ours) for name, turn in ran.items()]

    def _row(self, measure: Measure, engine: str, turns: Turns, ours: float | None) -> Row:
        median = statistics.median(turns.seconds)
        fast, slow = _quartiles(turns.seconds)
        floors = measure.floors(self.ceilings)
        return Row(
            engine=engine,
            runs=len(turns.seconds),
            seconds=median,
            rate=measure.amount / median,
            slow_rate=measure.amount / slow,
            fast_rate=measure.amount / fast,
            share_of_peak=floors["arithmetic"] / median if measure.operations else None,
            share_of_memory=floors["memory"] / median if measure.bytes else None,
            peak_bytes=turns.peak_bytes,
            ratio=None if ours is None else median / ours,
        )

    def absences(self) -> dict[str, str]:
        """Say of each engine that did not run all there was, in one line, why."""
        found = {}
        for outcome in self.outcomes:
            reasons = [] if outcome.error is None else [outcome.error]
            reasons += [f"{name}: {t.error}" for name, t in outcome.turns.items() if t.error]
            if reasons:
                found[outcome.name] = "; ".join(reasons)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it, every run's seconds included."""
        return {
            "title": self.workload.title,
            "workload": dataclasses.asdict(self.workload),
            "ceilings": dataclasses.asdict(self.ceilings),
            "measures": [
                {
                    **dataclasses.asdict(measure),
                    "floors": measure.floors(self.ceilings),
                    "engines": [dataclasses.asdict(row) for row in self.rows(measure)],
                }
                for measure in self.workload.measures()
            ],
            "engines": [dataclasses.asdict(outcome) for outcome in self.outcomes],
        }

    def table(self) -> Table:
        """Return the contest as a table for the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title=f"{self.workload.title}, {self._threads()}")
        table.title_justify = "left"
        table.add_column("measure", no_wrap=True)
        table.add_column("engine", no_wrap=True)
        for title in ("a second", "quartiles", "of peak", "of memory", "process", "llmcore"):
            table.add_column(title, justify="right", no_wrap=True)
        for measure in self.workload.measures():
            for index, row in enumerate(rows := self.rows(measure)):
                table.add_row(
                    f"{measure.name}, {measure.unit}" if index == 0 else "",
                    row.engine,
                    format_rate(row.rate),
                    f"{format_rate(row.slow_rate)}–{format_rate(row.fast_rate)}",
                    _percent(row.share_of_peak),
                    _percent(row.share_of_memory),
                    "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
                    "" if row.ratio is None else f"{row.ratio:.2f} ×",
                    end_section=index == len(rows) - 1,
                )
        return table

    def _threads(self) -> str:
        count = self.ceilings.threads
        return f"{count} thread{'s' if count > 1 else ''}"


def hold_contest(
    workload: Workload,
    peers: Sequence[str],
    *,
    threads: int,
    ceilings: Ceilings | None = None,
    tell: Tell = lambda text: None,
    **settings: Any,
) -> Contest:
    """Measure llmcore beside its peers.

    Args:
        workload: What they run; with files, they are written to a temporary folder.
        peers: Names from `llmcore.bench.engines.PEERS`.
        threads: How many each may use.
        ceilings: With as many threads; measured first if not given.
        tell: Called with a line on what is happening.
        settings: More arguments of `llmcore.bench.turns.take_turns`.

    Raises:
        ConfigError: A peer or a setting that cannot be.

    Example:
        >>> workload = Operations(["adamw"])
        >>> contest = hold_contest(workload, [], threads=1, rounds=1, seconds=0.0)
        >>> contest.rows(workload.measures()[0])[0].engine
        'llmcore'
    """
    from tempfile import TemporaryDirectory

    from llmcore.bench.engines.llmcore import write_model

    with TemporaryDirectory(prefix="llmcore-bench-") as folder:
        options = {} if isinstance(workload, Operations) else {"folder": folder}
        entrants = contestants(workload, peers, **options)
        if ceilings is None:
            [ceilings] = measure_ceilings([threads])
        if not isinstance(workload, Operations):
            write_model(workload, folder)
        names = [measure.name for measure in workload.measures()]
        outcomes = take_turns(entrants, names, threads=threads, tell=tell, **settings)
    return Contest(workload, ceilings, outcomes)


def report(contests: Sequence[Contest], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return contests as one JSON object, with what their figures depend on."""
    return {
        "settings": dict(settings),
        "machine": {"platform": platform.platform(), **llmcore.device_info()},
        "versions": {"llmcore": llmcore.__version__, "python": platform.python_version()},
        "contests": [contest.to_dict() for contest in contests],
    }


def format_rate(rate: float) -> str:
    """Write a rate with three digits or all those before the point.

    Example:
        >>> format_rate(0.1234), format_rate(12.34), format_rate(22060.4), format_rate(1e9)
        ('0.123', '12.3', '22060', '1e+09')
    """
    if rate >= 1e7:
        return f"{rate:.3g}"
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return first, third


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
