"""Attention against float64, and the promise that a row's bits depend on that row alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import llmcore
from attention_cases import DROPOUT, SIZES, draw, kept_weights, run_core, tensors
from llmcore import ops
from reference import attention as reference
from tolerance import assert_matches


def check(q, k, v, dout, **options):
    """Forward, weights and backward against the reference."""
    known = {"past" if name == "past_length" else name: x for name, x in options.items()}
    out, weights = ops.attention(q, k, v, **options, return_weights=True)
    assert_matches(out, reference.attention, q, k, v, **known)
    assert_matches(weights, reference.attention_weights, q, k, **known)
    gradients = ops.attention_backward(dout, q, k, v, **options)
    assert_matches(gradients, reference.attention_backward, dout, q, k, v, **known)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_sizes(rng, sizes, causal):
    check(*tensors(rng, sizes), causal=causal)


@pytest.mark.parametrize("case", range(40))
def test_options_in_random_combinations(rng, case):
    kv_heads, group = rng.integers(1, 4, 2)
    batch = rng.integers(1, 4)
    queries, keys = rng.integers(1, 150), rng.integers(2, 150)  # of one key, the gradients are zero
    width, value_width = rng.integers(1, 40, 2)
    sizes = batch, kv_heads * group, kv_heads, queries, keys, width, value_width
    full = (batch, kv_heads * group, queries, keys)

    def broadcastable():
        return (*(size if rng.random() < 0.6 else 1 for size in full[:3]), keys)[rng.integers(4) :]

    choices = {
        "causal": lambda: True,
        "scale": lambda: float(rng.uniform(-1, 1)),
        "softcap": lambda: float(rng.uniform(0.5, 5)),
        "kv_lengths": lambda: rng.integers(0, keys + 1, batch),
        "prefix_lengths": lambda: rng.integers(0, keys + 1, batch),
        "window": lambda: tuple(int(x) for x in rng.integers(-1, 70, 2)),
        "past_length": lambda: rng.integers(0, keys + 5, batch),
        "bias": lambda: draw(rng, *broadcastable()),
        "mask": lambda: rng.random(broadcastable()) < 0.6,
    }
    check(
        *tensors(rng, sizes),
        **{name: make() for name, make in choices.items() if rng.random() < 0.5},
    )


@pytest.mark.parametrize("name", ["q", "k", "v", "bias"])
def test_gradients_are_finite_differences(rng, name):
    options = {"causal": True, "softcap": 2.0, "window": (6, -1), "past_length": 2}
    q, k, v, dout = tensors(rng, (2, 4, 2, 9, 11, 5, 3))
    arrays = {"q": q, "k": k, "v": v, "bias": draw(rng, 1, 4, 9, 1)}
    direction = draw(rng, *arrays[name].shape)
    gradients = ops.attention_backward(dout, **arrays, **options)
    got = float((gradients[list(arrays).index(name)].numpy() * direction).sum(dtype=np.float64))

    def loss(step):
        moved = arrays | {name: arrays[name] + np.float32(step) * direction}
        return float((ops.attention(**moved, **options).numpy() * dout).sum(dtype=np.float64))

    step = 2.0**-7
    want = (loss(step) - loss(-step)) / (2 * step)
    assert got == pytest.approx(want, rel=2e-3, abs=2e-3)


def test_bias_broadcast_over_keys_has_no_effect(rng):
    """It shifts all scores of a query, so its gradient is zero but for rounding."""
    q, k, v, dout = tensors(rng, (2, 4, 2, 30, 40, 8, 8))
    bias, mask = draw(rng, 1, 4, 30, 1), rng.random((30, 1)) < 0.5
    options = {"bias": bias, "mask": mask, "causal": True}
    assert_matches(ops.attention(q, k, v, **options), reference.attention, q, k, v, **options)
    assert np.abs(ops.attention_backward(dout, q, k, v, **options)[3].numpy()).max() < 1e-5


# ---- bits ----


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize(
    ("width", "value_width", "heads", "kv_heads"),
    [(64, 64, 2, 2), (7, 7, 3, 1), (1, 5, 2, 1), (80, 128, 7, 1), (33, 17, 4, 2)],
)
@pytest.mark.parametrize("window", [(-1, -1), (19, -1)])
def test_cached_equals_uncached(rng, width, value_width, heads, kv_heads, window):
    """Each position decoded alone, over a cache, has the bits it has in every pass over it."""
    longest = 134
    q, k, v, _ = tensors(rng, (1, heads, kv_heads, longest, longest, width, value_width))
    options = {"causal": True, "window": window}
    whole = ops.attention(q, k, v, **options).numpy()
    for t in range(longest):
        one = ops.attention(
            q[:, :, t : t + 1], k[:, :, : t + 1], v[:, :, : t + 1], past_length=t, **options
        )
        assert np.array_equal(one.numpy()[:, :, 0], whole[:, :, t]), t
    for queries in range(1, 71):
        part = ops.attention(*(x[:, :, :queries] for x in (q, k, v)), **options).numpy()
        assert np.array_equal(part, whole[:, :, :queries]), queries
    for past, queries in ((1, 5), (63, 2), (64, 70), (100, 34)):
        end = past + queries
        part = ops.attention(
            q[:, :, past:end], k[:, :, :end], v[:, :, :end], past_length=past, **options
        )
        assert np.array_equal(part.numpy(), whole[:, :, past:end]), past


@pytest.mark.cpu("bits that only it promises")
def test_cached_equals_uncached_in_a_long_ragged_batch(rng):
    lengths = np.array([700, 1, 333])
    q, k, v, _ = tensors(rng, (3, 4, 2, 1, 701, 64, 64))
    cached = ops.attention(
        q, k, v, causal=True, past_length=lengths - 1, kv_lengths=lengths
    ).numpy()
    for b, length in enumerate(lengths):
        many = draw(rng, 1, 4, length, 64)
        many[0, :, -1] = q[b, :, 0]
        alone = ops.attention(many, k[b : b + 1, :, :length], v[b : b + 1, :, :length], causal=True)
        assert np.array_equal(alone.numpy()[0, :, -1], cached[b, :, 0])


def test_batch_neighbours_padding_and_hidden_keys_change_no_bit(rng):
    q, k, v, dout = tensors(rng, (3, 4, 2, 37, 90, 24, 24))
    lengths = np.array([90, 41, 0])
    together = ops.attention(q, k, v, kv_lengths=lengths).numpy()
    gradients = [x.numpy() for x in ops.attention_backward(dout, q, k, v, kv_lengths=lengths)[:3]]
    for b, length in enumerate(lengths[:2]):
        one = slice(b, b + 1)
        short = q[one], k[one, :, :length], v[one, :, :length]
        assert np.array_equal(ops.attention(*short).numpy()[0], together[b])
        alone = [x.numpy()[0] for x in ops.attention_backward(dout[one], *short)[:3]]
        assert np.array_equal(alone[0], gradients[0][b])
        assert np.array_equal(alone[1], gradients[1][b, :, :length])
        assert np.array_equal(alone[2], gradients[2][b, :, :length])
    mask = np.arange(90)[None, None, None] < lengths[:, None, None, None]
    assert np.array_equal(ops.attention(q, k, v, mask=mask).numpy(), together)
    assert not together[2].any()
    assert not any(gradient[2].any() for gradient in gradients)


def test_padding_is_never_read(rng):
    q, k, v, dout = tensors(rng, (2, 2, 1, 20, 70, 17, 20))
    lengths = np.array([9, 66])
    for b, length in enumerate(lengths):
        k[b, :, length:] = np.nan
        v[b, :, length:] = np.inf
    assert np.isfinite(ops.attention(q, k, v, kv_lengths=lengths).numpy()).all()
    for gradient in ops.attention_backward(dout, q, k, v, kv_lengths=lengths)[:3]:
        assert np.isfinite(gradient.numpy()).all()


@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (6, 6)])
def test_no_bit_depends_on_threads(rng, threads, heads):
    q, k, v, dout = tensors(rng, (1, *heads, 150, 150, 20, 12))
    bias = draw(rng, 1, 1, 150, 150)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        outputs = [
            *ops.attention(q, k, v, bias=bias, causal=True, return_weights=True),
            *ops.attention_backward(dout, q, k, v, bias=bias, causal=True),
        ]
        results.append([x.numpy().tobytes() for x in outputs])
    assert all(result == results[0] for result in results)


def test_gradients_of_a_shared_bias_do_not_depend_on_threads(rng, threads):
    """Five heads a kv head: a block of rows ends amid a query's heads."""
    q, k, v, dout = tensors(rng, (2, 5, 1, 60, 70, 8, 8))
    for shape in [(60, 70), (1, 5, 1, 70), (2, 1, 60, 1), (1, 1, 1, 1)]:
        bias = draw(rng, *shape)
        results = []
        for count in (1, 3, 8):
            threads(count)
            results.append(ops.attention_backward(dout, q, k, v, bias=bias)[3].numpy().tobytes())
        assert all(result == results[0] for result in results)


# ---- edges ----


def test_queries_that_see_nothing_give_zeros(rng):
    q, k, v, dout = tensors(rng, (1, 2, 2, 10, 10, 8, 8))
    hidden = {
        "mask": np.zeros((10, 1), bool),
        "bias": np.full((1, 1, 1, 10), -np.inf, np.float32),
        "kv_lengths": np.zeros(1, np.int64),
    }
    for name, value in hidden.items():
        out, weights = ops.attention(q, k, v, **{name: value}, return_weights=True)
        assert not out.numpy().any()
        assert not weights.numpy().any()
        for gradient in ops.attention_backward(dout, q, k, v, **{name: value})[:3]:
            assert not gradient.numpy().any()


def test_some_scores_of_minus_infinity(rng):
    sizes = (2, 2, 2, 20, 100, 8, 8)
    bias = np.where(rng.random((2, 2, 20, 100)) < 0.5, -np.inf, 0).astype(np.float32)
    bias[0, 0, 3] = -np.inf
    bias[1, 1, :, :64] = -np.inf
    check(*tensors(rng, sizes), bias=bias)


def test_large_scores(rng):
    q, k, v, dout = tensors(rng, (1, 2, 2, 30, 80, 16, 16))
    check(q * 1e3, k, v, dout, scale=5.0)
    bias = (draw(rng, 1, 1, 30, 80) * 1e4).astype(np.float32)
    check(q, k, v, dout, bias=bias)


def test_no_keys_and_no_queries():
    q, nothing = np.ones((2, 2, 3, 4), np.float32), np.ones((2, 2, 0, 4), np.float32)
    assert not ops.attention(q, nothing, nothing).numpy().any()
    assert not ops.attention_backward(q, q, nothing, nothing)[0].numpy().any()
    assert ops.attention(nothing, q, q).shape == (2, 2, 0, 4)
    _, dk, dv, _ = ops.attention_backward(nothing, nothing, q, q)
    assert not dk.numpy().any()
    assert not dv.numpy().any()


def test_nan_is_not_hidden(rng):
    q, k, v, _ = tensors(rng, (1, 1, 1, 5, 70, 8, 8))
    q[0, 0, 2, 3] = np.nan
    out = ops.attention(q, k, v).numpy()[0, 0]
    assert np.isnan(out[2]).all()
    assert np.isfinite(out[[0, 1, 3, 4]]).all()


def test_a_bias_may_stay_float32(rng):
    q, k, v, dout = (llmcore.tensor(x, "bfloat16") for x in tensors(rng, (1, 2, 1, 5, 7, 8, 8)))
    bias = llmcore.tensor(draw(rng, 1, 2, 5, 7), "bfloat16")
    both = {"causal": True, "past_length": 2, "return_weights": True}
    want = ops.attention(q, k, v, bias=bias, **both)
    got = ops.attention(q, k, v, bias=bias.numpy(), **both)
    for x, y in zip(want, got, strict=True):
        assert y.dtype == "bfloat16"
        assert np.array_equal(x.numpy(), y.numpy())
    dbias = ops.attention_backward(dout, q, k, v, bias=bias.numpy(), **both)[3]
    narrow = ops.attention_backward(dout, q, k, v, bias=bias, **both)[3]
    assert dbias.dtype == "float32"
    assert np.array_equal(dbias.to(dtype="bfloat16").numpy(), narrow.numpy())


@pytest.mark.parametrize(
    "bfloat16",
    [False, pytest.param(True, marks=pytest.mark.cpu("a GPU rounds activations, not operands"))],
)
@pytest.mark.parametrize(
    "options",
    [
        {"causal": True},
        {"causal": True, "softcap": 3.0},
        {"window_left": 6, "window_right": 3},
        {"mask": 0.4},
        {"mask": 0.4, "dropout": 0.3, "seed": 7},
    ],
)
def test_what_is_not_a_number_reaches_no_further_than_it_is_seen(rng, options, bfloat16):
    """All else has the bits it has beside a number."""
    heads, kv_heads, queries, keys = 4, 2, 77, 77
    sizes = (1, heads, kv_heads, queries, keys, 9, 20)
    arrays = dict(zip(("q", "k", "v", "dout"), tensors(rng, sizes), strict=True))
    i, j = np.arange(queries)[:, None], np.arange(keys)
    visible = np.ones((1, heads, queries, keys), bool)
    call = dict(options)
    if "causal" in options:
        visible &= j <= i
    if "window_left" in options:
        visible &= (j >= i - 6) & (j <= i + 3)
    if "mask" in options:
        visible &= rng.random(visible.shape) < options["mask"]
        call["mask"] = llmcore.tensor(visible)
    call |= {"scale": 0.3, "bfloat16": bfloat16, "bias": np.zeros(visible.shape, np.float32)}
    clean = run_core(**arrays, **call)
    place = (0, 1, 40)
    by_kv_head = visible.reshape(1, kv_heads, -1, queries, keys)
    for where, what in itertools.product(arrays, (np.nan, np.inf)):
        spoiled = {**arrays, where: arrays[where].copy()}
        spoiled[where][place] = what
        got = run_core(**spoiled, **call)
        queries_hit = np.zeros((1, kv_heads, heads // kv_heads, queries), bool)
        if where in "kv":
            queries_hit[0, 1] = by_kv_head[0, 1, :, :, 40]
        else:
            queries_hit[0, 0, 1, 40] = True
        keys_hit = (by_kv_head & queries_hit[..., None]).any(axis=(2, 3))
        if where in "kv":
            keys_hit[place] = True
        queries_hit = queries_hit.reshape(1, heads, queries)
        for name, x, y, hit in zip(
            ("out", "dq", "dk", "dv", "dbias"), clean, got,
            (queries_hit, queries_hit, keys_hit, keys_hit, queries_hit), strict=True,
        ):  # fmt: skip
            assert np.array_equal(x[~hit], y[~hit]), (where, what, name)
        assert not np.isfinite(got[1][queries_hit]).all()


def test_bfloat16_is_summed_in_float32(rng):
    arrays = [llmcore.tensor(x, "bfloat16") for x in tensors(rng, (2, 4, 2, 33, 40, 16, 16))]
    q, k, v, dout = arrays
    widened = [x.numpy() for x in arrays]
    out = ops.attention(q, k, v, causal=True)
    assert out.dtype == "bfloat16"
    assert_matches(out, reference.attention, *widened[:3], causal=True, dtype="bfloat16")
    assert_matches(
        ops.attention_backward(dout, q, k, v, causal=True),
        reference.attention_backward, widened[3], *widened[:3], causal=True, dtype="bfloat16",
    )  # fmt: skip


# ---- what the core offers beyond llmcore.ops ----


def test_strided_rows_give_the_same_bits(rng):
    arrays = tensors(rng, (2, 6, 2, 40, 50, 16, 9))
    dense = run_core(*arrays, scale=0.25, causal=True, past=None)
    strided = run_core(
        *(x.swapaxes(1, 2).copy() for x in arrays), scale=0.25, causal=True, rows_first=True
    )
    for x, y in zip(dense, strided, strict=True):
        assert np.array_equal(x, y.swapaxes(1, 2))


@pytest.mark.parametrize("keys", [64, 77])
def test_dropout(rng, threads, keys):
    sizes = (2, 4, 2, 70, keys, 16, 16)
    q, k, v, dout = tensors(rng, sizes)
    keep = kept_weights(sizes, **DROPOUT)
    assert abs((keep > 0).mean() - 0.7) < 0.02
    results = []
    for count in (1, 3):
        threads(count)
        results.append(run_core(q, k, v, dout, scale=0.25, causal=True, **DROPOUT))
        known = {"scale": 0.25, "causal": True}
        assert_matches(results[-1][0], reference.attention, q, k, v, keep, **known)
        gradients = (*results[-1][1:], None)
        assert_matches(
            gradients, reference.attention_backward, dout, q, k, v, None, keep, **known
        )  # fmt: skip
    assert all(np.array_equal(x, y) for x, y in zip(*results, strict=True))


# ---- wrong arguments ----

Q = np.zeros((2, 4, 3, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.attention(Q[0], Q, Q), ValueError, ["q", "[B, Hq, T, D]", "[4, 3, 8]"]),
        (
            lambda: ops.attention(Q, Q[..., :5], Q),
            ValueError,
            ["k", "[2, 4, 3, 8]", "[2, 4, 3, 5]"],
        ),
        (
            lambda: ops.attention(Q, Q, Q[:, :, :2]),
            ValueError,
            ["v", "[2, 4, 3, 8]", "[2, 4, 2, 8]"],
        ),
        (lambda: ops.attention(Q, Q[:, :3], Q[:, :3]), ValueError, ["multiple", "4", "3"]),
        (lambda: ops.attention(Q.astype(int), Q, Q), TypeError, ["q", "int64"]),
        (lambda: ops.attention(Q, llmcore.tensor(Q, "bfloat16"), Q), TypeError, ["k", "bfloat16"]),
        (lambda: ops.attention(Q, Q, Q, mask=np.ones((3, 3))), TypeError, ["mask", "bool"]),
        (
            lambda: ops.attention(Q, Q, Q, mask=np.ones((3, 4), bool)),
            ValueError,
            ["mask", "[2, 4, 3, 3]", "[3, 4]"],
        ),
        (
            lambda: ops.attention(Q, Q, Q, bias=np.ones((3, 1, 1, 1), np.float32)),
            ValueError,
            ["bias", "[3, 1, 1, 1]"],
        ),
        (
            lambda: ops.attention(Q, Q, Q, kv_lengths=[3, 4]),
            ValueError,
            ["kv_lengths[1]", "3", "4"],
        ),
        (lambda: ops.attention(Q, Q, Q, kv_lengths=[3]), ValueError, ["kv_lengths", "[2]", "[1]"]),
        (lambda: ops.attention(Q, Q, Q, kv_lengths=[1.0, 2.0]), TypeError, ["kv_lengths", "int"]),
        (
            lambda: ops.attention(Q, Q, Q, prefix_lengths=[-1, 0]),
            ValueError,
            ["prefix_lengths[0]", "-1"],
        ),
        (lambda: ops.attention(Q, Q, Q, past_length=-2), ValueError, ["past_length", "-2"]),
        (lambda: ops.attention(Q, Q, Q, window=(-2, 0)), ValueError, ["window", "-2"]),
        (lambda: ops.attention(Q, Q, Q, softcap=-1.0), ValueError, ["softcap", "-1"]),
        (
            lambda: ops.attention_backward(Q[:1], Q, Q, Q),
            ValueError,
            ["dout", "[2, 4, 3, 8]", "[1,"],
        ),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
    assert str(raised.value).startswith(("attention: ", "attention_backward: "))


# ---- parity ----


@pytest.mark.parametrize("causal", [False, True])
def test_torch_parity(rng, causal):
    torch = pytest.importorskip("torch")
    arrays = q, k, v, dout = tensors(rng, (2, 4, 4, 50, 50, 16, 16))
    leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
    out.backward(torch.from_numpy(dout))
    theirs = [out.detach(), *(x.grad for x in leaves)]
    ours = [
        ops.attention(*arrays[:3], causal=causal),
        *ops.attention_backward(dout, *arrays[:3], causal=causal)[:3],
    ]
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other.numpy(), rtol=0, atol=1e-5)
