"""What a run tells: metrics as JSON lines, a progress line, TensorBoard events if asked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from llmcore.atomic import write_atomically
from llmcore.errors import ConfigError

#: Least seconds between two updates of the progress line: redrawn in place, or a line of its own.
_LIVE_INTERVAL, _PLAIN_INTERVAL = 0.25, 2.0


class MetricsLog:
    """A file of JSON lines that a killed run leaves readable and a resumed run does not double.

    Every line is one object with "step" and the time of writing ("time", seconds since 1970).
    Numbers that are not finite are written as the strings "nan", "inf" and "-inf", because JSON has
    no word for them.

    Args:
        path: the file; its directory must exist.
        keep_until: with a step, the lines up to it are kept and later ones (of the run that was
            killed after its last checkpoint) dropped; with None the file starts empty.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from llmcore.training.log import MetricsLog
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with MetricsLog(path) as log:
        ...     log.write(step=1, loss=4.2)
        ...     log.write(step=2, loss=4.1)
        >>> with MetricsLog(path, keep_until=1) as log:
        ...     [record["loss"] for record in log.records]
        [4.2]
    """

    def __init__(self, path: str | Path, *, keep_until: int | None = None) -> None:
        self.path = Path(path)
        self.records: list[dict[str, Any]] = []
        if keep_until is not None:
            self.records = [r for r in read_metrics(self.path) if r["step"] <= keep_until]
        lines = "".join(json.dumps(record) + "\n" for record in self.records)
        write_atomically(self.path, lines.encode())
        # Line buffering: each record reaches the operating system at once, so a kill loses none.
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def write(self, *, step: int, **values: Any) -> None:
        """Append one line."""
        record = {"step": step, **values, "time": round(time.time(), 3)}
        record = {key: _json_safe(value) for key, value in record.items()}
        self.records.append(record)
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:  # say which file; a bare write does not
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Close the file; further writes are errors."""
        # What could not be written was reported by `write`; closing tries it once more.
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file; a missing file has none.

    A line that is not a JSON object with a step (the one being written when the power went) and
    what follows it are left out.
    """
    records = []
    path = Path(path)
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                record["step"] = int(record["step"])
            except (ValueError, TypeError, KeyError):
                break
            records.append(record)
    return records


class TensorBoardLog:
    """Scalars for TensorBoard, written with its own package.

    Raises:
        ConfigError: the tensorboard package is not installed.
    """

    def __init__(self, directory: str | Path, *, first_step: int) -> None:
        try:
            event_pb2 = import_module("tensorboard.compat.proto.event_pb2")
            summary_pb2 = import_module("tensorboard.compat.proto.summary_pb2")
            writer = import_module("tensorboard.summary.writer.event_file_writer")
        except ImportError:
            raise ConfigError(
                "tensorboard was asked for but is not installed; install it"
                " (pip install tensorboard) or leave the option out"
            ) from None
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = writer.EventFileWriter(str(directory))
        # A session start makes TensorBoard forget what a killed run wrote at later steps.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(
            self._event(step=first_step, wall_time=time.time(), session_log=start)
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each named curve."""
        scalars = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._writer.add_event(
            self._event(step=step, wall_time=time.time(), summary=self._summary(value=scalars))
        )

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Progress:
    """Where a run stands: one line redrawn in place in a terminal, plain lines anywhere else.

    Args:
        total: number of steps.
        done: steps made before (by the run that is resumed).
        stream: where to write; standard output if not given.
    """

    def __init__(self, total: int, *, done: int = 0, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = stream or sys.stdout
        self._bar: Any = None
        if self._stream.isatty() and os.environ.get("TERM") != "dumb":
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(bar_width=12), TextColumn("{task.description}", markup=False))
            self._console = Console(file=self._stream, highlight=False)
            self._bar = Bar(*columns, console=self._console, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, completed=done)
            self._bar.start()

    @property
    def live(self) -> bool:
        """Whether the line is redrawn in place, so that calling `update` often costs no lines."""
        return self._bar is not None

    def update(self, step: int, parts: Sequence[str]) -> None:
        """Show the parts, most wanted first: a narrow terminal leaves out the last of them."""
        if self._bar is None:
            self.say(_line(step, self._total, parts, width=None))
        else:
            line = _line(step, self._total, parts, width=self._console.width - 14)
            self._bar.update(self._task, completed=step, description=line)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the last state of the line on the screen and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()


class RunLog:
    """Everything a run tells, in one place: metrics file, screen, and TensorBoard if asked.

    Args:
        directory: where metrics.jsonl and tensorboard/ go.
        total: number of steps.
        done: steps made before.
        resumed: keep the metrics up to `done`; a run that is not resumed starts an empty file.
        tensorboard: whether to write events for it.
    """

    def __init__(
        self, directory: Path, *, total: int, done: int, resumed: bool, tensorboard: bool
    ) -> None:
        self._board = None
        if tensorboard:
            self._board = TensorBoardLog(directory / "tensorboard", first_step=done)
        self._metrics = MetricsLog(
            directory / "metrics.jsonl", keep_until=done if resumed else None
        )
        self._progress = Progress(total, done=done)
        self._shown_at = 0.0

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self._metrics.records

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record numbers of this step in the metrics file and on the board."""
        self._metrics.write(step=step, **values)
        if self._board is not None:
            numbers = {n: float(v) for n, v in values.items() if isinstance(v, (int, float))}
            self._board.write(step, numbers)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._progress.say(text)

    def wants_update(self, *, last: bool = False) -> bool:
        """Whether it is time to show the progress again: often on a terminal, else rarely.

        The `last` state is what stays on a terminal, so it is always shown there.
        """
        if last and self._progress.live:
            return True
        interval = _LIVE_INTERVAL if self._progress.live else _PLAIN_INTERVAL
        return time.monotonic() - self._shown_at >= interval

    def update(self, step: int, parts: Sequence[str]) -> None:
        """Show where the run stands."""
        self._shown_at = time.monotonic()
        self._progress.update(step, parts)

    def close(self) -> None:
        """Give back the terminal and the files."""
        self._progress.close()
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _line(step: int, total: int, parts: Sequence[str], width: int | None) -> str:
    words = [f"step {step:>{len(str(total))}}/{total}", *parts]
    while width is not None and len(words) > 1 and len("  ".join(words)) > width:
        words.pop()
    return "  ".join(words)


def format_count(number: float) -> str:
    """Write a count with three digits: 124439808 is "124M".

    Example:
        >>> from llmcore.training.log import format_count
        >>> [format_count(n) for n in (65, 1003854, 41250.0, 1.5e9)]
        ['65', '1.00M', '41.2k', '1.50G']
    """
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{letter}"
    return f"{number:.0f}"


def format_bytes(number: float) -> str:
    """Write a size in binary units.

    Example:
        >>> from llmcore.training.log import format_bytes
        >>> format_bytes(512), format_bytes(3 * 2**20), format_bytes(1.25 * 2**30)
        ('512 B', '3.0 MiB', '1.2 GiB')
    """
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number:.0f} B"


def format_duration(seconds: float) -> str:
    """Write a duration as minutes and seconds, or hours, minutes and seconds.

    Example:
        >>> from llmcore.training.log import format_duration
        >>> format_duration(72), format_duration(3 * 3600 + 5 * 60 + 7)
        ('1:12', '3:05:07')
    """
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _json_safe(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
