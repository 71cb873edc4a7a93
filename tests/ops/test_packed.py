"""Weights packed in bfloat16, int8 and int4: rounding, and products against float64."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core
from llmcore.errors import ConfigError, DTypeError, ShapeError
from reference import matmul as reference
from reference import norm as norms
from tolerance import assert_matches, round_bfloat16

FORMATS = ["bfloat16", "int8", "int4"]
# Rows of x, outputs, K: one, odd, whole panels and groups, fewer and more than a tile's rows.
SIZES = [
    (1, 1, 1), (1, 16, 64), (1, 17, 33), (3, 50, 100), (5, 7, 1), (8, 64, 768), (14, 100, 96),
    (15, 33, 65), (37, 130, 200), (64, 300, 768), (130, 40, 31), (1030, 900, 33),
]  # fmt: skip
F = np.float32


def normal(rng, *shape):
    return rng.standard_normal(shape, dtype=F)


def packed(weight, format):
    return _core.PackedWeight(_core.as_tensor(weight), format)


def product(weight, x, outputs, **options):
    """x W^T of packed weights, NaN where it does not write."""
    c = options.pop("c", np.full((len(x), outputs), np.nan, F)).copy()
    tensors = {
        k: _core.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()
    }
    result = _core.as_tensor(c)
    weight.matmul(_core.as_tensor(x), result, **tensors)
    return result.numpy()


def rounded(x, format):
    """What x is rounded to before it is multiplied: bfloat16, or int8 with a scale a row."""
    if format == "bfloat16":
        return round_bfloat16(x)
    codes, scales = int8(x, fused=True if _core.as_tensor(x).device != "cpu" else None)
    return codes * scales[:, None]


def int8(x, fused=None):
    """Each row to the nearest integers of its largest magnitude / 127; and that scale."""
    if fused is None:  # as where weights are packed
        fused = llmcore.device_info()["isa_chosen"] != "generic"
    most = np.abs(x).max(1, keepdims=True)
    products = x.astype(np.float64) * (F(127) / most)  # exact, as in a fused multiply-add
    if not fused:
        products = products.astype(F)
    return np.rint(products).astype(F), (most / F(127))[:, 0]


def int4(pairs, scales, depth):
    """Codes from -8 to 7 and float32 scales of what files hold."""
    codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(len(pairs), -1).astype(np.int8) - 8
    return codes[:, :depth], (scales.astype(np.uint32) << 16).view(F)


def random_stored(rng, format, n, k):
    """Any codes and scales of a matrix [N, K], as in files; and the matrix they stand for."""
    if format == "bfloat16":
        bits = rng.integers(0x3C00, 0x4000, (n, k), dtype=np.uint16) | (
            rng.integers(0, 2, (n, k), dtype=np.uint16) << 15
        )
        return (bits,), (bits.astype(np.uint32) << 16).view(F)
    if format == "int8":
        codes, scales = rng.integers(-127, 128, (n, k), dtype=np.int8), normal(rng, n)
        return (codes, scales), codes * scales[:, None]
    codes = rng.integers(0, 256, (n, -(-k // 2)), dtype=np.uint8)
    scales = rng.integers(0x3C00, 0x4000, (n, -(-k // 32)), dtype=np.uint16)
    wide, factors = int4(codes, scales, k)
    return (codes, scales), wide * np.repeat(factors, 32, axis=1)[:, :k]


def groups(weight):
    """[N, K] as [N, ceil(K / 32), 32], with zeros beyond K."""
    n, k = weight.shape
    return np.pad(weight, ((0, 0), (0, -k % 32))).reshape(n, -1, 32)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_products(rng, size, format):
    m, n, k = size
    w, x, bias = normal(rng, n, k), normal(rng, m, k), normal(rng, n)
    weight = packed(w, format)
    exact = weight.unpack().numpy()
    got = product(weight, x, n, bias=bias)
    assert_matches(got, reference.linear, rounded(x, format), exact, bias, None)


@pytest.mark.parametrize("size", SIZES)
def test_rounding(rng, size):
    """bfloat16 and int8 to the nearest; int4 by codes and scales of its range."""
    _, n, k = size
    w = normal(rng, n, k)
    assert np.array_equal(packed(w, "bfloat16").unpack().numpy(), round_bfloat16(w))

    codes, scales = packed(w, "int8").stored()
    assert all(np.array_equal(*pair) for pair in zip((codes, scales), int8(w), strict=True))

    weight = packed(w, "int4")
    codes, scales = int4(*weight.stored(), k)
    whole = (codes * np.repeat(scales, 32, axis=1)[:, :k]).astype(F)
    assert np.array_equal(weight.unpack().numpy(), whole)
    assert (np.abs(groups(w - whole)) <= np.abs(groups(w)).max(2, keepdims=True) / 6).all()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (16, 64), (17, 33), (50, 100), (48, 129), (5, 7)])
def test_what_files_hold_goes_in_and_out(rng, threads, n, k, format):
    """Bit for bit, wherever in the file it lies; of int4 with an odd K, half a byte is no code."""
    stored, matrix = random_stored(rng, format, n, k)
    shifted = np.empty(stored[0].nbytes + 1, np.uint8)
    codes = np.ndarray(stored[0].shape, stored[0].dtype, shifted.data, 1)
    codes[...] = stored[0]
    for count in (1, 2):
        threads(count)
        weight = packed(np.ones((n, k), F), format)
        weight.set_stored(codes, *stored[1:])
        assert np.array_equal(weight.unpack().numpy(), matrix)
        found = weight.stored()
        if format == "int4" and k % 2:
            assert np.array_equal(found[0][:, -1] >> 4, np.full(n, 8))
            found[0][:, -1] = (found[0][:, -1] & 15) | (stored[0][:, -1] & 0xF0)
        assert all(np.array_equal(*pair) for pair in zip(stored, found, strict=False))
        x = normal(rng, 3, k)  # what lies behind the last k must not count
        got = product(weight, x, n)
        fresh = packed(np.ones((n, k), F), format)
        fresh.set_stored(*weight.stored()[: len(stored)])
        assert np.array_equal(got, product(fresh, x, n))
        assert_matches(got, reference.linear, rounded(x, format), matrix, None, None)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("first", "rows"), [(0, 16), (3, 9), (10, 30), (16, 17), (47, 1)])
def test_rows_of_a_matrix_are_set_and_the_others_left(rng, first, rows, format):
    """Parts such as q, k and v share a matrix, and a panel where they do not end with one."""
    n, k = 48, 75
    weight = packed(normal(rng, n, k), format)
    expected = weight.unpack().numpy().copy()
    stored, matrix = random_stored(rng, format, 100, k)
    some = np.s_[20 : 20 + rows]
    weight.set_stored(*(array[some] for array in stored), first=first)
    expected[first : first + rows] = matrix[some]
    assert np.array_equal(weight.unpack().numpy(), expected)
    with pytest.raises(ShapeError, match="are not in"):
        weight.set_stored(*(array[some] for array in stored), first=n - rows + 1)


@pytest.mark.parametrize(("n", "k"), [(1, 5), (50, 100), (16, 33), (7, 1)])
def test_columns_of_bfloat16(rng, n, k):
    (bits,), matrix = random_stored(rng, "bfloat16", n + 4, k)
    weight = packed(np.ones((n, k), F), "bfloat16")
    weight.set_stored(np.ascontiguousarray(bits.T).T[2 : 2 + n])
    assert np.array_equal(weight.unpack().numpy(), matrix[2 : 2 + n])


@pytest.mark.parametrize("at", [(0, 0), (39, 76), (17, 64), (20, 31)])
def test_codes_out_of_range_are_refused(at):
    codes, scales = np.full((40, 77), -127, np.int8), np.ones(40, F)
    weight = packed(np.ones((40, 77), F), "int8")
    weight.set_stored(codes, scales)
    codes[at] = -128
    with pytest.raises(ConfigError, match="from -127 to 127, got -128"):
        weight.set_stored(codes, scales)


@pytest.mark.parametrize(
    ("format", "stored", "error", "words"),
    [
        ("int8", (np.ones((2, 3), np.uint8), np.ones(2, F)), DTypeError, "must be int8, got uint8"),
        ("int8", (np.ones((2, 3), np.int8),), ShapeError, "scales are missing"),
        ("int8", (np.ones((2, 4), np.int8), np.ones(2, F)), ShapeError, r"\[2, 3\], got \[2, 4\]"),
        ("int8", (np.ones((2, 3), np.int8), np.ones(3, F)), ShapeError, r"\[2\], got \[3\]"),
        ("int8", (np.ones((3, 2), np.int8).T, np.ones(2, F)), ShapeError, "lie in rows"),
        ("int4", (np.ones((2, 2), np.uint8), np.ones((2, 1), F)), DTypeError, "be uint16, got fl"),
        ("bfloat16", (np.ones((2, 3), F),), DTypeError, "must be uint16, got float32"),
    ],
)
def test_what_no_file_holds_is_refused(format, stored, error, words):
    with pytest.raises(error, match=words):
        packed(np.ones((2, 3), F), format).set_stored(*stored)


def test_int4_error_is_well_below_that_of_plain_scaling(rng):
    split = groups(normal(rng, 64, 1024).astype(np.float64))
    found = groups(packed(split.reshape(64, 1024).astype(F), "int4").unpack().numpy())
    largest = split.max(2, keepdims=True)
    extreme = np.where(largest > -split.min(2, keepdims=True), largest, split.min(2, keepdims=True))
    for plain, codes in ((np.abs(extreme) / 7, (-7, 7)), (extreme / -8, (-8, 7))):
        rest = split - np.clip(np.rint(split / plain), *codes) * plain
        assert np.square(split - found).sum() < 0.9 * np.square(rest).sum()


@pytest.mark.parametrize("format", FORMATS)
def test_memory_is_that_of_the_format(rng, format):
    n, k = 320, 640
    bits = {"bfloat16": 16, "int8": 8 + 32 / k, "int4": 4.5}[format]
    assert n * k * bits / 8 <= packed(normal(rng, n, k), format).nbytes <= n * k * bits / 8 + 8192


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(50, 100), (130, 765)])
def test_a_row_alone_is_the_row_in_a_batch(rng, n, k, format):
    weight, x = packed(normal(rng, n, k), format), normal(rng, 70, k)
    whole = product(weight, x, n)
    for m in [*range(1, 35), 47, 48, 49, 63, 64, 65, 69]:
        assert np.array_equal(product(weight, x[:m], n), whole[:m]), m
        assert np.array_equal(product(weight, x[-m:], n), whole[-m:]), m


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(1, 3000, 770), (9, 2000, 130), (300, 200, 600)])
def test_results_do_not_depend_on_threads(rng, threads, size, format):
    m, n, k = size
    w, x, c = normal(rng, n, k), normal(rng, m, k), normal(rng, m, n)
    results = []
    for count in (1, 2, 3):
        threads(count)
        weight = packed(w, format)
        results.append(
            [
                weight.unpack().numpy().tobytes(),
                product(weight, x, n, activation="gelu").tobytes(),
                product(weight, x, n, c=c, accumulate=True).tobytes(),
            ]
        )
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [1, 3, 20, 70])
@pytest.mark.parametrize("k", [5, 96, 770])
@pytest.mark.parametrize("rms", [False, True])
def test_rows_are_normalised_first(rng, m, k, format, rms):
    n = 35
    weight, x, gain = (
        packed(normal(rng, n, k) / F(k**0.5), format),
        normal(rng, m, k),
        normal(rng, k),
    )
    shift = None if rms else normal(rng, k)
    got = product(weight, 3 * x + 1, n, norm_weight=gain, norm_bias=shift, norm_eps=1e-3, rms=rms)
    if rms:
        normed = norms.rms_norm(3 * x + 1, gain, 1e-3)
    else:
        normed = norms.layer_norm(3 * x + 1, gain, shift, 1e-3)
    exact = rounded(normed.astype(F), format) @ weight.unpack().numpy().T
    # A last bit of what is rounded may decide to which neighbour: a step of one element.
    step = 2**-8 if format == "bfloat16" else 1 / 127
    assert np.abs(got - exact).max() <= step * np.abs(normed).max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("m", [1, 3, 20])
def test_bias_activation_residual_and_sums(rng, m, format):
    n, k = 67, 90
    weight, x = packed(normal(rng, n, k) / F(9), format), normal(rng, m, k)
    bias, residual, before = normal(rng, n), normal(rng, m, n), normal(rng, m, n)
    exact, xr = weight.unpack().numpy(), rounded(x, format)
    got = product(weight, x, n, bias=bias, activation="gelu_tanh", residual=residual)
    assert_matches(
        got,
        lambda x, w, b, r: reference.linear(x, w, b, "gelu_tanh") + r,
        xr, exact, bias, residual,
    )  # fmt: skip
    got = product(weight, x, n, c=before, accumulate=True)
    assert_matches(got, lambda x, w, c: c + x @ w.T, xr, exact, before)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(rng, format, value):
    weight, x = packed(normal(rng, 40, 100), format), normal(rng, 21, 100)
    whole = product(weight, x, 40)
    for row in (0, 7, 20):
        sick = x.copy()
        sick[row, 63] = value
        got = product(weight, sick, 40)
        assert not np.isfinite(got[row]).any()
        rest = np.arange(len(x)) != row
        assert np.array_equal(got[rest], whole[rest])


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_zeros_are_exact(rng, format):
    w, x, bias = normal(rng, 20, 70), normal(rng, 4, 70), normal(rng, 20)
    w[3], x[2] = 0, 0
    got = product(packed(w, format), x, 20, bias=bias)
    assert np.array_equal(got[2], bias)
    assert np.array_equal(got[:, 3], np.full(4, bias[3]))
    assert np.isfinite(got).all()


@pytest.mark.parametrize("format", FORMATS)
def test_the_longest_sums_fit(format):
    """Every product as large as can be, with either sign."""
    k = 1 << 16
    w = np.ones((18, k), F) * np.where(np.arange(18) % 2, -1, 1)[:, None].astype(F)
    x = np.ones((3, k), F) * F([[1], [-1], [0.5]])
    got = product(packed(w, format), x, 18)
    exact = x.astype(np.float64) @ packed(w, format).unpack().numpy().T
    assert np.abs(got / exact - 1).max() < 1e-4  # thousands of groups in float32
    for depth in (0, k + 1):
        with pytest.raises(ValueError, match=f"from 1 to 65536, got {depth}"):
            packed(np.ones((1, depth), F), format)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_a_table(rng, format):
    weight = packed(normal(rng, 50, 77), format)
    ids = np.array([49, 0, 17, 17, 16], np.int32)
    assert np.array_equal(weight.rows(_core.as_tensor(ids)).numpy(), weight.unpack().numpy()[ids])
    with pytest.raises(llmcore.errors.TokenIndexError, match="50"):
        weight.rows(_core.as_tensor(np.array([50], np.int32)))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: packed(np.ones((2, 3), F), "int3"), ["bfloat16, int8 or int4", "'int3'"]),
        (lambda: packed(np.ones(3, F), "int8"), ["[R, K]", "[3]"]),
        (lambda: packed(np.ones((2, 3), np.int32), "int8"), ["float32", "int32"]),
        (lambda: product(packed(np.ones((2, 3), F), "int8"), np.ones((1, 4), F), 2), ["3", "4"]),
        (lambda: product(packed(np.ones((2, 3), F), "int8"), np.ones((1, 3), F), 5), ["2", "5"]),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(llmcore.errors.LlmcoreError) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
