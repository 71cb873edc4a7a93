"""Rows of up to three tables, looked up and added; and the gradient of each table."""

from __future__ import annotations

import numpy as np


def embedding(ids, table):
    return table[ids]


def embedding_backward(dy, ids, table):
    return scatter_add(ids.reshape(-1), dy.reshape(-1, table.shape[1]), table.shape[0])


def scatter_add(ids, rows, count):
    """Row i of the result is the sum of `rows[n]` over `ids[n] == i`, in ascending n."""
    total = np.zeros((count, rows.shape[1]), rows.dtype)
    np.add.at(total, ids, rows)
    return total


def embedding_sum(table, scale, ids, positions, position_ids, types, type_ids, mask):
    """What the first layer of a model does; `mask` multiplies the sum."""
    return (table[ids] * scale + positions[position_ids] + types[type_ids]) * mask


def embedding_sum_backward(dy, scale, ids, position_ids, type_ids, mask, sizes):
    g = dy * mask
    return (
        scatter_add(ids, g * scale, sizes[0]),
        scatter_add(position_ids, g, sizes[1]),
        scatter_add(type_ids, g, sizes[2]),
    )
