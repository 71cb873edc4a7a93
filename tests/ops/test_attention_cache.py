"""Attention over a cache of every format: against float64 on what it keeps, and its bits."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from attention_cases import SIZES, draw
from attention_cases import tensors as all_tensors
from llmcore import DTypeError, _core, ops
from reference import attention as reference
from reference.attention_bfloat16 import forward
from tolerance import assert_matches, assert_within

DTYPES = ["float32", "bfloat16", "int8"]
F = np.float32


def tensors(rng, sizes):
    return all_tensors(rng, sizes)[:3]


def kept(x, dtype):
    """What a cache keeps of keys or values [..., D]."""
    if dtype == "float32":
        return x
    most = np.abs(x).max(-1, keepdims=True)
    inverse = np.divide(F(127), most, out=np.zeros_like(most), where=most > 0)
    products = x.astype(np.float64) * inverse  # exact, as in a fused multiply-add
    on_cpu = llmcore.tensor(x[:0]).device == "cpu"
    if on_cpu and llmcore.device_info()["isa_chosen"] == "generic":
        products = products.astype(F)
    return np.rint(products).astype(F) * (most / F(127))


def spread(rng, batch, keys):
    """A row of the cache for every key: each goes to another sequence's, as those of beams do."""
    return np.stack([rng.permutation(batch) for _ in range(keys)], axis=1).astype(np.int32)


def together(batch, keys):
    """Rows as without beams."""
    return np.repeat(np.arange(batch, dtype=np.int32)[:, None], keys, axis=1)


def cached(q, k, v, dtype, rows, *, window=(-1, -1), past_length=None, **options):
    as_ints = lambda x: _core.as_tensor(np.broadcast_to(x, len(q)).astype(np.int32))  # noqa: E731
    options = {name: as_ints(x) if name == "kv_lengths" else x for name, x in options.items()}
    past = {} if past_length is None else {"past": as_ints(past_length)}
    scale = options.pop("scale", q.shape[-1] ** -0.5)
    held = [_core.as_tensor(np.ascontiguousarray(x)) for x in (q, k, v)]
    call = _core.AttentionCall(
        op="attention", q=held[0], k=held[1], v=held[2], scale=scale, window_left=window[0],
        window_right=window[1], **past, **options,
    )  # fmt: skip
    out = _core.empty([*q.shape[:3], v.shape[3]])
    _core.attention_cached(call, dtype=dtype, rows=_core.as_tensor(rows), out=out)
    return out.numpy()


def assert_right(out, q, k, v, dtype, **options):
    """Products are of bfloat16 where that is what is kept."""
    if dtype == "bfloat16":
        assert_within(out, *forward(q, k, v, q.shape[-1] ** -0.5, **options))
    else:
        assert_matches(out, reference.attention, q, kept(k, dtype), kept(v, dtype), **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_sizes(rng, dtype, sizes):
    q, k, v = tensors(rng, sizes)
    for rows in (together(sizes[0], sizes[4]), spread(rng, sizes[0], sizes[4])):
        out = cached(q, k, v, dtype, rows)
        assert_right(out, q, k, v, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", range(20))
def test_options_in_random_combinations(rng, dtype, case):
    batch, kv_heads, group = rng.integers(1, 5, 3)
    queries, keys = rng.integers(1, 9), rng.integers(2, 200)
    width, value_width = rng.integers(1, 70, 2)
    sizes = batch, kv_heads * group, kv_heads, queries, keys, width, value_width
    q, k, v = tensors(rng, sizes)
    choices = {
        "causal": lambda: True,
        "softcap": lambda: float(rng.uniform(0.5, 5)),
        "kv_lengths": lambda: rng.integers(0, keys + 1, batch),
        "window": lambda: (int(rng.integers(0, 90)), -1),
        "past_length": lambda: rng.integers(0, keys + 5, batch),
    }
    options = {name: make() for name, make in choices.items() if rng.random() < 0.6}
    known = {"past" if name == "past_length" else name: x for name, x in options.items()}
    out = cached(q, k, v, dtype, spread(rng, batch, keys), **options)
    assert_right(out, q, k, v, dtype, **known)


@pytest.mark.cpu("bits that only it promises")
@pytest.mark.parametrize("width", [64, 33])
def test_float32_has_the_bits_it_has_without_a_cache(rng, width):
    q, k, v = tensors(rng, (3, 4, 2, 20, 150, width, width))
    options = {"causal": True, "past_length": np.array([130, 64, 3])}
    want = ops.attention(q, k, v, **options).numpy()
    for rows in (together(3, 150), spread(rng, 3, 150)):
        assert np.array_equal(cached(q, k, v, "float32", rows, **options), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("width", "heads", "kv_heads"), [(64, 2, 2), (7, 3, 1), (80, 7, 1)])
@pytest.mark.parametrize("window", [(-1, -1), (19, -1)])
def test_a_query_knows_neither_batch_nor_place_nor_threads(
    rng, threads, dtype, width, heads, kv_heads, window
):
    """One query of one sequence alone has the bits it has among all, as guesses need it."""
    keys, queries = 134, 21
    q, k, v = tensors(rng, (3, heads, kv_heads, queries, keys, width, width))
    options = {"causal": True, "window": window}
    first = keys - queries
    threads(3)
    whole = cached(q, k, v, dtype, together(3, keys), past_length=first, **options)
    threads(1)
    mixed = cached(q, k, v, dtype, spread(rng, 3, keys), past_length=first, **options)
    assert np.array_equal(whole, mixed)
    for b in range(3):
        one, place = slice(b, b + 1), np.full((1, keys), 2, np.int32)
        for t in range(queries):
            end = first + t + 1
            alone = cached(
                q[one, :, t : t + 1], k[one, :, :end], v[one, :, :end], dtype,
                place[:, :end].copy(), past_length=first + t, **options,
            )  # fmt: skip
            assert np.array_equal(alone[0, :, 0], whole[b, :, t]), (b, t)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_large_and_tiny_numbers(rng, dtype):
    q, k, v = tensors(rng, (1, 1, 1, 3, 70, 8, 8))
    k[0, 0, 5], v[0, 0, 6] = 0, 0
    v[0, 0, 7] *= 1e30
    v[0, 0, 8] *= 1e-30
    out = cached(q, k, v, dtype, together(1, 70))
    assert_right(out, q, k, v, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("where", "bad"), [("k", np.nan), ("v", np.nan), ("v", np.inf)])
def test_what_is_not_finite_is_not_hidden(rng, dtype, where, bad):
    """Whoever sees it is not finite, and everybody else is."""
    q, k, v = tensors(rng, (2, 2, 2, 40, 40, 16, 16))
    {"k": k, "v": v}[where][0, 1, 30, 3] = bad
    out = cached(q, k, v, dtype, spread(rng, 2, 40), causal=True)
    assert not np.isfinite(out[0, 1, 30:]).all(-1).any()
    assert np.isfinite(out[0, 1, :30]).all()
    assert np.isfinite(out[0, 0]).all()
    assert np.isfinite(out[1]).all()


def test_int8_is_within_half_a_step_of_the_largest_number(rng):
    """One key that is seen alone gives its value back."""
    v = draw(rng, 2, 3, 1, 50)
    out = cached(v, v, v, "int8", together(2, 1))
    step = np.abs(v).max(-1, keepdims=True) / 127
    error = np.abs(out - v)
    assert (error <= step * 0.5001).all()
    assert error.max() > step.max() / 4


def test_other_formats_are_refused(rng):
    q, k, v = tensors(rng, (1, 1, 1, 1, 2, 4, 4))
    with pytest.raises(DTypeError, match="float32, bfloat16 or int8, got int32"):
        cached(q, k, v, "int32", together(1, 2))
