"""Contestants for the tests of taking turns: what they run is nothing, or goes wrong."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from llmcore.bench.worker import Built
from llmcore.errors import ConfigError


def steady(seconds=0.25, witness=None):
    """Takes as long as it says, without waiting."""
    return Built({"run": lambda: seconds, "other": lambda: 2 * seconds}, "1.0", witness)


def environment():
    names = ("LLMCORE_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return steady(witness=[os.environ[name] for name in names])


def late():
    time.sleep(0.5)
    return steady()


def diary(path, name):
    """Writes down when each of its runs began and ended."""

    def run():
        with Path(path).open("a") as file:
            file.write(f"{name} begins\n")
            file.flush()
            time.sleep(0.05)
            file.write(f"{name} ends\n")
        return 0.05

    return Built({"run": run}, "1.0")


def prepare(path, name):
    Path(path).write_text(f"{name} prepared in {os.getpid()}\n")


def prepared(path, name):
    return steady(witness=[Path(path).read_text().strip(), os.getpid()])


def chatty():
    print("libraries like to talk")
    os.write(1, b"on file descriptor 1 too\n")
    return steady()


def refuses():
    raise ConfigError("not available: it has\nno such thing")


def not_installed():
    import no_such_package_anywhere.part  # noqa: F401


def dies():
    print("cannot allocate the moon", file=sys.stderr)
    os._exit(3)


def hangs():
    time.sleep(60)


def stops_at(run):
    """Is killed in the run of this number, from 1 on."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == run:
            os.kill(os.getpid(), 9)
        return 0.25

    return Built({"run": step}, "1.0")


def raises_at(run):
    """Raises in the run of this number; its other measure goes on."""
    count = 0

    def step():
        nonlocal count
        count += 1
        if count == run:
            raise ValueError("no more")
        return 0.25

    return Built({"run": step, "other": lambda: 0.5}, "1.0")


def lacks():
    return Built({"other": lambda: 0.5}, "1.0")
