"""The machine's ceilings: rates that no program on it can exceed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import llmcore
from llmcore import _core
from llmcore.errors import ConfigError, OutOfMemory
from llmcore.training.log import format_bytes
from llmcore.training.plan import available_memory, measure_peak_flops

#: Read again and again, this much a thread comes from its own second-level cache.
_CACHED_BYTES = 256 << 10


@dataclass(frozen=True)
class Ceilings:
    """What all of some threads reach together.

    Attributes:
        threads: How many.
        flops: Operations per second, two for each fp32 multiply-add of the vectors in use
            (`llmcore.device_info()["isa_chosen"]`), on registers alone.
        bfloat16_flops: The same for bfloat16 with float32 sums.
        int8_flops: The same for int8 with 32-bit sums.
        cache_bytes_per_second: Reading from each core's own cache.
        memory_bytes_per_second: Reading from memory, each thread a region of its own.
        device: What it is that reaches them. A GPU's rates are those of large products of random
            numbers, int8 counting as bfloat16, and of reading and writing its memory.
    """

    threads: int
    flops: float
    bfloat16_flops: float
    int8_flops: float
    cache_bytes_per_second: float
    memory_bytes_per_second: float
    device: str = "cpu"

    def peak(self, dtype: str) -> float:
        """Return the operations per second of numbers of this format; int4 is multiplied as int8.

        Example:
            >>> Ceilings(1, 100e9, 200e9, 400e9, 50e9, 20e9).peak("int4")
            400000000000.0
        """
        peaks = {"float32": self.flops, "bfloat16": self.bfloat16_flops}
        return peaks.get(dtype, self.int8_flops)


def measure_ceilings(
    threads: Sequence[int] | None = None, *, seconds: float = 0.5, size: int = 1 << 29
) -> list[Ceilings]:
    """Measure the ceilings of this machine, for each number of threads.

    The best of many rounds counts, so that other work on the machine matters little while it leaves
    a core alone now and then.

    Args:
        threads: How many to measure with, one after the other; 1 and all that llmcore uses if not
            given.
        seconds: For each of the five rates.
        size: Bytes to read for the rate of memory: several times the last-level cache.

    Raises:
        ConfigError: A number of threads below 1, or a size or time that is not positive.
        OutOfMemory: There is not so much memory as `size`.

    Example:
        >>> [ceilings] = measure_ceilings([1], seconds=0.01, size=1 << 20)
        >>> ceilings.flops > 1e9
        True
    """
    before = llmcore.get_num_threads()
    counts = list(dict.fromkeys([1, before] if threads is None else threads))
    if not counts or min(counts) < 1:
        raise ConfigError(f"threads must be numbers from 1 on, got {counts}")
    if seconds <= 0 or size < 4 * max(counts):
        raise ConfigError(f"seconds and size must be positive, got {seconds} and {size}")
    free = available_memory()
    if free is not None and size > free:
        raise OutOfMemory(
            f"{format_bytes(size)} to read, but only {format_bytes(free)} are free: give a smaller"
            " size"
        )
    data = llmcore.zeros([size // 4])
    _core.fill(value=1.0, y=data)  # zeros that were never written have no memory of their own
    try:
        return [_measure(count, seconds, data) for count in counts]
    finally:
        llmcore.set_num_threads(before)


def measure_gpu(device: str, threads: int = 1) -> Ceilings:
    """Measure what a GPU reaches in large products, and in reading and writing its memory.

    Args:
        device: "cuda" or "cuda:<index>".
        threads: How many of the CPU's ask it, which is only told.
    """
    narrow = measure_peak_flops(device)
    memory = _copied_bytes(device)
    return Ceilings(
        threads=threads,
        flops=measure_peak_flops(device, dtype="float32"),
        bfloat16_flops=narrow,
        int8_flops=narrow,
        cache_bytes_per_second=memory,
        memory_bytes_per_second=memory,
        device=device,
    )


def _copied_bytes(device: str, most: int = 1 << 29) -> float:
    """Bytes a second, read and written, of ever larger copies until they take their time."""
    size, best = 1 << 20, 0.0
    while True:
        x, y = llmcore.zeros([size // 4], device=device), llmcore.zeros([size // 4], device=device)

        def copy(x: llmcore.Tensor = x, y: llmcore.Tensor = y) -> float:
            start = time.perf_counter()
            for _ in range(8):
                _core.scale(factor=1.0, x=x, y=y)
            llmcore.zeros([1], device=device).numpy()  # waits for what was asked before
            return (time.perf_counter() - start) / 8

        elapsed = min(copy() for _ in range(3))
        best = max(best, 2 * size / elapsed)
        if size >= most or elapsed > 0.01:
            return best
        size *= 4


def _measure(threads: int, seconds: float, data: llmcore.Tensor) -> Ceilings:
    llmcore.set_num_threads(threads)
    cached = llmcore.zeros([threads * _CACHED_BYTES // 4])
    _core.fill(value=1.0, y=cached)
    return Ceilings(
        threads=threads,
        flops=_core.measure_peak(seconds),
        bfloat16_flops=_core.measure_peak(seconds, "bfloat16"),
        int8_flops=_core.measure_peak(seconds, "int8"),
        cache_bytes_per_second=_core.measure_read(cached, seconds),
        memory_bytes_per_second=_core.measure_read(data, seconds),
    )
