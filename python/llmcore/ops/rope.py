"""Rotary position embedding."""

from __future__ import annotations

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ShapeError
from llmcore.ops._arguments import ArrayLike, Floats, check_rank, check_shape


def rope(
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    position_ids: ArrayLike | None = None,
    interleaved: bool = False,
    rotary_dim: int = 0,
) -> Tensor:
    """Rotate pairs of each head's values by an angle of their position (Su et al. 2021).

    The first R of a head's D values are rotated, the others copied. With the tables' angles
    `a = position / theta**(2 i / R)`, pair i becomes
    `(u, w) -> (u cos(a) - w sin(a), w cos(a) + u sin(a))`.

    Args:
        x: float32 or bfloat16, `[B, H, T, D]`.
        cos: cosines, float32 or bfloat16: `[B, T, R/2]`, or `[max_positions, R/2]` with
            `position_ids`.
        sin: sines, of the same shape.
        position_ids: rows of `cos` and `sin`, integers `[B, T]`; None for tables `[B, T, R/2]`.
        interleaved: pairs are values 2i and 2i + 1 (GPT-J) instead of i and i + R/2 (GPT-NeoX,
            Llama as Hugging Face stores it).
        rotary_dim: R, even; 0 means D.

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        ShapeError: shapes or `rotary_dim` do not fit `x`.
        TokenIndexError: a position is outside the tables.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> x = np.array([[[[1, 0], [1, 0]]]], np.float32)  # one head at two positions
        >>> angles = np.array([[[0], [np.pi / 2]]], np.float32)
        >>> rope(x, np.cos(angles), np.sin(angles)).numpy().round(3)
        array([[[[ 1.,  0.],
                 [-0.,  1.]]]], dtype=float32)
    """
    return _rotate("rope", "x", x, cos, sin, position_ids, interleaved, rotary_dim, False)


def rope_backward(
    dy: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    *,
    position_ids: ArrayLike | None = None,
    interleaved: bool = False,
    rotary_dim: int = 0,
) -> Tensor:
    """Gradient of `rope` in `x`: the rotation by the opposite angles.

    Args:
        dy: gradient of the output, `[B, H, T, D]`.
        cos: as in the forward pass.
        sin: as in the forward pass.
        position_ids: as in the forward pass.
        interleaved: as in the forward pass.
        rotary_dim: as in the forward pass.

    Returns:
        `dx`, of `dy`'s shape and dtype.

    Raises:
        ShapeError: shapes or `rotary_dim` do not fit `dy`.
        TokenIndexError: a position is outside the tables.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> x = np.array([[[[1, 2, 3, 4]]]], np.float32)
        >>> cos, sin = np.full((1, 1, 2), 0.6, np.float32), np.full((1, 1, 2), 0.8, np.float32)
        >>> rope_backward(rope(x, cos, sin), cos, sin).numpy().round(3)
        array([[[[1., 2., 3., 4.]]]], dtype=float32)
    """
    return _rotate("rope_backward", "dy", dy, cos, sin, position_ids, interleaved, rotary_dim, True)


def _rotate(
    op: str,
    name: str,
    x: ArrayLike,
    cos: ArrayLike,
    sin: ArrayLike,
    position_ids: ArrayLike | None,
    interleaved: bool,
    rotary_dim: int,
    inverse: bool,
) -> Tensor:
    args = Floats(
        op,
        bfloat16=True,
        narrow=(name,),
        either=("cos", "sin"),
        **{name: x, "cos": cos, "sin": sin},
    )
    check_rank(op, name, args[name], "[B, H, T, D]")
    batch, _, length, head_dim = args[name].shape
    rotary = rotary_dim or head_dim
    if rotary % 2 or not 0 < rotary <= head_dim:
        raise ShapeError(
            f"{op}: rotary_dim must be even and from 2 to D = {head_dim}, got {rotary}"
        )
    if position_ids is None:
        check_shape(op, "cos", args["cos"], [batch, length, rotary // 2])
        rows = batch * length
        positions = args.array(np.arange(rows, dtype=np.int32).reshape(batch, length))
    else:
        check_rank(op, "cos", args["cos"], "[max_positions, R/2]")
        rows = args["cos"].shape[0]
        check_shape(op, "cos", args["cos"], [rows, rotary // 2])
        positions = args.ids("position_ids", position_ids, rows)
        check_shape(op, "position_ids", positions, [batch, length])
    check_shape(op, "sin", args["sin"], args["cos"].shape)
    y = args.output_like(name)
    _core.rope(
        x=args[name],
        cos=args["cos"].reshape([rows, rotary // 2]),
        sin=args["sin"].reshape([rows, rotary // 2]),
        positions=positions,
        interleaved=interleaved,
        inverse=inverse,
        y=y,
    )
    return args.result(y)
