"""Opening checkpoints: stored matrices made float32 against NumPy, CRC-32 against zlib."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from llmcore import _core
from llmcore.errors import DTypeError, ShapeError

pytestmark = pytest.mark.cpu("files are read there")


def stored(rng, dtype, *shape):
    """An array as a file holds it, with what it means; halves take any bits, NaN among them."""
    if dtype == "float32":
        values = rng.standard_normal(shape).astype(np.float32)
        return values, values
    bits = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
    if dtype == "bfloat16":
        return bits, (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view(np.float16), bits.view(np.float16).astype(np.float32)


def widened(*sources):
    targets = [_core.empty(list(source.shape)) for source in sources]
    _core.widen(list(sources), targets)
    return [target.numpy() for target in targets]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 70), (70, 1), (3, 17), (64, 48), (33, 65), (700, 531)]
)
def test_matrices_whole_sliced_and_transposed(rng, dtype, shape, threads):
    source, expected = stored(rng, dtype, *shape)
    parts = [np.s_[:], np.s_[: (shape[0] + 1) // 2], np.s_[:, shape[1] // 2 :]]
    pairs = [(source[part], expected[part]) for part in parts]
    pairs += [(a.T, b.T) for a, b in pairs]
    for count in (1, 2):
        threads(count)
        found = widened(*(a for a, _ in pairs))
        for array, (_, wanted) in zip(found, pairs, strict=True):
            assert np.array_equal(array, wanted, equal_nan=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_vectors_and_data_that_is_not_aligned(rng, dtype, offset):
    source, expected = stored(rng, dtype, 77, 5)
    moved = np.empty(source.nbytes + offset, np.uint8)
    moved[offset:] = source.reshape(-1).view(np.uint8)
    flat = np.ndarray(source.size, source.dtype, moved.data, offset)
    matrix = np.ndarray(source.shape, source.dtype, moved.data, offset)
    found = widened(flat, matrix.T)
    assert np.array_equal(found[0], expected.reshape(-1), equal_nan=True)
    assert np.array_equal(found[1], expected.T, equal_nan=True)


def test_many_targets_in_one_buffer_touch_only_their_own(rng):
    """Offsets that are no multiple of a vector, as in a model's flat buffer."""
    shapes = [(5, 16), (3,), (16, 16), (7, 32), (1,), (32, 7), (0, 4)]
    sizes = [int(np.prod(shape)) for shape in shapes]
    whole = _core.empty([sum(sizes) + 2])
    flat, sources, targets, start = whole.numpy(), [], [], 1
    for shape, size in zip(shapes, sizes, strict=True):
        sources.append(rng.standard_normal(shape[::-1]).astype(np.float32).T)
        targets.append(_core.in_place_tensor(flat[start : start + size].reshape(shape)))
        start += size
    _core.widen(sources, targets)
    assert np.isnan(flat[[0, -1]]).all()
    assert np.array_equal(flat[1:-1], np.concatenate([source.reshape(-1) for source in sources]))


@pytest.mark.parametrize(
    ("error", "message", "source", "shape"),
    [
        (DTypeError, "got float64", np.zeros((2, 3)), [2, 3]),
        (DTypeError, "got int32", np.zeros((2, 3), np.int32), [2, 3]),
        (ShapeError, r"got \[2, 3\] and \[3, 2\]", np.zeros((2, 3), np.float32), [3, 2]),
        (ShapeError, "one vector or matrix", np.zeros((2, 3, 1), np.float32), [2, 3, 1]),
        (ShapeError, "must be adjacent", np.zeros((4, 6), np.float32)[::2, ::2], [2, 3]),
    ],
)
def test_what_is_refused(error, message, source, shape):
    with pytest.raises(error, match=message):
        _core.widen([source], [_core.empty(shape)])


def test_targets_that_are_refused():
    source = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match="1 sources for 0 targets"):
        _core.widen([source], [])
    with pytest.raises(DTypeError, match="must be float32 that can be written, got int32"):
        _core.widen([source], [_core.empty([3], dtype="int32")])


@pytest.mark.parametrize(
    "size", [0, 1, 7, 8, 63, 64, 65, 127, 128, 255, 256, 257, 511, 512, 1000, 1 << 20, 3_333_333]
)
def test_crc32_is_that_of_zlib(rng, size, threads):
    data = rng.integers(0, 256, size, dtype=np.uint8)
    for count in (1, 2):
        threads(count)
        assert _core.crc32(data) == zlib.crc32(data)
        assert _core.crc32(data.tobytes(), 0xDEADBEEF) == zlib.crc32(data, 0xDEADBEEF)
    assert _core.crc32(data[1:]) == zlib.crc32(data[1:])  # where nothing is aligned


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("offset", [0, 6])
def test_crc32_widens_what_it_reads(rng, dtype, offset, threads):
    """Matrices that share lines or cross the ends of parts, and one that is not in the data."""
    source, expected = stored(rng, dtype, 1500, 930)
    data = np.concatenate(
        [rng.integers(0, 256, 2 + offset, np.uint8), source.reshape(-1).view(np.uint8)]
    )
    inside = np.ndarray(source.shape, source.dtype, data, 2 + offset)
    thirds = [np.s_[:, :310], np.s_[:, 310:620], np.s_[:, 620:]]
    sources = [*(inside[part].T for part in thirds), inside[:700], inside[7], source.T]
    wanted = [*(expected[part].T for part in thirds), expected[:700], expected[7], expected.T]
    for count in (1, 2):
        threads(count)
        targets = [_core.empty(list(array.shape)) for array in sources]
        assert _core.crc32(data, 9, sources, targets) == zlib.crc32(data, 9)
        for target, array in zip(targets, wanted, strict=True):
            assert np.array_equal(target.numpy(), array, equal_nan=True)


def test_crc32_takes_bytes_in_one_piece():
    with pytest.raises(ShapeError, match="in one piece"):
        _core.crc32(np.zeros(8, np.uint8)[::2])
