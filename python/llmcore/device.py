"""Threads, memory, and what this machine has."""

from __future__ import annotations

import operator
from typing import Any

from llmcore import _core
from llmcore.errors import ConfigError


def device_info() -> dict[str, Any]:
    """What the core found on this machine.

    Returns:
        `cpu_model`, `isa_available` and `isa_chosen` (kernel tables), `isa_has_dot` (whether that
        one has instructions for dot products of bfloat16 and int8), `num_threads`,
        `logical_cores`, `affinity_cores`, `physical_cores`, `quota_cores` (0: no limit),
        `memory_bytes` (that this process may use), `cuda` with `build` ("OFF", "ON" or, for tests,
        "EMULATED"), `available` and `reason`, with CUDA also `driver_version`, `runtime_version`,
        `devices` and `libraries`; and `settings`: the environment variables, empty where not set.

    Example:
        >>> device_info()["isa_chosen"] in device_info()["isa_available"]
        True
    """
    info: dict[str, Any] = _core.device_info()
    return info


def set_num_threads(n: int) -> None:
    """Set how many threads compute, the calling one included. Results do not depend on it.

    Args:
        n: from 1 to 4096.

    Raises:
        ConfigError: `n` is out of range.

    Example:
        >>> before = get_num_threads()
        >>> set_num_threads(1)
        >>> get_num_threads()
        1
        >>> set_num_threads(before)
    """
    try:
        count = operator.index(n)
    except TypeError:
        raise ConfigError(f"set_num_threads: n must be a whole number, got {n!r}") from None
    _core.set_num_threads(count)


def get_num_threads() -> int:
    """How many threads compute.

    The default is the number of physical cores this process may use, or LLMCORE_NUM_THREADS.
    """
    return _core.get_num_threads()


def cuda_available() -> bool:
    """Whether `device="cuda"` can be used; `device_info()["cuda"]["reason"]` says why not."""
    return not _core.cuda_unavailable_reason()


def memory_stats(device: str = "cpu") -> dict[str, int]:
    """Bytes llmcore holds for parameters, activations and caches.

    Args:
        device: "cpu", "cuda" or "cuda:<index>".

    Returns:
        `current_bytes` and `peak_bytes`, the largest so far.

    Raises:
        DeviceError: the device cannot be used, with the reason.

    Example:
        >>> stats = memory_stats()
        >>> 0 <= stats["current_bytes"] <= stats["peak_bytes"]
        True
    """
    stats: dict[str, int] = _core.memory_stats(device)
    return stats
