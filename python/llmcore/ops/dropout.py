"""Dropout whose mask is a function of a counter, so that it is never stored."""

from __future__ import annotations

import operator

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import ConfigError
from llmcore.ops._arguments import ArrayLike, Floats


def dropout(x: ArrayLike, p: float, *, seed: int, offset: int = 0) -> Tensor:
    """Zero each element with probability `p`, divide the others by `1 - p`.

    After Srivastava et al. (2014). Whether element i is kept depends on `seed` and `offset + i`
    alone: on word (offset + i) % 4 of Philox 4x32-10 (Salmon et al. 2011) for the counter
    (offset + i) // 4. The mask is the same on every device and for any number of threads, and a
    tensor may be processed in parts.

    Args:
        x: float32, any shape.
        p: probability of zero, in [0, 1).
        seed: from 0 to 2**64 - 1.
        offset: place of the first element in the mask, not negative.

    Returns:
        float32 Tensor of `x`'s shape.

    Raises:
        ConfigError: `p`, `seed` or `offset` is out of range.
        DTypeError: `x` is not float32.

    Example:
        >>> import numpy as np
        >>> dropout(np.ones(6, np.float32), 0.5, seed=2).numpy()
        array([0., 0., 2., 0., 0., 0.], dtype=float32)
    """
    return _apply("dropout", "x", x, p, seed, offset)


def dropout_backward(dy: ArrayLike, p: float, *, seed: int, offset: int = 0) -> Tensor:
    """Gradient of `dropout`: the same elements of `dy` are zeroed.

    Args:
        dy: gradient of the output, float32.
        p: as in the forward pass.
        seed: as in the forward pass.
        offset: as in the forward pass.

    Returns:
        The gradient of `x`.

    Raises:
        ConfigError: `p`, `seed` or `offset` is out of range.
        DTypeError: `dy` is not float32.

    Example:
        >>> import numpy as np
        >>> dropout_backward(np.ones(6, np.float32), 0.5, seed=2).numpy()
        array([0., 0., 2., 0., 0., 0.], dtype=float32)
    """
    return _apply("dropout_backward", "dy", dy, p, seed, offset)


def _apply(op: str, name: str, x: ArrayLike, p: float, seed: int, offset: int) -> Tensor:
    args = Floats(op, bfloat16=False, **{name: x})
    if not 0 <= p < 1:
        raise ConfigError(f"{op}: p must be in [0, 1), got {p}")
    for what, value in (("seed", seed), ("offset", offset)):
        if not 0 <= operator.index(value) < 2**64:
            raise ConfigError(f"{op}: {what} must be in [0, 2**64), got {value}")
    y = args.output_like(name)
    _core.dropout(p=p, seed=seed, offset=offset, x=args[name], y=y)
    return y
