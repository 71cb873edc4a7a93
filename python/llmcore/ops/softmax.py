"""Softmax and its logarithm."""

from __future__ import annotations

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.ops._arguments import ArrayLike, Floats, check_shape, normalized_axis


def softmax(x: ArrayLike, *, axis: int = -1) -> Tensor:
    """Exponentials that sum to one along an axis: `exp(x) / sum(exp(x))`, without overflow.

    Args:
        x: float32, any shape.
        axis: the axis that is normalised.

    Returns:
        float32 Tensor of `x`'s shape. Where all of a row is -inf it is zeros, not NaN.

    Raises:
        ShapeError: `x` has no such axis.
        DTypeError: `x` is not float32.

    Example:
        >>> softmax([0.0, 0.0]).numpy()
        array([0.5, 0.5], dtype=float32)
    """
    return _forward("softmax", False, x, axis)


def softmax_backward(dy: ArrayLike, y: ArrayLike, *, axis: int = -1) -> Tensor:
    """Gradient of `softmax`: `y * (dy - sum(dy * y))`.

    Args:
        dy: gradient of the output.
        y: output of the forward pass, the shape of `dy`.
        axis: as in the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ShapeError: shapes differ, or there is no such axis.
        DTypeError: an argument is not float32.

    Example:
        >>> softmax_backward([1.0, 0.0], softmax([0.0, 0.0])).numpy()
        array([ 0.25, -0.25], dtype=float32)
    """
    return _backward("softmax_backward", False, dy, y, axis)


def log_softmax(x: ArrayLike, *, axis: int = -1) -> Tensor:
    """Logarithm of `softmax`, computed without taking one of a small number.

    Args:
        x: float32, any shape.
        axis: the axis that is normalised.

    Returns:
        float32 Tensor of `x`'s shape. Where all of a row is -inf it is zeros, as in `softmax`: no
        infinity, so that a row without a class adds nothing to a loss.

    Raises:
        ShapeError: `x` has no such axis.
        DTypeError: `x` is not float32.

    Example:
        >>> log_softmax([0.0, 0.0]).numpy().round(4)
        array([-0.6931, -0.6931], dtype=float32)
    """
    return _forward("log_softmax", True, x, axis)


def log_softmax_backward(dy: ArrayLike, y: ArrayLike, *, axis: int = -1) -> Tensor:
    """Gradient of `log_softmax`: `dy - exp(y) * sum(dy)`.

    Args:
        dy: gradient of the output.
        y: output of the forward pass, the shape of `dy`.
        axis: as in the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ShapeError: shapes differ, or there is no such axis.
        DTypeError: an argument is not float32.

    Example:
        >>> log_softmax_backward([1.0, 0.0], log_softmax([0.0, 0.0])).numpy()
        array([ 0.5, -0.5], dtype=float32)
    """
    return _backward("log_softmax_backward", True, dy, y, axis)


def _forward(op: str, log: bool, x: ArrayLike, axis: int) -> Tensor:
    args = Floats(op, bfloat16=False, x=x)
    axis = normalized_axis(op, args["x"], axis)
    rows = _axis_last(args, "x", axis)
    y = args.empty(*rows.shape)
    _core.softmax_forward(log=log, x=rows, y=y)
    return _axis_back(args, y, axis)


def _backward(op: str, log: bool, dy: ArrayLike, y: ArrayLike, axis: int) -> Tensor:
    args = Floats(op, bfloat16=False, dy=dy, y=y)
    check_shape(op, "dy", args["dy"], args["y"].shape)
    axis = normalized_axis(op, args["y"], axis)
    rows = _axis_last(args, "y", axis)
    dx = args.empty(*rows.shape)
    _core.softmax_backward(log=log, dy=_axis_last(args, "dy", axis), y=rows, dx=dx)
    return _axis_back(args, dx, axis)


def _axis_last(args: Floats, name: str, axis: int) -> Tensor:
    """An argument with `axis` moved to the end, by way of the CPU: kernels go along the last."""
    x = args[name]
    if axis == len(x.shape) - 1:
        return x
    return args.array(np.ascontiguousarray(np.moveaxis(x.numpy(), axis, -1)))


def _axis_back(args: Floats, x: Tensor, axis: int) -> Tensor:
    if axis == len(x.shape) - 1:
        return x
    return args.array(np.ascontiguousarray(np.moveaxis(x.numpy(), -1, axis)))
