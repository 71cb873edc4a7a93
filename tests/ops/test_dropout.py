"""Dropout against a mask computed in Python integers."""

from __future__ import annotations

import numpy as np
import pytest

from llmcore import ops
from reference.dropout import keep, philox


def expected(x, p, seed, offset):
    factor = np.float32(1) / (np.float32(1) - np.float32(p))
    return np.where(keep(p, seed, offset, x.size).reshape(x.shape), x * factor, np.float32(0))


def test_reference_is_philox():
    """Known answers of the authors' Random123 library, philox4x32 with 10 rounds."""
    assert philox(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 2**64 - 1
    assert philox(ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4, 29, 2**34 - 5, 2**64 - 4096])
@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_mask_is_philox_at_every_element(rng, size, offset):
    x = rng.standard_normal(size).astype(np.float32)
    seed = int(rng.integers(2**63))
    y = ops.dropout(x, 0.3, seed=seed, offset=offset).numpy()
    assert np.array_equal(y, expected(x, 0.3, seed, offset))
    assert np.array_equal(ops.dropout_backward(x, 0.3, seed=seed, offset=offset).numpy(), y)


def test_keeps_the_right_share():
    x = np.ones(1 << 18, np.float32)
    for p in (0.1, 0.5, 0.9):
        y = ops.dropout(x, p, seed=5).numpy()
        spread = (p * (1 - p) / x.size) ** 0.5
        assert abs((y == 0).mean() - p) < 5 * spread
        assert abs(y.mean() - 1) < 5 * spread / (1 - p)


def test_no_dropout_is_the_identity(rng):
    x = rng.standard_normal((3, 7)).astype(np.float32)
    assert np.array_equal(ops.dropout(x, 0.0, seed=1).numpy(), x)


def test_mask_does_not_depend_on_threads_or_parts(rng, threads):
    x = rng.standard_normal((41, 1001)).astype(np.float32)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(ops.dropout(x, 0.2, seed=9).numpy())
    assert all(np.array_equal(result, results[0]) for result in results)
    rows = [ops.dropout(row, 0.2, seed=9, offset=i * 1001).numpy() for i, row in enumerate(x)]
    assert np.array_equal(np.stack(rows), results[0])
    assert not np.array_equal(ops.dropout(x, 0.2, seed=10).numpy(), results[0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: ops.dropout(x, 1.0, seed=1), ValueError, ["dropout", "p", "[0, 1)", "1.0"]),
        (lambda x: ops.dropout(x, -0.1, seed=1), ValueError, ["p", "-0.1"]),
        (lambda x: ops.dropout(x, 0.1, seed=-1), ValueError, ["seed", "-1"]),
        (lambda x: ops.dropout(x, 0.1, seed=1, offset=-2), ValueError, ["offset", "-2"]),
        (lambda x: ops.dropout_backward(x.astype(int), 0.1, seed=1), TypeError, ["dy", "float32"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((2, 4), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
