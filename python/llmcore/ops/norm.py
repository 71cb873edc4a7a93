"""Layer norm and RMS norm."""

from __future__ import annotations

import math

from llmcore import _core
from llmcore._core import Tensor
from llmcore.ops._arguments import (
    ArrayLike,
    Floats,
    check_shape,
    normalized_axis,
)


def layer_norm(
    x: ArrayLike,
    weight: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    axis: int = -1,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation over all axes from `axis` on (Ba et al. 2016).

    `y = (x - mean) / sqrt(variance + eps) * weight + bias`, the variance being the mean square
    of x - mean.

    Args:
        x: float32 or bfloat16, any shape.
        weight: shape `x.shape[axis:]`, float32 or bfloat16; ones if None.
        bias: the same; zeros if None.
        axis: first of the normalised axes.
        eps: added to the variance.

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        ShapeError: `weight` or `bias` do not have the normalised axes' shape.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> layer_norm(np.array([[1.0, 3.0]], np.float32)).numpy().round(3)
        array([[-1.,  1.]], dtype=float32)
    """
    return _norm("layer_norm", False, x, weight, bias, axis, eps)


def rms_norm(
    x: ArrayLike, weight: ArrayLike | None = None, *, axis: int = -1, eps: float = 1e-6
) -> Tensor:
    """Root-mean-square normalisation over all axes from `axis` on (Zhang and Sennrich 2019).

    `y = x / sqrt(mean(x**2) + eps) * weight`

    Args:
        x: float32 or bfloat16, any shape.
        weight: shape `x.shape[axis:]`, float32 or bfloat16; ones if None.
        axis: first of the normalised axes.
        eps: added to the mean square.

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        ShapeError: `weight` does not have the normalised axes' shape.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> rms_norm(np.array([[3.0, 4.0]], np.float32)).numpy().round(3)
        array([[0.849, 1.131]], dtype=float32)
    """
    return _norm("rms_norm", True, x, weight, None, axis, eps)


def layer_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    has_bias: bool = True,
    axis: int = -1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradient of `layer_norm`.

    Args:
        dy: gradient of the output, `x`'s shape.
        x: input of the forward pass.
        weight: weight of the forward pass, or None.
        has_bias: whether the gradient of a bias is wanted.
        axis: as in the forward pass.
        eps: as in the forward pass.

    Returns:
        `(dx, dweight, dbias)`; `dweight` is None without a weight, `dbias` without a bias.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0, 3.0]], np.float32)
        >>> dx, dweight, dbias = layer_norm_backward(np.ones_like(x), x, np.ones(2, np.float32))
        >>> dbias.numpy()
        array([1., 1.], dtype=float32)
    """
    return _norm_backward("layer_norm_backward", False, dy, x, weight, has_bias, axis, eps)


def rms_norm_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None = None,
    *,
    axis: int = -1,
    eps: float = 1e-6,
) -> tuple[Tensor, Tensor | None]:
    """Gradient of `rms_norm`: `(dx, dweight)`, `dweight` None without a weight.

    Args:
        dy: gradient of the output, `x`'s shape.
        x: input of the forward pass.
        weight: weight of the forward pass, or None.
        axis: as in the forward pass.
        eps: as in the forward pass.

    Returns:
        `(dx, dweight)`.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> x = np.array([[3.0, 4.0]], np.float32)
        >>> rms_norm_backward(x, x)[0].numpy().round(3)
        array([[0., 0.]], dtype=float32)
    """
    dx, dweight, _ = _norm_backward("rms_norm_backward", True, dy, x, weight, False, axis, eps)
    return dx, dweight


def _norm(
    op: str,
    rms: bool,
    x: ArrayLike,
    weight: ArrayLike | None,
    bias: ArrayLike | None,
    axis: int,
    eps: float,
) -> Tensor:
    args = Floats(
        op,
        bfloat16=True,
        narrow=("x",),
        either=("weight", "bias"),
        x=x,
        weight=weight,
        bias=bias,
    )
    y = args.output_like("x")
    rows, width, shape = _split(op, args["x"], axis)
    check_shape(op, "weight", args.get("weight"), shape)
    check_shape(op, "bias", args.get("bias"), shape)
    _core.norm_forward(
        rms=rms,
        eps=eps,
        x=args["x"].reshape([rows, width]),
        weight=_flat(args.get("weight"), width),
        bias=_flat(args.get("bias"), width),
        y=y.reshape([rows, width]),
    )
    return args.result(y)


def _norm_backward(
    op: str,
    rms: bool,
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike | None,
    has_bias: bool,
    axis: int,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    args = Floats(
        op, bfloat16=True, narrow=("dy", "x"), either=("weight",), dy=dy, x=x, weight=weight
    )
    rows, width, shape = _split(op, args["x"], axis)
    check_shape(op, "dy", args["dy"], args["x"].shape)
    check_shape(op, "weight", args.get("weight"), shape)
    matrix = args["x"].reshape([rows, width])
    flat_weight = _flat(args.get("weight"), width)
    mean, rstd, y = args.empty(rows), args.empty(rows), args.output(rows, width)
    _core.norm_forward(rms=rms, eps=eps, x=matrix, y=y, mean=mean, rstd=rstd)
    dx = args.output_like("x")
    dweight = None if weight is None else args.zeros(width)
    dbias = args.zeros(width) if has_bias else None
    _core.norm_backward(
        rms=rms,
        dy=args["dy"].reshape([rows, width]),
        x=matrix,
        weight=flat_weight,
        mean=mean,
        rstd=rstd,
        dx=dx.reshape([rows, width]),
        dweight=dweight,
        dbias=dbias,
    )
    parameter = None if weight is None else "weight"  # a bias has its dtype
    return (
        args.result(dx),
        None if dweight is None else args.result(dweight.reshape(shape), "weight"),
        None if dbias is None else args.result(dbias.reshape(shape), parameter),
    )


def _split(op: str, x: Tensor, axis: int) -> tuple[int, int, list[int]]:
    """Rows, columns, and the shape of the normalised axes."""
    first = normalized_axis(op, x, axis)
    shape = list(x.shape[first:])
    return math.prod(x.shape[:first]), math.prod(shape), shape


def _flat(tensor: Tensor | None, width: int) -> Tensor | None:
    return None if tensor is None else tensor.reshape([width])
