"""Running the command line in this process or in one of its own."""

from __future__ import annotations

import subprocess
import sys

from llmcore import cli

TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind\n" * 60

# A run that takes a moment.
SMALL = ["--steps", 12, "--eval-interval", 4, "--eval-batches", 2, "--batch-size", 2,
         "--block-size", 16, "--sample-tokens", 8, "--log-interval", 2, "--set",
         "model.hidden_size=16", "--set", "model.num_decoder_layers=1"]  # fmt: skip


def run(capsys, *words):
    """Exit status, standard output and standard error of one command."""
    status = cli.main(list(map(str, words)))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fails(capsys, status, *words):
    """Run a command that must fail with one readable line; return the line."""
    found, _, err = run(capsys, *words)
    lines = err.strip().splitlines()
    assert found == status, err
    assert len(lines) == 1, err
    assert lines[0].startswith("llmcore: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    return lines[0]


def child(*words, before=(), **options):
    """Start a command in a process of its own; `before` are words before it, such as `nice`."""
    command = [*before, sys.executable, "-m", "llmcore.cli", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)
