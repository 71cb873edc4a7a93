"""What a contest found: rates with their spread, shares of the machine's ceilings, ratios."""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import llmcore
from llmcore.bench.engines import OURS, contestants
from llmcore.bench.machine import Ceilings
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
        share_of_peak: Of the peak of arithmetic, in the workload's number format, measured in the
            same contest; None where there are no operations to count.
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

    @property
    def title(self) -> str:
        """The workload and the number of threads."""
        count = self.ceilings.threads
        if self.ceilings.device != "cpu":
            return f"{self.workload.title}, {self.ceilings.device}"
        return f"{self.workload.title}, {count} thread{'s' if count > 1 else ''}"

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

    def agreements(self) -> dict[str, str]:
        """Say of each peer how what it computes agrees with llmcore, which has the same weights."""
        witnesses = {o.name: o.witness for o in self.outcomes if o.witness is not None}
        ours = witnesses.pop(OURS, None)
        if ours is None:
            return {}
        return {name: _agreement(witness, ours) for name, witness in witnesses.items()}

    def summaries(self) -> list[dict[str, Any]]:
        """Return, for each kind of operation and engine, what many sizes come to.

        Geometric means of the shares of peak and of the ratios, and the lowest share.
        """
        if not isinstance(self.workload, Operations):
            return []
        groups: dict[tuple[str, str], list[Row]] = {}
        for operation in self.workload.operations():
            for row in self.rows(operation.measure()):
                groups.setdefault((operation.kind, row.engine), []).append(row)
        found = []
        for (kind, engine), rows in groups.items():
            shares = [row.share_of_peak for row in rows if row.share_of_peak is not None]
            ratios = [row.ratio for row in rows if row.ratio is not None]
            found.append(
                {
                    "kind": kind,
                    "engine": engine,
                    "sizes": len(rows),
                    "share_of_peak": statistics.geometric_mean(shares),
                    "lowest_share_of_peak": min(shares),
                    "ratio": statistics.geometric_mean(ratios) if ratios else None,
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it, every run's seconds included."""
        return {
            "title": self.title,
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
            "summaries": self.summaries(),
            "agreements": self.agreements(),
            "absences": self.absences(),
            "engines": [dataclasses.asdict(outcome) for outcome in self.outcomes],
        }

    def table(self) -> Table:
        """Return the contest as a table for the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title=self.title)
        table.title_justify = "left"
        table.add_column("measure", no_wrap=True)
        table.add_column("engine", no_wrap=True)
        for title in (
            "median",
            "quartiles",
            "of peak",
            "of bandwidth",
            "peak memory",
            "ratio",
        ):
            table.add_column(title, justify="right", no_wrap=True)
        for measure in self.workload.measures():
            for index, row in enumerate(rows := self.rows(measure)):
                table.add_row(
                    label(measure) if index == 0 else "",
                    row.engine,
                    shown(measure, row.rate),
                    f"{shown(measure, row.slow_rate)} – {shown(measure, row.fast_rate)}",
                    _percent(row.share_of_peak),
                    _percent(row.share_of_memory),
                    "" if row.peak_bytes is None else format_bytes(row.peak_bytes),
                    "" if row.ratio is None else f"{row.ratio:.2f} ×",
                    end_section=index == len(rows) - 1,
                )
        return table

    def summary_table(self) -> Table:
        """Return `summaries` as a table for the terminal."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, title="geometric means")
        table.title_justify = "left"
        for title in ("operation", "engine", "of peak (lowest)", "ratio"):
            table.add_column(title, no_wrap=True)
        for row in self.summaries():
            share = f"{_percent(row['share_of_peak'])} ({_percent(row['lowest_share_of_peak'])})"
            ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f} ×"
            table.add_row(row["kind"], row["engine"], share, ratio)
        return table


def hold_contest(
    workload: Workload,
    peers: Sequence[str],
    *,
    ceilings: Ceilings,
    tell: Tell = lambda text: None,
    **settings: Any,
) -> Contest:
    """Measure llmcore beside its peers.

    Args:
        workload: What they run; with files, they are written to a temporary folder.
        peers: Names from `llmcore.bench.engines.PEERS`.
        ceilings: Of the machine or the GPU that they run on, as measured just before, with as many
            threads as each may use.
        tell: Called with a line on what is happening.
        settings: More arguments of `llmcore.bench.turns.take_turns`.

    Raises:
        ConfigError: A peer or a setting that cannot be.

    Example:
        >>> workload = Operations(["attention"], lengths=[8])
        >>> limits = Ceilings(1, 100e9, 200e9, 400e9, 50e9, 20e9)
        >>> contest = hold_contest(workload, [], ceilings=limits, rounds=1, seconds=0.0)
        >>> [len(contest.rows(measure)) for measure in workload.measures()]
        [1, 1]
    """
    from tempfile import TemporaryDirectory

    from llmcore.bench.engines.llmcore import write_model

    with TemporaryDirectory(prefix="llmcore-bench-") as folder:
        options = {} if isinstance(workload, Operations) else {"folder": folder}
        if ceilings.device != "cpu":
            options["device"] = ceilings.device
        entrants = contestants(workload, peers, **options)
        if not isinstance(workload, Operations):
            write_model(workload, folder)
        names = [measure.name for measure in workload.measures()]
        outcomes = take_turns(entrants, names, threads=ceilings.threads, tell=tell, **settings)
    return Contest(workload, ceilings, outcomes)


def report(contests: Sequence[Contest], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return contests as one JSON object, with what their figures depend on."""
    return {
        "settings": dict(settings),
        "machine": {"platform": platform.platform(), **llmcore.device_info()},
        "versions": {"llmcore": llmcore.__version__, "python": platform.python_version()},
        "contests": [contest.to_dict() for contest in contests],
    }


def label(measure: Measure) -> str:
    """Name a measure with what its figures count."""
    return f"{measure.name}, {measure.unit}/s" if measure.unit else measure.name


def shown(measure: Measure, rate: float) -> str:
    """Write a rate, or the time of a run where that is what counts.

    Example:
        >>> shown(Measure("step", 256, "tokens", 1.0, 1.0), 505.3)
        '505'
        >>> shown(Measure("load", 1, "", 1.0, 1.0), 40.0)
        '25 ms'
    """
    if measure.unit:
        return format_rate(rate)
    seconds = measure.amount / rate
    factor, unit = next(
        ((f, u) for f, u in ((1, "s"), (1e3, "ms")) if seconds * f >= 1), (1e6, "µs")
    )
    return f"{format_rate(seconds * factor)} {unit}"


def format_rate(rate: float) -> str:
    """Write a rate with three digits or all those before the point.

    Example:
        >>> format_rate(0.1234), format_rate(12.34), format_rate(22060.4), format_rate(1e9)
        ('0.123', '12.3', '22060', '1e+09')
    """
    if rate >= 1e7:
        return f"{rate:.3g}"
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _agreement(witness: Any, ours: Any) -> str:
    if isinstance(witness, float):
        return f"first loss {witness:.6f}, llmcore's {ours:.6f}"
    pairs = zip(witness, ours, strict=True)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return f"{same} of the first {len(ours)} tokens are llmcore's"


def _quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return first, third


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return f"{share:.1%}" if share < 0.1 else f"{share:.0%}"
