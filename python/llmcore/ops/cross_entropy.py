"""Softmax cross-entropy, of logits and of hidden states under an output matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError, DTypeError, ShapeError, TokenIndexError
from llmcore.ops._arguments import ArrayLike, Floats, as_tensor, check_shape


def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood of the targets under the softmax of the logits.

    With label smoothing s (Szegedy et al. 2016), the target distribution is `1 - s` on the target
    plus `s / V` everywhere. Equal to `torch.nn.functional.cross_entropy`, except that a mean over
    no positions at all is 0, not NaN.

    Args:
        logits: float32 `[..., V]`.
        targets: int32 or int64 `[...]`, each in [0, V) or `ignore_index`.
        weight: float32 `[V]`, weight of each class; ones if None.
        ignore_index: positions with this target count for nothing.
        label_smoothing: s, in [0, 1].
        reduction: "mean" divides the sum by the weight of the targets that count; "sum"; or "none".

    Returns:
        float32 Tensor without axes, or `[...]` for "none", in nats.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: `logits` or `weight` is not float32, or `targets` are no integers.
        ConfigError: `label_smoothing` or `reduction` is none of those named above.
        TokenIndexError: a target is neither a class nor `ignore_index`.

    Example:
        >>> float(cross_entropy([[0.0, 0.0], [0.0, 9.0]], [0, -100]).numpy().round(4))
        0.6930999755859375
    """
    call = _Call("cross_entropy", logits, targets, weight, ignore_index, label_smoothing, reduction)
    losses = call.args.empty(call.rows)
    _core.cross_entropy(**call.arguments, losses=losses)
    return _reduced(call.args, losses, call.shape, call.counted, reduction)


def cross_entropy_backward(
    dloss: ArrayLike,
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Gradient of `cross_entropy`.

    Args:
        dloss: gradient of the loss: a number, or `[...]` for reduction "none".
        logits: as in the forward pass.
        targets: as in the forward pass.
        weight: as in the forward pass.
        ignore_index: as in the forward pass.
        label_smoothing: as in the forward pass.
        reduction: as in the forward pass.

    Returns:
        The gradient of the logits, float32 `[..., V]`; zeros at ignored positions.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: `logits` or `weight` is not float32, or `targets` are no integers.
        ConfigError: `label_smoothing` or `reduction` is none of those named in the forward pass.
        TokenIndexError: a target is neither a class nor `ignore_index`.

    Example:
        >>> cross_entropy_backward(1.0, [[0.0, 0.0]], [0]).numpy()
        array([[-0.5,  0.5]], dtype=float32)
    """
    op = "cross_entropy_backward"
    call = _Call(op, logits, targets, weight, ignore_index, label_smoothing, reduction)
    scale = _row_scale(call.args, dloss, call.shape, call.counted, reduction)
    dlogits = call.args.empty(call.rows, call.classes)
    losses = call.args.empty(call.rows)
    _core.cross_entropy(**call.arguments, losses=losses, row_scale=scale, dlogits=dlogits)
    return dlogits.reshape([*call.shape, call.classes])


def linear_cross_entropy(
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Mean cross-entropy of the logits `hidden @ weight.T + bias`, which are never held whole.

    Logits are computed, and forgotten, for a block of rows at a time.

    Args:
        hidden: float32 or bfloat16 `[..., C]`.
        weight: the output matrix `[V, C]`.
        targets: int32 or int64 `[...]`, each in [0, V) or `ignore_index`.
        bias: `[V]`; zeros if None.
        ignore_index: positions with this target count for nothing.
        label_smoothing: as in `cross_entropy`, in [0, 1].

    Returns:
        float32 Tensor without axes: the mean over the positions that count, in nats; 0 if none.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an array is not float32 or bfloat16, they differ, or `targets` are no integers.
        ConfigError: `label_smoothing` is outside [0, 1].
        TokenIndexError: a target is neither a class nor `ignore_index`.

    Example:
        >>> loss = linear_cross_entropy([[1.0, 2.0]], [[0.0, 0.0], [1.0, -0.5]], [1])
        >>> float(loss.numpy().round(4))
        0.6930999755859375
    """
    op = "linear_cross_entropy"
    args, shape, ids = _linear_arguments(op, hidden, weight, bias, targets, ignore_index)
    losses = args.empty(ids.size)
    _core.linear_cross_entropy(
        hidden=args["hidden"].reshape([ids.size, args["hidden"].shape[-1]]),
        weight=args["weight"],
        bias=args.get("bias"),
        targets=args.array(ids),
        label_smoothing=_checked_smoothing(op, label_smoothing),
        losses=losses,
    )
    return _reduced(args, losses, shape, float((ids >= 0).sum()), "mean")


def linear_cross_entropy_backward(
    dloss: ArrayLike,
    hidden: ArrayLike,
    weight: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of `linear_cross_entropy`.

    Args:
        dloss: gradient of the loss, a number.
        hidden: as in the forward pass.
        weight: as in the forward pass.
        targets: as in the forward pass.
        bias: as in the forward pass.
        ignore_index: as in the forward pass.
        label_smoothing: as in the forward pass.

    Returns:
        `(dhidden, dweight, dbias)`, in the dtype of `hidden`; `dbias` is None without a bias.

    Raises:
        ShapeError: shapes do not agree.
        DTypeError: an array is not float32 or bfloat16, they differ, or `targets` are no integers.
        ConfigError: `label_smoothing` is outside [0, 1].
        TokenIndexError: a target is neither a class nor `ignore_index`.

    Example:
        >>> dhidden, dweight, dbias = linear_cross_entropy_backward(
        ...     1.0, [[1.0, 2.0]], [[0.0, 0.0], [1.0, -0.5]], [1]
        ... )
        >>> dweight.numpy()
        array([[ 0.5,  1. ],
               [-0.5, -1. ]], dtype=float32)
    """
    op = "linear_cross_entropy_backward"
    args, shape, ids = _linear_arguments(op, hidden, weight, bias, targets, ignore_index)
    scale = _row_scale(args, dloss, shape, float((ids >= 0).sum()), "mean")
    width = args["hidden"].shape[-1]
    dhidden = args.output_like("hidden")
    dweight = args.zeros(*args["weight"].shape)
    dbias = None if bias is None else args.zeros(dweight.shape[0])
    _core.linear_cross_entropy(
        hidden=args["hidden"].reshape([ids.size, width]),
        weight=args["weight"],
        bias=args.get("bias"),
        targets=args.array(ids),
        label_smoothing=_checked_smoothing(op, label_smoothing),
        losses=args.empty(ids.size),
        row_scale=scale,
        dhidden=dhidden.reshape([ids.size, width]),
        dweight=dweight,
        dbias=dbias,
    )
    return args.result(dhidden), args.result(dweight), None if dbias is None else args.result(dbias)


class _Call:
    """The checked arguments of a loss over logits."""

    def __init__(
        self,
        op: str,
        logits: ArrayLike,
        targets: ArrayLike,
        weight: ArrayLike | None,
        ignore_index: int,
        label_smoothing: float,
        reduction: str,
    ) -> None:
        if reduction not in ("mean", "sum", "none"):
            raise ConfigError(f"{op}: reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        self.args = args = Floats(op, bfloat16=False, logits=logits, weight=weight)
        self.shape, self.classes = _split(op, "logits", "V", args["logits"])
        check_shape(op, "weight", args.get("weight"), [self.classes])
        self.rows = math.prod(self.shape)
        ids = _target_rows(args, targets, self.shape, self.classes, ignore_index)
        class_weight = args.get("weight")
        weights = (ids >= 0) if class_weight is None else class_weight.numpy()[ids] * (ids >= 0)
        self.counted = float(weights.sum(dtype=np.float64))
        self.arguments: dict[str, Any] = {
            "logits": args["logits"].reshape([self.rows, self.classes]),
            "targets": args.array(ids),
            "label_smoothing": _checked_smoothing(op, label_smoothing),
            "class_weight": class_weight,
        }


def _linear_arguments(
    op: str,
    hidden: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None,
    targets: ArrayLike,
    ignore_index: int,
) -> tuple[Floats, list[int], npt.NDArray[np.int32]]:
    """The arrays, the leading axes of `hidden`, and the targets in rows."""
    args = Floats(op, bfloat16=True, narrow=("hidden",), hidden=hidden, weight=weight, bias=bias)
    shape, width = _split(op, "hidden", "C", args["hidden"])
    classes = args["weight"].shape[0] if args["weight"].shape else 0
    check_shape(op, "weight", args["weight"], [classes, width])
    check_shape(op, "bias", args.get("bias"), [classes])
    return args, shape, _target_rows(args, targets, shape, classes, ignore_index)


def _split(op: str, name: str, symbol: str, x: Tensor) -> tuple[list[int], int]:
    """The leading axes of `x`, and its width."""
    if not x.shape:
        raise ShapeError(f"{op}: {name} must have shape [..., {symbol}], got []")
    return list(x.shape[:-1]), x.shape[-1]


def _target_rows(
    args: Floats, targets: ArrayLike, shape: list[int], classes: int, ignore_index: int
) -> npt.NDArray[np.int32]:
    """The targets in one row, -1 for those to ignore, as the kernels want them."""
    op, tensor = args.op, as_tensor(args.op, "targets", targets)
    args.here("targets", targets, tensor)
    if tensor.dtype not in ("int32", "int64", "int8"):
        raise DTypeError(f"{op}: targets must be int32 or int64, got {tensor.dtype}")
    check_shape(op, "targets", tensor, shape)
    ids = tensor.numpy().astype(np.int64)
    ignored = ids == ignore_index
    wrong = np.argwhere(~ignored & ((ids < 0) | (ids >= classes)))
    if len(wrong):
        place = tuple(wrong[0])
        raise TokenIndexError(
            f"{op}: targets{[int(i) for i in place]} must be in [0, {classes}) or ignore_index = "
            f"{ignore_index}, got {ids[place]}"
        )
    return np.where(ignored, -1, ids).astype(np.int32).reshape(-1)


def _checked_smoothing(op: str, label_smoothing: float) -> float:
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(f"{op}: label_smoothing must be in [0, 1], got {label_smoothing}")
    return label_smoothing


def _reduced(
    args: Floats, losses: Tensor, shape: list[int], counted: float, reduction: str
) -> Tensor:
    if reduction == "none":
        return losses.reshape(shape)
    total = losses.numpy().sum(dtype=np.float64)
    if reduction == "mean":
        total = total / counted if counted > 0 else 0.0
    return args.array(np.asarray(total, np.float32))


def _row_scale(
    args: Floats, dloss: ArrayLike, shape: list[int], counted: float, reduction: str
) -> Tensor:
    """What each row's gradient is multiplied by: the derivative of the result by its loss."""
    gradient = Floats(args.op, bfloat16=False, dloss=dloss)["dloss"]
    check_shape(args.op, "dloss", gradient, shape if reduction == "none" else [])
    if reduction == "none":
        return args.here("dloss", dloss, gradient).reshape([math.prod(shape)])
    value = gradient.numpy()
    if reduction == "mean":
        value = value / np.float32(counted) if counted > 0 else np.zeros_like(value)
    return args.array(np.full(math.prod(shape), value, np.float32))
