"""The directory of a run: whether it may be written to, and what is there from before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from llmcore import checkpoint
from llmcore.atomic import finish, reason
from llmcore.errors import CheckpointError, ConfigError
from llmcore.training.train_config import TrainConfig


def refuse_second_run(config: TrainConfig) -> None:
    """Raise unless the run of `config` may write to its directory.

    Raises:
        CheckpointError: another run's checkpoint is there, and neither resume nor overwrite is set.
    """
    out_dir = Path(config.out_dir)
    if not (config.resume or config.overwrite) and checkpoint.exists(out_dir / "last"):
        raise CheckpointError(
            f"{out_dir} already holds a run: continue it with --resume, start over with"
            " --overwrite, or choose another place with --out-dir"
        )


def make_directory(out_dir: Path) -> None:
    """Make the directory of a run, and check that it can be written to.

    Raises:
        ConfigError: it cannot.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(out_dir, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileExistsError:
        raise ConfigError(f"out_dir {out_dir} is a file; name a directory") from None
    except OSError as error:
        raise ConfigError(f"out_dir {out_dir} cannot be written to: {reason(error)}") from None


def finish_saves(out_dir: Path) -> None:
    """Carry to its end what a run that was killed had been saving: by name, files are then current.

    Raises:
        CheckpointError: the disk refuses.
    """
    try:
        for directory in filter(Path.is_dir, (out_dir / "last", out_dir / "best")):
            finish(directory)
    except OSError as error:
        raise CheckpointError(f"{out_dir}: a save cannot be finished: {reason(error)}") from error


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The model directory meant by `path`: itself, or the best (else last) one of a run.

    Raises:
        CheckpointError: there is no model.
    """
    path = Path(path)
    for candidate in (path, path / "best", path / "last"):
        if checkpoint.exists(candidate):
            return candidate
    if not path.exists():
        raise CheckpointError(f"there is no model at {path}; train one with llmcore train")
    if path.is_file():
        raise CheckpointError(f"{path} is a file; name the directory that holds config.json")
    raise CheckpointError(f"{path} holds no model: it has no config.json, best/ or last/")


def is_directory(path: str) -> bool:
    """Whether `path` is an existing directory."""
    return bool(path) and Path(path).is_dir()
