"""AdamW and gradient clipping, both in place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError, DTypeError, ShapeError
from llmcore.ops._arguments import ArrayLike, Floats, check_shape


def adamw_step(
    param: ArrayLike,
    grad: ArrayLike,
    m: ArrayLike,
    v: ArrayLike,
    *,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    step: int,
) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019), in place on `param`, `m` and `v`.

    `m = beta1 m + (1 - beta1) g`, `v = beta2 v + (1 - beta2) g**2`, and with
    `m' = m / (1 - beta1**step)`, `v' = v / (1 - beta2**step)`:
    `p = (1 - lr weight_decay) p - lr m' / (sqrt(v') + eps)`; the same as `torch.optim.AdamW`
    to rounding.

    Args:
        param: parameters, float32, any shape.
        grad: their gradient, same shape; not written.
        m: mean of gradients, same shape; zeros before the first step.
        v: mean of squared gradients, same shape; zeros before the first step.
        lr: learning rate.
        beta1: decay of `m`, in [0, 1).
        beta2: decay of `v`, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled from the gradient; `lr * weight_decay` of `param` is subtracted.
        step: number of this step, from 1.

    Raises:
        ShapeError: shapes differ, or `param`, `m` or `v` cannot be updated in place because it is
            read-only or not contiguous.
        DTypeError: an array is not float32, or `param`, `m` or `v` is not an array.
        ConfigError: a setting is out of its range.

    Example:
        >>> import numpy as np
        >>> param, m, v = np.ones(3, np.float32), np.zeros(3, np.float32), np.zeros(3, np.float32)
        >>> adamw_step(param, np.array([1, -1, 0], np.float32), m, v, lr=0.1, step=1)
        >>> param.round(3)
        array([0.9, 1.1, 1. ], dtype=float32)
    """
    op = "adamw_step"
    in_place = {"param": param, "m": m, "v": v}
    shared: dict[str, Any] = {n: _in_place(op, n, array) for n, array in in_place.items()}
    args = Floats(op, bfloat16=False, **shared, grad=grad)
    for name in ("grad", "m", "v"):
        check_shape(op, name, args[name], args["param"].shape)
    _core.adamw(
        **shared,
        grad=args["grad"],
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
    )


def clip_grad_norm(
    grads: ArrayLike | Iterable[ArrayLike] | Mapping[str, ArrayLike], max_norm: float
) -> float:
    """Scale gradients, in place, so that their joint Euclidean norm is at most `max_norm`.

    Each is multiplied by `max_norm / (norm + 1e-6)` where that is below 1, as
    `torch.nn.utils.clip_grad_norm_` does. Gradients whose norm is infinite or NaN are left as they
    are: the caller sees it in the norm and can skip the step.

    Args:
        grads: one float32 array of any shape, or several: a list, a mapping such as
            `model.gradients()`, anything that gives one after the other.
        max_norm: at least 0.

    Returns:
        The norm before, summed in float64 in a fixed order.

    Raises:
        ShapeError: an array cannot be updated in place: it is read-only or not contiguous.
        DTypeError: an array is not float32, or not an array.
        ConfigError: `max_norm` is negative or NaN.

    Example:
        >>> import numpy as np
        >>> grad = np.array([3, 4], np.float32)
        >>> clip_grad_norm(grad, max_norm=1.0)
        5.0
        >>> grad.round(3)
        array([0.6, 0.8], dtype=float32)
    """
    op = "clip_grad_norm"
    if not max_norm >= 0:
        raise ConfigError(f"{op}: max_norm must be at least 0, got {max_norm}")
    if isinstance(grads, Mapping):
        tensors = [_in_place(op, f"grads[{name!r}]", grad) for name, grad in grads.items()]
    elif isinstance(grads, Iterable) and not (
        hasattr(grads, "__array__") or hasattr(grads, "__dlpack__")
    ):
        tensors = [_in_place(op, f"grads[{i}]", grad) for i, grad in enumerate(grads)]
    else:
        tensors = [_in_place(op, "grads", grads)]
    norm = math.sqrt(math.fsum(_core.square_sum(tensor) for tensor in tensors))
    if math.isfinite(norm) and max_norm < norm + 1e-6:
        for tensor in tensors:
            _core.scale(factor=max_norm / (norm + 1e-6), x=tensor, y=tensor)
    return norm


def _in_place(op: str, name: str, array: Any) -> Tensor:
    """Take `array` as a float32 Tensor that shares its memory, or say why it cannot be shared."""
    try:
        tensor = _core.in_place_tensor(array)
    except (ShapeError, DTypeError) as error:
        reason = str(error).split(": ", 1)[-1]
        raise type(error)(f"{op}: {name} cannot be updated in place: {reason}") from error
    if tensor.dtype != "float32":
        raise DTypeError(f"{op}: {name} must be float32, got {tensor.dtype}")
    return tensor
