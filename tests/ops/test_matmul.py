"""Matrix products and linear layers against float64, and their promise of one order of sums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import llmcore
from llmcore import _core, ops
from llmcore.errors import ConfigError
from reference import activation as activations
from reference import dropout as dropouts
from reference import matmul as reference
from reference import norm as norms
from tolerance import assert_matches, round_bfloat16

# M, N, K: one, odd, whole tiles, more than a block of K, few rows, few columns.
SIZES = [
    (1, 1, 1), (1, 5, 3), (3, 7, 0), (17, 33, 100), (48, 48, 768), (49, 97, 769),
    (5, 300, 1025), (130, 65, 1601), (257, 50, 300), (2, 1000, 64),
]  # fmt: skip
FORMS = list(itertools.product([False, True], repeat=2))


def operands(rng, m, n, k, transpose_a=False, transpose_b=False, lead_a=(), lead_b=()):
    a = rng.standard_normal((*lead_a, *((k, m) if transpose_a else (m, k))), dtype=np.float32)
    b = rng.standard_normal((*lead_b, *((n, k) if transpose_b else (k, n))), dtype=np.float32)
    return a, b


def product(a, b, transpose_a=False, transpose_b=False, **kwargs):
    """The core's matmul on NumPy arrays, with all its extras."""
    m = a.shape[1] if transpose_a else a.shape[0]
    n = b.shape[0] if transpose_b else b.shape[1]
    c = kwargs.pop("c", np.full((m, n), np.nan, np.float32)).copy()
    arrays = {id(v): (v, _core.as_tensor(v)) for v in kwargs.values() if isinstance(v, np.ndarray)}
    tensors = {k: arrays[id(v)][1] if id(v) in arrays else v for k, v in kwargs.items()}
    result = _core.as_tensor(c)
    _core.matmul(
        a=_core.as_tensor(a), b=_core.as_tensor(b), c=result,
        transpose_a=transpose_a, transpose_b=transpose_b, **tensors,
    )  # fmt: skip
    for array, tensor in arrays.values():  # more results
        if tensor.device != "cpu":
            array[...] = tensor.numpy()
    return result.numpy()


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_matmul(rng, size, transpose_a, transpose_b):
    a, b = operands(rng, *size, transpose_a, transpose_b)
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    assert_matches(ops.matmul(a, b, **flags), reference.matmul, a, b, **flags)
    dy = rng.standard_normal(size[:2], dtype=np.float32)
    assert_matches(
        ops.matmul_backward(dy, a, b, **flags), reference.matmul_backward, dy, a, b, **flags
    )


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize(
    ("lead_a", "lead_b"),
    [
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((), (4,)),
        ((4,), ()),
        ((2, 1), (1, 3)),
        ((1,), (1,)),
        ((0,), (0,)),
    ],
)
def test_batches_broadcast(rng, lead_a, lead_b, transpose_a, transpose_b):
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    a, b = operands(rng, 5, 7, 19, **flags, lead_a=lead_a, lead_b=lead_b)
    y = ops.matmul(a, b, **flags)
    assert_matches(y, reference.matmul, a, b, **flags)
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    assert_matches(
        ops.matmul_backward(dy, a, b, **flags), reference.matmul_backward, dy, a, b, **flags
    )


@pytest.mark.parametrize(
    ("shape_a", "shape_b"), [((9,), (9,)), ((9,), (9, 4)), ((4, 9), (9,)), ((3, 4, 9), (9,))]
)
def test_vectors_are_rows_and_columns(rng, shape_a, shape_b):
    a, b = (rng.standard_normal(shape, dtype=np.float32) for shape in (shape_a, shape_b))
    y = ops.matmul(a, b)
    assert_matches(y, reference.matmul, a, b)
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    assert_matches(ops.matmul_backward(dy, a, b), reference.matmul_backward, dy, a, b)


def test_large_batches_of_large_matrices(rng):
    a, b = operands(rng, 160, 170, 180, lead_a=(3,), lead_b=(3,))
    assert_matches(ops.matmul(a, b), reference.matmul, a, b)


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("shape", [(1, 3, 2), (2, 5, 33, 65), (37, 800, 50)])
def test_linear(rng, shape, activation):
    *lead, inner, outer = shape
    x = rng.standard_normal((*lead, inner), dtype=np.float32)
    weight = rng.standard_normal((outer, inner), dtype=np.float32) / np.float32(inner**0.5)
    bias = rng.standard_normal(outer, dtype=np.float32)
    y = ops.linear(x, weight, bias, activation=activation)
    assert_matches(y, reference.linear, x, weight, bias, activation)
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    assert_matches(
        ops.linear_backward(dy, x, weight, has_bias=True, activation=activation, bias=bias),
        reference.linear_backward, dy, x, weight, True, activation, bias,
    )  # fmt: skip
    assert ops.linear_backward(dy, x, weight, has_bias=False)[2] is None


def test_linear_without_rows():
    y = ops.linear(np.zeros((0, 3), np.float32), np.zeros((2, 3), np.float32))
    assert y.shape == (0, 2)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize("size", [(1, 1, 1), (33, 50, 20), (64, 48, 1600), (300, 17, 65)])
def test_everything_fused(rng, size, transpose_a, transpose_b):
    """Bias, activation, derivative, dropout and residual, in the promised order."""
    m, n, _ = size
    a, b = operands(rng, *size, transpose_a, transpose_b)
    a /= np.float32(size[2] ** 0.5)
    bias = rng.standard_normal(n, dtype=np.float32)
    gate_input, residual = rng.standard_normal((2, m, n), dtype=np.float32)
    before = np.full((m, n), np.nan, np.float32)
    gated = gate_input.copy()  # in place
    c = product(
        a, b, transpose_a, transpose_b,
        bias=bias, pre_activation=before, activation="gelu_tanh",
        gate_input=gated, gate_activation="silu", gate_output=gated,
        dropout_p=0.3, dropout_seed=7, residual=residual,
    )  # fmt: skip

    def fused(a, b, bias, gate_input, residual):
        z = reference.matmul(a, b, transpose_a, transpose_b) + bias
        y = activations.silu_backward(activations.gelu_tanh(z), gate_input)
        kept = dropouts.keep(0.3, 7, 0, m * n).reshape(m, n) / (1 - y.dtype.type(0.3))
        return z, y * kept + residual, activations.silu(gate_input) * kept

    assert_matches((before, c, gated), fused, a, b, bias, gate_input, residual)


@pytest.mark.parametrize("m", [1, 2, 3, 8, 11, 40])
@pytest.mark.parametrize("k", [1, 12, 129, 770, 4100])
@pytest.mark.parametrize("rms", [False, True])
def test_rows_are_normalised_first(rng, m, k, rms):
    n = 19
    a, b = operands(rng, m, n, k, transpose_b=True)
    a = 3 * a + 1
    b /= np.float32(k**0.5)
    weight, norm_bias = rng.standard_normal((2, k), dtype=np.float32)
    bias, residual = rng.standard_normal(n, dtype=np.float32), a[:, :1] + np.ones(n, np.float32)
    extra = {} if rms else {"norm_bias": norm_bias}
    got = product(
        a, b, False, True, bias=bias, activation="gelu", residual=residual,
        norm_weight=weight, norm_eps=1e-3, rms=rms, **extra,
    )  # fmt: skip

    def expected(a, b, weight, norm_bias, bias, residual):
        if rms:
            normed = norms.rms_norm(a, weight, 1e-3)
        else:
            normed = norms.layer_norm(a, weight, norm_bias, 1e-3)
        return activations.gelu(normed @ b.T + bias) + residual

    assert_matches(got, expected, a, b, weight, norm_bias, bias, residual)


@pytest.mark.parametrize("m", [1, 3, 8])
@pytest.mark.parametrize("k", [4, 12, 256, 772, 4100])
def test_few_rows_of_bfloat16_weights(rng, m, k):
    """As on a GPU they are kept; elsewhere there are none."""
    a, b = operands(rng, m, 21, k, transpose_b=True)
    weight = _core.as_tensor(b)
    if weight.device == "cpu":
        pytest.skip("its weights are packed")
    weight = weight.to(dtype="bfloat16")
    result = _core.as_tensor(np.full((m, 21), np.nan, np.float32))
    _core.matmul(a=_core.as_tensor(a), b=weight, c=result, transpose_b=True)
    exact = weight.to(dtype="float32").numpy()
    assert_matches(result, lambda a, b: a @ b.T, round_bfloat16(a), exact)


def test_a_gate_output_is_made_of_a_gate_input(rng):
    a, b = operands(rng, 2, 3, 4)
    with pytest.raises(ConfigError, match="gate_input, which is missing"):
        product(a, b, gate_output=np.zeros((2, 3), np.float32))


def test_residual_may_be_the_result(rng):
    a, b = operands(rng, 40, 60, 1000)
    c = rng.standard_normal((40, 60), dtype=np.float32)
    expected = product(a, b, residual=c)
    in_place = _core.as_tensor(c.copy())
    _core.matmul(a=_core.as_tensor(a), b=_core.as_tensor(b), c=in_place, residual=in_place)
    assert np.array_equal(in_place.numpy(), expected)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
def test_accumulate_adds_to_c(rng, transpose_a, transpose_b):
    a, b = operands(rng, 70, 90, 1600, transpose_a, transpose_b)
    c = rng.standard_normal((70, 90), dtype=np.float32)
    got = product(a, b, transpose_a, transpose_b, c=c, accumulate=True)
    assert_matches(
        got, lambda a, b, c: c + reference.matmul(a, b, transpose_a, transpose_b), a, b, c
    )


@pytest.mark.cpu("bits that only it promises")
def test_sums_are_those_of_the_contract(rng):
    """Chains of 256 in ascending k, chains of a block of 768 added up, then the blocks."""
    integers = rng.integers(-1000, 1000, (2, 2000)).astype(np.float32)
    a, b = integers * np.float32(1 + 2**-12)  # products that do not fit into 24 bits
    total = np.float32(0)
    for block in range(0, 2000, 768):
        block_sum = np.float32(0)
        for chain in range(block, min(block + 768, 2000), 256):
            chain_sum = np.float32(0)
            for k in range(chain, min(chain + 256, block + 768, 2000)):
                exact = np.float64(a[k]) * np.float64(b[k])  # of 24-bit numbers: exact
                fused = np.float32(exact + np.float64(chain_sum))
                plain = np.float32(np.float32(exact) + chain_sum)
                chain_sum = plain if llmcore.device_info()["isa_chosen"] == "generic" else fused
            block_sum = chain_sum if chain == block else block_sum + chain_sum
        total = block_sum if block == 0 else total + block_sum
    assert ops.matmul(a[None], b[:, None]).numpy()[0, 0] == total


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize(("n", "k"), [(65, 900), (33, 300)])
def test_a_row_alone_is_the_row_in_a_batch(rng, n, k, transpose_a, transpose_b):
    a, b = operands(rng, 300, n, k, False, transpose_b)
    c = rng.standard_normal((300, n), dtype=np.float32)
    whole = product(a, b, False, transpose_b)
    added = product(a, b, False, transpose_b, c=c, accumulate=True)
    for m in [*range(1, 35), 47, 48, 49, 63, 64, 65, 66, 96, 97, 127, 128, 129, 255, 256, 257, 299]:
        part = a[:m]
        part = np.ascontiguousarray(part.T) if transpose_a else part
        assert np.array_equal(product(part, b, transpose_a, transpose_b), whole[:m]), m
        part_added = product(part, b, transpose_a, transpose_b, c=c[:m], accumulate=True)
        assert np.array_equal(part_added, added[:m]), m
    for row in (0, 13, 299):
        alone = a[row : row + 1]
        alone = np.ascontiguousarray(alone.T) if transpose_a else alone
        assert np.array_equal(product(alone, b, transpose_a, transpose_b)[0], whole[row]), row


@pytest.mark.parametrize(("transpose_a", "transpose_b"), FORMS)
@pytest.mark.parametrize(
    "size", [(300, 200, 1600), (1, 2000, 770), (7, 900, 770), (9, 3000, 130), (1100, 50, 64)]
)
def test_results_do_not_depend_on_threads(rng, threads, size, transpose_a, transpose_b):
    a, b = operands(rng, *size, transpose_a, transpose_b)
    c = rng.standard_normal(size[:2], dtype=np.float32)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        plain = product(a, b, transpose_a, transpose_b, activation="gelu")
        added = product(a, b, transpose_a, transpose_b, c=c, accumulate=True)
        results.append((plain.tobytes(), added.tobytes()))
    assert all(result == results[0] for result in results)


@pytest.mark.cpu("bits that only it promises")
def test_all_forms_and_batches_sum_alike(rng, threads):
    a, b = operands(rng, 37, 53, 1000)
    whole = product(a, b)
    ta, tb = np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)
    for left, right, *flags in [(a, tb, False, True), (ta, b, True, False), (ta, tb, True, True)]:
        assert np.array_equal(product(left, right, *flags), whole)
    for count in (1, 3):
        threads(count)
        batch = ops.matmul(np.stack([a] * 5), np.stack([b] * 5)).numpy()
        assert all(np.array_equal(matrix, whole) for matrix in batch)


def test_column_sum(rng, threads):
    x = rng.standard_normal((1001, 77), dtype=np.float32)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        out = _core.as_tensor(np.ones(77, np.float32))
        _core.column_sum(x=_core.as_tensor(x), out=out)
        results.append(out.numpy().tobytes())
    assert all(result == results[0] for result in results)
    assert_matches(out, lambda x: x.sum(0) + 1, x)


def test_bfloat16_is_summed_in_float32(rng):
    a, b = operands(rng, 20, 30, 500)
    a16, b16 = llmcore.tensor(a, "bfloat16"), llmcore.tensor(b, "bfloat16")
    y = ops.matmul(a16, b16)
    assert y.dtype == "bfloat16"
    assert_matches(y, reference.matmul, a16.numpy(), b16.numpy(), dtype="bfloat16")


@pytest.mark.cpu("its peak")
def test_peak_is_a_plausible_rate():
    assert 1e9 < _core.measure_peak(0.01) < 1e14


F = np.float32


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: ops.matmul(np.ones((2, 3), F), np.ones((4, 5), F)),
            ValueError,
            ["matmul", "inner", "[2, 3]", "[4, 5]"],
        ),
        (
            lambda: ops.matmul(np.ones((2, 3), F), np.ones((3, 5), np.int32)),
            TypeError,
            ["matmul: b must be", "int32"],
        ),
        (
            lambda: ops.matmul(np.ones((2, 1, 3), F), np.ones((3, 3, 1), F)),
            ValueError,
            ["broadcast", "[2, 1, 3]"],
        ),
        (lambda: ops.matmul(F(1), np.ones((3, 5), F)), ValueError, ["at least one axis"]),
        (
            lambda: ops.matmul_backward(np.ones((2, 2), F), np.ones((2, 3), F), np.ones((3, 5), F)),
            ValueError,
            ["dy", "[2, 5]", "[2, 2]"],
        ),
        (
            lambda: ops.linear(np.ones((2, 3), F), np.ones((5, 4), F)),
            ValueError,
            ["x must have shape [..., 4]", "[2, 3]"],
        ),
        (lambda: ops.linear(np.ones(3, F), np.ones(3, F)), ValueError, ["weight", "[out, in]"]),
        (
            lambda: ops.linear(np.ones((2, 3), F), np.ones((5, 3), F), np.ones(3, F)),
            ValueError,
            ["bias", "[5]", "[3]"],
        ),
        (
            lambda: ops.linear(np.ones(3, F), np.ones((5, 3), F), activation="tanh"),
            ValueError,
            ["activation", "'gelu_tanh'", "'tanh'"],
        ),
        (
            lambda: ops.linear_backward(
                np.ones(4, F), np.ones(3, F), np.ones((5, 3), F), has_bias=True
            ),
            ValueError,
            ["dy", "[5]", "[4]"],
        ),
        (
            lambda: product(np.ones((2, 3), F), np.ones((3, 5), F), bias=np.ones(2, F)),
            ValueError,
            ["matmul: bias", "[N] = [5]", "[2]"],
        ),
        (
            lambda: product(
                np.ones((2, 3), F), np.ones((3, 5), F), accumulate=True, bias=np.ones(5, F)
            ),
            ValueError,
            ["accumulate"],
        ),
        (
            lambda: product(np.ones((2, 3), F), np.ones((3, 5), F), norm_weight=np.ones(5, F)),
            ValueError,
            ["matmul: norm's weight", "[K] = [3]", "[5]"],
        ),
        (
            lambda: product(
                np.ones((3, 2), F), np.ones((3, 5), F), True, norm_weight=np.ones(3, F)
            ),
            ValueError,
            ["normalised", "not transposed"],
        ),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
