"""Attention whose products round their operands to bfloat16, as training in it takes them."""

from __future__ import annotations

import numpy as np
import pytest

from attention_cases import DROPOUT, SIZES, draw, kept_weights, run_core, tensors
from llmcore import _core
from reference.attention_bfloat16 import backward, forward
from tolerance import assert_within

pytestmark = pytest.mark.cpu("a GPU rounds activations, not operands")


def check(arrays, scale=0.3, dropout=None, keep=1.0, **options):
    q, k, v, dout = arrays
    known = {"past" if name == "past_length" else name: x for name, x in options.items()}
    given = dict(dropout or {})
    for name, x in options.items():
        if name == "window":
            given["window_left"], given["window_right"] = x
        elif isinstance(x, np.ndarray):
            given[name.removesuffix("_length")] = _core.as_tensor(x.astype(np.int32))
        else:
            given[name] = x
    out, *gradients = run_core(*arrays, scale=scale, bfloat16=True, **given)
    assert_within(out, *forward(q, k, v, scale, keep, **known))
    for got, (wanted, bound) in zip(
        gradients, backward(dout, q, k, v, out, scale, keep, **known), strict=True
    ):
        assert_within(got, wanted, bound)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_sizes(rng, sizes, causal):
    check(tensors(rng, sizes), causal=causal)


@pytest.mark.parametrize("case", range(30))
def test_options_in_random_combinations(rng, case):
    batch, kv_heads, group = rng.integers(1, 4, 3)
    queries, keys = rng.integers(1, 150), rng.integers(2, 150)
    width, value_width = rng.integers(1, 70, 2)
    choices = {
        "causal": lambda: True,
        "softcap": lambda: float(rng.uniform(0.5, 5)),
        "kv_lengths": lambda: rng.integers(0, keys + 1, batch),
        "prefix_lengths": lambda: rng.integers(0, keys + 1, batch),
        "window": lambda: tuple(int(x) for x in rng.integers(-1, 70, 2)),
        "past_length": lambda: rng.integers(0, keys + 5, batch),
    }
    sizes = batch, kv_heads * group, kv_heads, queries, keys, width, value_width
    options = {name: make() for name, make in choices.items() if rng.random() < 0.5}
    check(tensors(rng, sizes), **options)


@pytest.mark.parametrize("keys", [64, 77])
def test_dropout(rng, keys):
    sizes = (2, 4, 2, 71, keys, 16, 16)
    check(tensors(rng, sizes), dropout=DROPOUT, keep=kept_weights(sizes, **DROPOUT), causal=True)


@pytest.mark.parametrize("shape", [(71, 77), (1, 4, 1, 77)])
def test_gradient_of_a_bias_is_that_of_float32_but_for_the_rounding(rng, shape):
    arrays, bias = tensors(rng, (2, 4, 2, 71, 77, 16, 16)), draw(rng, *shape)
    exact, got = (run_core(*arrays, scale=0.25, bias=bias, bfloat16=x) for x in (False, True))
    for name, x, y in zip(("out", "q", "k", "v", "bias"), exact, got, strict=True):
        error = np.linalg.norm(y - x) / np.linalg.norm(x)
        assert 1e-4 < error < 0.01, (name, error)


def test_something_is_rounded(rng):
    arrays = tensors(rng, (1, 2, 2, 50, 50, 16, 16))
    for exact, got in zip(
        run_core(*arrays, scale=0.25), run_core(*arrays, scale=0.25, bfloat16=True), strict=True
    ):
        assert 1e-4 < np.abs(got - exact).max() < 0.1


@pytest.mark.parametrize("heads", [(1, 1), (4, 1), (6, 6)])
def test_no_bit_depends_on_threads(rng, threads, heads):
    arrays = tensors(rng, (1, *heads, 150, 151, 21, 12))
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        out = run_core(*arrays, scale=0.2, causal=True, window_left=77, bfloat16=True)
        results.append([x.tobytes() for x in out])
    assert all(result == results[0] for result in results)


def test_batch_neighbours_and_padding_change_no_bit(rng):
    q, k, v, dout = tensors(rng, (3, 4, 2, 37, 91, 24, 24))
    lengths = np.array([91, 41, 0], np.int32)
    k[1, :, 41:], v[1, :, 41:] = np.nan, np.inf
    together = run_core(
        q, k, v, dout, scale=0.2, kv_lengths=_core.as_tensor(lengths), bfloat16=True
    )
    for b, length in enumerate(lengths[:2]):
        one = slice(b, b + 1)
        alone = run_core(
            q[one], k[one, :, :length], v[one, :, :length], dout[one], scale=0.2, bfloat16=True
        )
        for i, x in enumerate(alone):
            assert np.array_equal(x[0], together[i][b, :, : x.shape[2]]), i
    assert not any(x[2].any() for x in together)
