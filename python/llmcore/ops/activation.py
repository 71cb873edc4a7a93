"""Activation functions and the gated linear unit."""

from __future__ import annotations

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError
from llmcore.ops._arguments import ArrayLike, Floats, check_shape


def relu(x: ArrayLike) -> Tensor:
    """Rectified linear unit, `max(x, 0)`.

    Args:
        x: float32 or bfloat16, any shape.

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        DTypeError: `x` is not float32 or bfloat16.

    Example:
        >>> relu([-1.0, 2.0]).numpy()
        array([0., 2.], dtype=float32)
    """
    return _forward("relu", "relu", x)


def relu_backward(dy: ArrayLike, x: ArrayLike) -> Tensor:
    """Gradient of `relu`: `dy` where `x > 0`, else 0.

    Args:
        dy: gradient of the output, `x`'s shape and dtype.
        x: input of the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ShapeError: shapes differ.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> relu_backward([3.0, 4.0], [-1.0, 2.0]).numpy()
        array([0., 4.], dtype=float32)
    """
    return _backward("relu_backward", "relu", dy, x)


def gelu(x: ArrayLike, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit (Hendrycks and Gimpel 2016).

    `x Phi(x)`, Phi the cumulative normal distribution; with `approximate="tanh"`
    `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x**3)))`. Both keep their relative accuracy for
    large negative `x`.

    Args:
        x: float32 or bfloat16, any shape.
        approximate: "none" or "tanh".

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        ConfigError: `approximate` is neither "none" nor "tanh".
        DTypeError: `x` is not float32 or bfloat16.

    Example:
        >>> gelu([-1.0, 2.0]).numpy().round(4)
        array([-0.1587,  1.9545], dtype=float32)
    """
    return _forward("gelu", _gelu_kind("gelu", approximate), x)


def gelu_backward(dy: ArrayLike, x: ArrayLike, *, approximate: str = "none") -> Tensor:
    """Gradient of `gelu`.

    Args:
        dy: gradient of the output, `x`'s shape and dtype.
        x: input of the forward pass.
        approximate: as in the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ConfigError: `approximate` is neither "none" nor "tanh".
        ShapeError: shapes differ.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> gelu_backward([1.0, 1.0], [0.0, 2.0]).numpy().round(4)
        array([0.5   , 1.0852], dtype=float32)
    """
    return _backward("gelu_backward", _gelu_kind("gelu_backward", approximate), dy, x)


def silu(x: ArrayLike) -> Tensor:
    """Sigmoid linear unit, also called swish: `x sigmoid(x)` (Hendrycks and Gimpel 2016).

    Args:
        x: float32 or bfloat16, any shape.

    Returns:
        Tensor of `x`'s shape and dtype.

    Raises:
        DTypeError: `x` is not float32 or bfloat16.

    Example:
        >>> silu([-1.0, 2.0]).numpy().round(4)
        array([-0.2689,  1.7616], dtype=float32)
    """
    return _forward("silu", "silu", x)


def silu_backward(dy: ArrayLike, x: ArrayLike) -> Tensor:
    """Gradient of `silu`.

    Args:
        dy: gradient of the output, `x`'s shape and dtype.
        x: input of the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ShapeError: shapes differ.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> silu_backward([1.0, 1.0], [0.0, 2.0]).numpy().round(4)
        array([0.5   , 1.0908], dtype=float32)
    """
    return _backward("silu_backward", "silu", dy, x)


def swiglu(gate: ArrayLike, up: ArrayLike) -> Tensor:
    """Gated linear unit with SiLU, `silu(gate) * up` (Shazeer 2020).

    Args:
        gate: float32 or bfloat16, any shape.
        up: the same shape and dtype.

    Returns:
        Tensor of that shape and dtype.

    Raises:
        ShapeError: shapes differ.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> swiglu([-1.0, 2.0], [1.0, 10.0]).numpy().round(4)
        array([-0.2689, 17.6159], dtype=float32)
    """
    args = Floats("swiglu", bfloat16=True, narrow=("gate", "up"), gate=gate, up=up)
    check_shape("swiglu", "up", args["up"], args["gate"].shape)
    y = args.output_like("gate")
    _core.gated_forward(activation="silu", gate=args["gate"], up=args["up"], y=y)
    return args.result(y)


def swiglu_backward(dy: ArrayLike, gate: ArrayLike, up: ArrayLike) -> tuple[Tensor, Tensor]:
    """Gradient of `swiglu`.

    Args:
        dy: gradient of the output, shape and dtype of `gate`.
        gate: argument of the forward pass.
        up: argument of the forward pass.

    Returns:
        `(dgate, dup)`.

    Raises:
        ShapeError: shapes differ.
        DTypeError: an argument is not float32 or bfloat16, or they differ.

    Example:
        >>> dgate, dup = swiglu_backward([1.0], [2.0], [10.0])
        >>> dgate.numpy().round(3), dup.numpy().round(3)
        (array([10.908], dtype=float32), array([1.762], dtype=float32))
    """
    op = "swiglu_backward"
    args = Floats(op, bfloat16=True, narrow=("dy", "gate", "up"), dy=dy, gate=gate, up=up)
    check_shape(op, "up", args["up"], args["gate"].shape)
    check_shape(op, "dy", args["dy"], args["gate"].shape)
    dgate, dup = args.output_like("gate"), args.output_like("gate")
    _core.gated_backward(
        activation="silu", dy=args["dy"], gate=args["gate"], up=args["up"], dgate=dgate, dup=dup
    )
    return args.result(dgate), args.result(dup)


def _gelu_kind(op: str, approximate: str) -> str:
    kinds = {"none": "gelu", "tanh": "gelu_tanh"}
    if approximate not in kinds:
        raise ConfigError(f"{op}: approximate must be 'none' or 'tanh', got {approximate!r}")
    return kinds[approximate]


def _forward(op: str, activation: str, x: ArrayLike) -> Tensor:
    args = Floats(op, bfloat16=True, narrow=("x",), x=x)
    y = args.output_like("x")
    _core.activation_forward(activation=activation, x=args["x"], y=y)
    return args.result(y)


def _backward(op: str, activation: str, dy: ArrayLike, x: ArrayLike) -> Tensor:
    args = Floats(op, bfloat16=True, narrow=("dy", "x"), dy=dy, x=x)
    check_shape(op, "dy", args["dy"], args["x"].shape)
    dx = args.output_like("x")
    _core.activation_backward(activation=activation, dy=args["dy"], x=args["x"], dx=dx)
    return args.result(dx)
