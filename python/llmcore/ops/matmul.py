"""Matrix products and linear layers."""

from __future__ import annotations

import math

import numpy as np

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError, ShapeError
from llmcore.ops._arguments import ArrayLike, Floats, check_shape

ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu")


def matmul(
    a: ArrayLike, b: ArrayLike, *, transpose_a: bool = False, transpose_b: bool = False
) -> Tensor:
    """Matrix product over the last two axes, batched over the others.

    Sums are float32 and in an order that depends on K alone, so a row's result is the same, bit for
    bit, in any batch and with any number of threads.

    Args:
        a: float32 or bfloat16, `[..., M, K]`, or `[..., K, M]` if `transpose_a`; a vector `[K]` is
            one row, whose axis the result lacks.
        b: `[..., K, N]`, or `[..., N, K]` if `transpose_b`; a vector `[K]` is one column, whose
            axis the result lacks. Leading axes broadcast as in NumPy.
        transpose_a: exchange the last two axes of `a`; a vector is left as it is.
        transpose_b: exchange the last two axes of `b`; a vector is left as it is.

    Returns:
        Tensor `[..., M, N]` of the arguments' dtype.

    Raises:
        ShapeError: the inner sizes differ, or the leading axes do not broadcast.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> matmul(np.ones((2, 3), np.float32), np.eye(3, dtype=np.float32)).numpy()
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    args = Floats("matmul", bfloat16=True, narrow=("a", "b"), a=a, b=b)
    product = _Product(args, transpose_a, transpose_b)
    return args.result(product.forward())


def matmul_backward(
    dy: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradient of `matmul`.

    Args:
        dy: gradient of the product, its shape.
        a: as in the forward pass.
        b: as in the forward pass.
        transpose_a: as in the forward pass.
        transpose_b: as in the forward pass.

    Returns:
        `(da, db)`, of the shapes of `a` and `b`: summed over the axes that were broadcast.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> import numpy as np
        >>> da, db = matmul_backward(np.ones((1, 1), np.float32), [[1.0, 2.0]], [[3.0], [4.0]])
        >>> da.numpy()
        array([[3., 4.]], dtype=float32)
    """
    args = Floats("matmul_backward", bfloat16=True, narrow=("dy", "a", "b"), dy=dy, a=a, b=b)
    product = _Product(args, transpose_a, transpose_b)
    da, db = product.backward(args["dy"])
    return args.result(da), args.result(db)


def linear(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str | None = None,
) -> Tensor:
    """Linear layer with an optional activation: `activation(x @ weight.T + bias)`.

    Args:
        x: float32 or bfloat16, `[..., in]`.
        weight: `[out, in]`.
        bias: `[out]`; zeros if None.
        activation: None, "relu", "gelu" (by erf), "gelu_tanh" or "silu".

    Returns:
        Tensor `[..., out]` of `x`'s dtype.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an argument is not float32 or bfloat16, or they differ.
        ConfigError: an unknown activation.

    Example:
        >>> linear([1.0, -2.0], [[1.0, 0.0], [0.0, 1.0]], [1.0, 1.0], activation="relu").numpy()
        array([2., 0.], dtype=float32)
    """
    args = Floats("linear", bfloat16=True, narrow=("x", "weight"), x=x, weight=weight, bias=bias)
    rows = _check_linear("linear", args, activation)
    x_, weight_ = args["x"], args["weight"]
    features_out, features_in = weight_.shape
    y = args.output(*x_.shape[:-1], features_out)
    _core.matmul(
        a=x_.reshape([rows, features_in]),
        b=weight_,
        c=y.reshape([rows, features_out]),
        transpose_b=True,
        bias=args.get("bias"),
        activation=activation or "none",
    )
    return args.result(y)


def linear_backward(
    dy: ArrayLike,
    x: ArrayLike,
    weight: ArrayLike,
    *,
    has_bias: bool,
    activation: str | None = None,
    bias: ArrayLike | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of `linear`.

    Args:
        dy: gradient of the output, `[..., out]`.
        x: as in the forward pass, `[..., in]`.
        weight: as in the forward pass, `[out, in]`.
        has_bias: whether the gradient of a bias is wanted.
        activation: as in the forward pass.
        bias: as in the forward pass; read only with an activation, whose input it is part of.

    Returns:
        `(dx, dweight, dbias)`; `dbias` is None unless `has_bias`.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an argument is not float32 or bfloat16, or they differ.
        ConfigError: an unknown activation.

    Example:
        >>> dx, dweight, dbias = linear_backward([[1.0]], [[2.0, 3.0]], [[4.0, 5.0]], has_bias=True)
        >>> dx.numpy(), dweight.numpy()
        (array([[4., 5.]], dtype=float32), array([[2., 3.]], dtype=float32))
    """
    op = "linear_backward"
    args = Floats(
        op, bfloat16=True, narrow=("dy", "x", "weight"), dy=dy, x=x, weight=weight, bias=bias
    )
    rows = _check_linear(op, args, activation)
    weight_ = args["weight"]
    features_out, features_in = weight_.shape
    check_shape(op, "dy", args["dy"], [*args["x"].shape[:-1], features_out])
    matrix = args["x"].reshape([rows, features_in])
    gradient = args["dy"].reshape([rows, features_out])
    if activation is not None:  # through the activation first; its input is computed again
        before = args.output(rows, features_out)
        _core.matmul(a=matrix, b=weight_, c=before, transpose_b=True, bias=args.get("bias"))
        through = args.output(rows, features_out)
        _core.activation_backward(activation=activation, dy=gradient, x=before, dx=through)
        gradient = through

    dx, dweight = args.output_like("x"), args.empty(features_out, features_in)
    _core.matmul(a=gradient, b=weight_, c=dx.reshape([rows, features_in]))
    _core.matmul(a=gradient, b=matrix, c=dweight, transpose_a=True)
    dbias = None
    if has_bias:
        dbias = args.zeros(features_out)
        _core.column_sum(x=gradient, out=dbias)
    return args.result(dx), args.result(dweight), None if dbias is None else args.result(dbias)


def _check_linear(op: str, args: Floats, activation: str | None) -> int:
    """Check shapes and activation; returns the number of rows."""
    x, weight = args["x"].shape, args["weight"].shape
    if len(weight) != 2:
        raise ShapeError(f"{op}: weight must have shape [out, in], got {list(weight)}")
    if not x or x[-1] != weight[1]:
        raise ShapeError(f"{op}: x must have shape [..., {weight[1]}], got {list(x)}")
    check_shape(op, "bias", args.get("bias"), weight[:1])
    if activation is not None and activation not in ACTIVATIONS:
        names = ", ".join(f"'{name}'" for name in ACTIVATIONS)
        raise ConfigError(f"{op}: activation must be None, {names}, got {activation!r}")
    return math.prod(x[:-1])


class _Product:
    """A checked `op(a) @ op(b)`: operands as `[batch, rows, cols]`, a batch of 1 where shared."""

    def __init__(self, args: Floats, transpose_a: bool, transpose_b: bool) -> None:
        self.args, op, a, b = args, args.op, args["a"], args["b"]
        self.shape_a, self.shape_b = a.shape, b.shape
        if not a.shape or not b.shape:
            raise ShapeError(f"{op}: a and b must have at least one axis, use * with a scalar")
        # Vectors are a row on the left, a column on the right.
        self.transpose_a = transpose_a and len(a.shape) > 1
        self.transpose_b = transpose_b and len(b.shape) > 1
        if len(a.shape) == 1:
            a = a.reshape([1, *a.shape])
        if len(b.shape) == 1:
            b = b.reshape([*b.shape, 1])
        self.m, inner = reversed(a.shape[-2:]) if self.transpose_a else a.shape[-2:]
        inner_b, self.n = reversed(b.shape[-2:]) if self.transpose_b else b.shape[-2:]
        if inner != inner_b:
            raise ShapeError(
                f"{op}: the inner sizes must agree, a {list(self.shape_a)}"
                f"{' transposed' * transpose_a} has {inner}, b {list(self.shape_b)}"
                f"{' transposed' * transpose_b} has {inner_b}"
            )
        try:
            self.lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        except ValueError:
            raise ShapeError(
                f"{op}: the leading axes must broadcast, got a {list(self.shape_a)} "
                f"and b {list(self.shape_b)}"
            ) from None
        self.batch = math.prod(self.lead)
        self.a, self.b = self._as_batch(a), self._as_batch(b)
        self.shape = (
            *self.lead,
            *([self.m] if len(self.shape_a) > 1 else []),
            *([self.n] if len(self.shape_b) > 1 else []),
        )

    def forward(self) -> Tensor:
        c = self.args.output(self.batch, self.m, self.n)
        _core.batched_matmul(
            a=self.a, b=self.b, c=c, transpose_a=self.transpose_a, transpose_b=self.transpose_b
        )
        return c.reshape(self.shape)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        check_shape(self.args.op, "dy", dy, self.shape)
        dc = dy.reshape([self.batch, self.m, self.n])
        da = self.args.output(self.batch, *self.a.shape[1:])
        db = self.args.output(self.batch, *self.b.shape[1:])
        if self.transpose_a:  # da^T = dy op(b)^T
            _core.batched_matmul(
                a=self.b, b=dc, c=da, transpose_a=self.transpose_b, transpose_b=True
            )
        else:
            _core.batched_matmul(a=dc, b=self.b, c=da, transpose_b=not self.transpose_b)
        if self.transpose_b:  # db^T = dy^T op(a)
            _core.batched_matmul(
                a=dc, b=self.a, c=db, transpose_a=True, transpose_b=self.transpose_a
            )
        else:
            _core.batched_matmul(a=self.a, b=dc, c=db, transpose_a=not self.transpose_a)
        return self._summed_to(da, self.shape_a), self._summed_to(db, self.shape_b)

    def _as_batch(self, matrices: Tensor) -> Tensor:
        lead, matrix = matrices.shape[:-2], matrices.shape[-2:]
        if math.prod(lead) in (1, self.batch):
            return matrices.reshape([math.prod(lead), *matrix])
        copied = np.ascontiguousarray(np.broadcast_to(matrices.numpy(), (*self.lead, *matrix)))
        return self.args.array(copied).to(dtype=matrices.dtype).reshape([self.batch, *matrix])

    def _summed_to(self, gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Sum over the leading axes along which an operand of `shape` was broadcast."""
        lead = (1,) * (len(self.lead) - len(shape[:-2])) + shape[:-2]
        if lead == self.lead:
            return gradient.reshape(shape)
        full = gradient.numpy().reshape(*self.lead, *gradient.shape[1:])
        axes = tuple(i for i, size in enumerate(lead) if size == 1 and self.lead[i] != 1)
        summed = full.sum(axes, keepdims=True, dtype=np.float32)
        return self.args.array(summed).reshape(shape)
