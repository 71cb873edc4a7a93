"""Rows of a table looked up by id."""

from __future__ import annotations

import math

from llmcore import _core
from llmcore._core import Tensor
from llmcore.ops._arguments import ArrayLike, Floats, check_rank, check_shape


def embedding(ids: ArrayLike, weight: ArrayLike) -> Tensor:
    """Look rows of `weight` up: `y[...] = weight[ids[...]]`.

    Args:
        ids: integers of any shape, each in [0, V).
        weight: float32 or bfloat16, `[V, C]`.

    Returns:
        Tensor of shape `[*ids.shape, C]` in `weight`'s dtype.

    Raises:
        TokenIndexError: an id is outside the table; the message names it and its place.
        ShapeError: `weight` is not a matrix.
        DTypeError: `ids` are not integers, or `weight` is not float32 or bfloat16.

    Example:
        >>> import numpy as np
        >>> table = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        >>> embedding([2, 0], table).numpy()
        array([[5., 6.],
               [1., 2.]], dtype=float32)
    """
    op = "embedding"
    args = Floats(op, bfloat16=True, narrow=("y",), weight=weight)
    table = args["weight"]
    check_rank(op, "weight", table, "[V, C]")
    rows, width = args.ids("ids", ids, table.shape[0]), table.shape[1]
    y = args.output(*rows.shape, width)
    _core.embedding_forward(ids=rows, table=table, out=y.reshape([math.prod(rows.shape), width]))
    return args.result(y)


def embedding_backward(dy: ArrayLike, ids: ArrayLike, weight: ArrayLike) -> Tensor:
    """Gradient of `embedding` in its table: row v is the sum of `dy` where `ids` is v.

    Args:
        dy: gradient of the output, `[*ids.shape, C]`.
        ids: as in the forward pass.
        weight: as in the forward pass; only its shape is used.

    Returns:
        `dweight`, `[V, C]`. The sums are taken in the order of `ids`.

    Raises:
        TokenIndexError: an id is outside the table.
        ShapeError: `dy` does not have shape `[*ids.shape, C]`, or `weight` is not a matrix.
        DTypeError: `dy` or `weight` are not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> dy = np.array([[1, 2], [10, 20]], np.float32)
        >>> embedding_backward(dy, [1, 1], np.zeros((3, 2), np.float32)).numpy()
        array([[ 0.,  0.],
               [11., 22.],
               [ 0.,  0.]], dtype=float32)
    """
    op = "embedding_backward"
    args = Floats(op, bfloat16=True, narrow=("dy",), dy=dy, weight=weight)
    check_rank(op, "weight", args["weight"], "[V, C]")
    table_rows, width = args["weight"].shape
    rows = args.ids("ids", ids, table_rows)
    check_shape(op, "dy", args["dy"], [*rows.shape, width])
    dweight = args.zeros(table_rows, width)
    _core.embedding_backward(
        dout=args["dy"].reshape([math.prod(rows.shape), width]), ids=rows, dtable=dweight
    )
    return args.result(dweight)
