"""Embedding lookup and its gradient against float64."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core, ops
from reference import embedding as reference
from reference.random import dropout_mask
from tolerance import assert_matches

SHAPES = [((1,), 1, 1), ((3,), 5, 7), ((2, 5), 65, 16), ((4, 33), 11, 131), ((2, 3, 4), 1000, 768)]


@pytest.mark.parametrize(("ids_shape", "rows", "width"), SHAPES)
def test_embedding(rng, ids_shape, rows, width):
    ids = rng.integers(0, rows, ids_shape)
    weight = rng.standard_normal((rows, width)).astype(np.float32)
    assert np.array_equal(ops.embedding(ids, weight).numpy(), weight[ids])
    dy = rng.standard_normal((*ids_shape, width)).astype(np.float32)
    assert_matches(
        ops.embedding_backward(dy, ids, weight), reference.embedding_backward, dy, ids, weight
    )


def three_tables(rng, count, width, sizes=(50, 17, 2)):
    """Arguments of the fused first layer: tables and ids for tokens, positions and types."""
    tables = [rng.standard_normal((size, width)).astype(np.float32) for size in sizes]
    ids = [rng.integers(0, size, count).astype(np.int32) for size in sizes]
    return tables, ids


def forward(tables, ids, scale, **dropout):
    out = _core.empty([len(ids[0]), tables[0].shape[1]])
    table, positions, types = map(_core.as_tensor, tables)
    token, position, kind = map(_core.as_tensor, ids)
    _core.embedding_forward(
        ids=token, table=table, positions=positions, position_ids=position,
        types=types, type_ids=kind, scale=scale, out=out, **dropout,
    )  # fmt: skip
    return out


def backward(dy, ids, start, scale, **dropout):
    grads = [llmcore.tensor(array) for array in start]
    token, position, kind = map(_core.as_tensor, ids)
    _core.embedding_backward(
        dout=_core.as_tensor(dy), ids=token, dtable=grads[0], position_ids=position,
        dpositions=grads[1], type_ids=kind, dtypes=grads[2], scale=scale, **dropout,
    )  # fmt: skip
    return [grad.numpy() for grad in grads]


@pytest.mark.parametrize(("count", "width"), [(1, 1), (5, 7), (33, 64), (257, 131), (2500, 3)])
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_sum_of_three_tables_with_dropout(rng, count, width, p):
    tables, ids = three_tables(rng, count, width)
    scale = 3.5
    dropout = {"dropout": p, "seed": 0x123456789ABCDEF, "stream": (7 << 32) | 5}
    mask = dropout_mask((count, width), p, dropout["seed"], dropout["stream"])
    assert_matches(
        forward(tables, ids, scale, **dropout), reference.embedding_sum, tables[0], scale, ids[0],
        tables[1], ids[1], tables[2], ids[2], mask,
    )  # fmt: skip
    dy = rng.standard_normal((count, width)).astype(np.float32)
    zeros = [np.zeros_like(table) for table in tables]
    assert_matches(
        tuple(backward(dy, ids, zeros, scale, **dropout)), reference.embedding_sum_backward,
        dy, scale, ids[0], ids[1], ids[2], mask, tuple(len(table) for table in tables),
    )  # fmt: skip


def test_gradients_accumulate_to_the_same_bits_every_time(rng):
    tables, ids = three_tables(rng, 1500, 40)
    dy = rng.standard_normal((1500, 40)).astype(np.float32)
    first, second = (backward(dy, ids, tables, 1.0) for _ in range(2))
    for start, places, got, again in zip(tables, ids, first, second, strict=True):
        expected = start.astype(np.float64)
        np.add.at(expected, places, dy)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
        assert np.array_equal(got, again)


@pytest.mark.cpu("the order of its sums")
def test_gradients_accumulate_in_order_whatever_the_threads(rng, threads):
    tables, ids = three_tables(rng, 300, 200)
    dy = rng.standard_normal((300, 200)).astype(np.float32)
    expected = [table.copy() for table in tables]
    for total, places in zip(expected, ids, strict=True):
        for place, row in zip(places, dy, strict=True):  # one row after the other, in float32
            total[place] += row
    for count in (1, 2, 3, 8):
        threads(count)
        for got, want in zip(backward(dy, ids, tables, 1.0), expected, strict=True):
            assert np.array_equal(got, want)


def test_rows_do_not_depend_on_their_neighbours(rng, threads):
    tables, ids = three_tables(rng, 100, 48)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        results.append(forward(tables, ids, 2.0).numpy())
    assert all(np.array_equal(result, results[0]) for result in results)
    alone = forward(tables, [each[37:38] for each in ids], 2.0).numpy()
    assert np.array_equal(alone[0], results[0][37])


def test_untouched_rows_of_the_gradient_stay(rng):
    tables, ids = three_tables(rng, 4, 9)
    ids[0][:] = 3
    start = [np.full_like(table, np.nan) for table in tables]
    start[0][3] = 0
    grad = backward(np.ones((4, 9), np.float32), ids, start, 1.0)[0]
    assert np.array_equal(grad[3], np.full(9, 4, np.float32))
    assert np.isnan(np.delete(grad, 3, axis=0)).all()


def test_bfloat16(rng):
    weight = llmcore.tensor(rng.standard_normal((7, 5)), "bfloat16")
    y = ops.embedding([[6, 0]], weight)
    assert y.dtype == "bfloat16"
    assert np.array_equal(y.numpy(), weight.numpy()[[[6, 0]]])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64])
def test_every_integer_type_is_an_id(dtype):
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(ops.embedding(np.array([2, 1], dtype), weight).numpy(), weight[[2, 1]])


def test_no_ids_give_no_rows():
    weight = np.ones((3, 2), np.float32)
    assert ops.embedding(np.zeros((0, 4), np.int64), weight).shape == (0, 4, 2)
    dweight = ops.embedding_backward(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), weight)
    assert np.array_equal(dweight.numpy(), np.zeros((3, 2)))


@pytest.mark.parametrize("bad", [65, 70, -1, -(2**31), 2**31 - 1, 2**31, 2**40, -(2**40)])
def test_id_outside_the_table(bad):
    ids = np.zeros((3, 6), np.int64)
    ids[2, 5] = bad
    weight = np.ones((65, 4), np.float32)
    for call in (
        lambda: ops.embedding(ids, weight),
        lambda: ops.embedding_backward(np.ones((3, 6, 4), np.float32), ids, weight),
    ):
        with pytest.raises(IndexError, match=rf"ids\[2, 5\] = {bad} is outside .* 65 rows"):
            call()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda w: ops.embedding([0.5], w), TypeError, ["ids", "int32", "float32"]),
        (lambda w: ops.embedding([0], w[0]), ValueError, ["weight", "[V, C]", "[4]"]),
        (lambda w: ops.embedding([0], w.astype(np.float64)), TypeError, ["weight", "float64"]),
        (lambda w: ops.embedding_backward(w, [0], w), ValueError, ["dy", "[1, 4]", "[3, 4]"]),
        (lambda w: ops.embedding([0], np.ones((0, 4), np.float32)), IndexError, ["0 rows"]),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call(np.zeros((3, 4), np.float32))
    assert all(word in str(raised.value) for word in words), raised.value
