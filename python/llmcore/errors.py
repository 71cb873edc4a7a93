"""The typed errors of llmcore: each says what, where, what was expected, what came, and what to do.

Every class derives from `LlmcoreError` and from the Python built-in a caller would catch anyway, so
`except ValueError` keeps working. The C++ extension raises these same classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class LlmcoreError(Exception):
    """Base class of every error that llmcore raises on purpose."""


class ShapeError(LlmcoreError, ValueError):
    """An array has the wrong number of axes or the wrong size along one."""


class DTypeError(LlmcoreError, TypeError):
    """An array has an element type that the operation does not take."""


class DeviceError(LlmcoreError, RuntimeError):
    """A device is absent, or operands live on different devices."""


class OutOfMemory(LlmcoreError, MemoryError):  # noqa: N818  (a promised public name)
    """The device cannot hold what was asked for."""


class CheckpointError(LlmcoreError, ValueError):
    """A checkpoint cannot be read or written; the message names the file and the cause."""


class DataError(LlmcoreError, ValueError):
    """A data set or a text file is not what training needs."""


class TokenIndexError(LlmcoreError, IndexError):
    """A token, position or label id lies outside the table it indexes."""


class QueueFull(LlmcoreError, RuntimeError):  # noqa: N818  (the name of queue.Full)
    """An engine has as many requests waiting as it holds; try again later."""


class RequestCancelled(LlmcoreError, RuntimeError):  # noqa: N818  (a state, no fault)
    """The request whose result is wanted was cancelled."""


class EngineClosed(LlmcoreError, RuntimeError):  # noqa: N818  (a state, no fault)
    """The engine takes no requests any more; if an error stopped it, that is the `__cause__`."""


class ConfigError(LlmcoreError, ValueError):
    """A configuration cannot be built; every problem found is listed, not just the first.

    Attributes:
        problems: One sentence for each problem, `field: expected …, got …`.
    """

    problems: tuple[str, ...] = ()

    @classmethod
    def listing(cls, what: str, problems: Sequence[str]) -> ConfigError:
        """Build the one error that names all `problems` of `what`.

        Example:
            >>> print(ConfigError.listing("ModelConfig", ["a: expected 1, got 2"]))
            ModelConfig: a: expected 1, got 2
            >>> print(ConfigError.listing("ModelConfig", ["a is bad", "b is bad"]))
            ModelConfig has 2 problems:
              a is bad
              b is bad
        """
        if len(problems) == 1:
            error = cls(f"{what}: {problems[0]}")
        else:
            error = cls("\n  ".join([f"{what} has {len(problems)} problems:", *problems]))
        error.problems = tuple(problems)
        return error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the known name closest to `name`, or an empty string.

    Meant to be appended to a sentence about an unknown key, file or preset.

    Example:
        >>> "unknown key 'hiden_size'" + did_you_mean("hiden_size", ["hidden_size", "norm"])
        "unknown key 'hiden_size', did you mean 'hidden_size'?"
        >>> did_you_mean("zzz", ["hidden_size"])
        ''
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""
