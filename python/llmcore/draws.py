"""Random numbers as functions of what they are drawn for: no state, no order, any machine."""

from __future__ import annotations

import enum

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]
UInt64Array = NDArray[np.uint64]
Float64Array = NDArray[np.float64]


class Stream(enum.IntEnum):
    """What numbers are drawn for: streams of one seed are independent of each other."""

    PLACES = 0  # where random blocks begin
    ORDER = 1  # the order of blocks in an epoch
    MASK = 2  # which tokens are masked
    MASK_KIND = 3  # what stands in their place
    MASK_TOKEN = 4  # the random token among these
    PREFIX = 5  # how long a prefix is
    NOISE = 6  # where spans of noise are cut
    KEPT = 7  # where the text between them is cut
    MIXTURE = 8  # which objective of several


def words(stream: Stream, seed: int, index: int, count: int) -> UInt64Array:
    """Return `count` random 64-bit words that depend on the arguments alone.

    Raw words of Philox-4x64 (Salmon et al. 2011), not `Generator` methods: NumPy promises that
    these never change between its releases.
    """
    philox = np.random.Philox(
        key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)
    )
    drawn: UInt64Array = philox.random_raw(count)
    return drawn


def mix(values: UInt64Array) -> UInt64Array:
    """Scatter 64-bit words: the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: UInt64Array = values ^ (values >> np.uint64(31))
    return scattered


def grid(stream: Stream, seed: int, epoch: int, samples: Int64Array, width: int) -> UInt64Array:
    """Return a random 64-bit word for each position of each sample, [B, width].

    The word at (b, t) depends on the stream, the seed, the epoch, `samples[b]` and t alone: not on
    b, the other samples or the width. Each sample has a SplitMix64 generator of its own; where it
    starts is the draw of another one, whose start is a Philox word of the stream, seed and epoch.

    Args:
        stream: What is drawn.
        seed: From 0 to 2**64 - 1.
        epoch: From 0 to 2**64 - 1.
        samples: [B] int64, not negative.
        width: Positions.

    Example:
        >>> both = grid(Stream.MASK, 7, 0, np.array([3, 5]), width=4)
        >>> bool((grid(Stream.MASK, 7, 0, np.array([5]), width=2) == both[1:, :2]).all())
        True
    """
    starts = mix(words(stream, seed, epoch, 1) + _steps(samples))
    return mix(starts[:, None] + _steps(np.arange(1, width + 1)))


def unit(values: UInt64Array) -> Float64Array:
    """Return 64-bit words as uniform numbers in [0, 1), multiples of 2**-53."""
    uniform: Float64Array = (values >> np.uint64(11)) * 2.0**-53
    return uniform


def _steps(counts: Int64Array) -> UInt64Array:
    """Return what so many steps add to the state of SplitMix64: multiples of its odd constant."""
    added: UInt64Array = counts.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return added
