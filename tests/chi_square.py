"""Whether counts are likely under given probabilities: Pearson's chi-square test, exact."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

# Tests draw from fixed seeds, so one that passes always does; a wrong distribution gives far less.
LIKELY = 1e-6


def survival(statistic: float, freedom: int) -> float:
    """The probability that a chi-square of so many degrees of freedom is larger.

    Q(a, x) with a = freedom / 2 and x = statistic / 2, by Q(a + 1, x) = Q(a, x) + x^a e^-x / Γ(a+1)
    from Q(1/2, x) = erfc(√x) or Q(1, x) = e^-x.
    """
    x = statistic / 2
    if x == 0:
        return 1.0
    a, total = (0.5, math.erfc(math.sqrt(x))) if freedom % 2 else (1.0, math.exp(-x))
    while a < freedom / 2:
        total += math.exp(a * math.log(x) - x - math.lgamma(a + 1))
        a += 1
    return total


def assert_likely(counts: ArrayLike, probabilities: ArrayLike) -> None:
    """Fail if `counts` of all outcomes are no draw from `probabilities`."""
    counts, shares = np.asarray(counts), np.asarray(probabilities, np.float64)
    np.testing.assert_allclose(shares.sum(), 1)
    expected = counts.sum() * shares
    assert expected.min() >= 5, "too few draws for the test"
    statistic = float(((counts - expected) ** 2 / expected).sum())
    p = survival(statistic, counts.size - 1)
    assert p > LIKELY, f"chi-square {statistic:.1f}, p = {p:.1e}: {counts} for {expected}"
