"""Scaled dot-product attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

from llmcore import _core
from llmcore._core import Tensor
from llmcore.errors import DTypeError, ShapeError
from llmcore.ops._arguments import (
    ArrayLike,
    Floats,
    as_tensor,
    check_rank,
    check_shape,
)


def attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    kv_lengths: ArrayLike | None = None,
    prefix_lengths: ArrayLike | None = None,
    window: Sequence[int] = (-1, -1),
    past_length: int | ArrayLike = 0,
    return_weights: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017), without ever holding `[T, S]` scores.

    `out[i] = sum_j softmax_j(softcap(scale * q[i] @ k[j]) + bias[i, j]) v[j]` over the keys `j`
    that query `i` may see, where `softcap(s) = softcap * tanh(s / softcap)` if `softcap` is above
    0 (Gemma 2, 2024). A query that may see nothing gives zeros.

    Key `j` is visible to query `i` of batch row `b`, which stands at position
    `p = i + past_length[b]`, iff all of these hold: `j < kv_lengths[b]`; not `causal`, or `j <= p`,
    or `j < prefix_lengths[b]`; `j >= p - window[0]` and `j <= p + window[1]`, where these are not
    -1; `mask[b, h, i, j]`.

    On the CPU, in float32, every output row has the same bits whichever other queries, batch rows
    and hidden keys it is computed with: one token decoded with a cache equals the same token of a
    whole pass.

    Args:
        q: queries `[B, Hq, T, D]`, float32 or bfloat16.
        k: keys `[B, Hkv, S, D]`; Hq must be a multiple of Hkv, and query head `h` uses key head
            `h // (Hq // Hkv)` (grouped-query attention, Ainslie et al. 2023).
        v: values `[B, Hkv, S, Dv]`.
        bias: added to the scores, float32 or bfloat16; broadcastable to `[B, Hq, T, S]`.
        mask: bool, True where a query may attend; broadcastable to `[B, Hq, T, S]`.
        causal: whether queries see only keys up to their own position.
        scale: factor of the scores; `1 / sqrt(D)` if None.
        softcap: bound of the scores; 0 means none.
        kv_lengths: ints `[B]`, keys from there on are padding and never read; S if None.
        prefix_lengths: ints `[B]`, keys before that are visible to all queries although `causal`.
        window: `(left, right)`, how many keys before and after its own position a query sees;
            -1 means no bound.
        past_length: position of the first query, for decoding with a cache: an int, or ints `[B]`.
        return_weights: whether to return the softmax weights too.

    Returns:
        `out [B, Hq, T, Dv]` in the dtype of `q`; with `return_weights`, `(out, weights)`, where
        `weights` is `[B, Hq, T, S]`.

    Raises:
        ShapeError: shapes do not agree, or a length is out of range.
        DTypeError: an array has the wrong dtype.
        ConfigError: `softcap` is negative.

    Example:
        >>> import numpy as np
        >>> q = np.zeros((1, 1, 3, 2), np.float32)
        >>> v = np.array([[[[1.0], [2.0], [6.0]]]], np.float32)
        >>> attention(q, q, v, causal=True).numpy().ravel()
        array([1. , 1.5, 3. ], dtype=float32)
    """
    args = Floats(
        "attention",
        bfloat16=True,
        narrow=("q", "k", "v"),
        either=("bias",),
        q=q,
        k=k,
        v=v,
        bias=bias,
    )
    call, shape = _call(
        args, mask, causal, scale, softcap, kv_lengths, prefix_lengths, window, past_length
    )
    out = args.output(*shape[:3], args["v"].shape[3])
    _core.attention_forward(call, out=out)
    if not return_weights:
        return args.result(out)
    weights = args.empty(*shape)
    _core.attention_weights(call, weights=weights)
    return args.result(out), args.result(weights)


def attention_backward(
    dout: ArrayLike,
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool = False,
    scale: float | None = None,
    softcap: float = 0.0,
    kv_lengths: ArrayLike | None = None,
    prefix_lengths: ArrayLike | None = None,
    window: Sequence[int] = (-1, -1),
    past_length: int | ArrayLike = 0,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradient of `attention`.

    Args:
        dout: gradient of the output, `[B, Hq, T, Dv]`.
        q: as in the forward pass.
        k: as in the forward pass.
        v: as in the forward pass.
        bias: as in the forward pass.
        mask: as in the forward pass.
        causal: as in the forward pass.
        scale: as in the forward pass.
        softcap: as in the forward pass.
        kv_lengths: as in the forward pass.
        prefix_lengths: as in the forward pass.
        window: as in the forward pass.
        past_length: as in the forward pass.
        return_weights: says nothing here; so that a forward call's arguments serve as they are.

    Returns:
        `(dq, dk, dv, dbias)`, each in the shape and dtype of what it is the gradient of; `dbias` is
        None without a bias. Keys nobody sees get zeros.

    Raises:
        ShapeError: shapes do not agree, or a length is out of range.
        DTypeError: an array has the wrong dtype.
        ConfigError: `softcap` is negative.

    Example:
        >>> import numpy as np
        >>> q = np.zeros((1, 1, 2, 1), np.float32)
        >>> dq, dk, dv, dbias = attention_backward(np.ones_like(q), q, q, q, causal=True)
        >>> dv.numpy().ravel()
        array([1.5, 0.5], dtype=float32)
    """
    narrow = ("dout", "q", "k", "v")
    args = Floats(
        "attention_backward",
        bfloat16=True,
        narrow=narrow,
        either=("bias",),
        dout=dout,
        q=q,
        k=k,
        v=v,
        bias=bias,
    )
    call, shape = _call(
        args, mask, causal, scale, softcap, kv_lengths, prefix_lengths, window, past_length
    )
    check_shape(args.op, "dout", args["dout"], [*shape[:3], args["v"].shape[3]])
    out, softmax = args.output_like("dout"), args.empty(*shape[:3], 2)
    _core.attention_forward(call, out=out, softmax=softmax)
    dq, dk, dv = (args.output_like(name) for name in ("q", "k", "v"))
    dbias = None if bias is None else args.zeros(*args["bias"].shape)
    _core.attention_backward(
        call, out=out, softmax=softmax, dout=args["dout"], dq=dq, dk=dk, dv=dv, dbias=dbias
    )
    return (
        args.result(dq),
        args.result(dk),
        args.result(dv),
        None if dbias is None else args.result(dbias, "bias"),
    )


def _call(
    args: Floats,
    mask: ArrayLike | None,
    causal: bool,
    scale: float | None,
    softcap: float,
    kv_lengths: ArrayLike | None,
    prefix_lengths: ArrayLike | None,
    window: Sequence[int],
    past_length: int | ArrayLike,
) -> tuple[_core.AttentionCall, list[int]]:
    """The arguments as the core takes them, and the shape of the scores."""
    op, q, k = args.op, args["q"], args["k"]
    if len(window) != 2 or any(size < -1 for size in window):
        raise ShapeError(
            f"{op}: window must be (left, right), each -1 (unbounded) or above, got {window}"
        )
    if mask is not None:
        mask = args.here("mask", mask, as_tensor(op, "mask", mask))
        if mask.dtype != "bool":
            raise DTypeError(
                f"{op}: mask must be bool, True where a query may attend, got {mask.dtype}"
            )
    for name, symbols in (
        ("q", "[B, Hq, T, D]"),
        ("k", "[B, Hkv, S, D]"),
        ("v", "[B, Hkv, S, Dv]"),
    ):
        check_rank(op, name, args[name], symbols)
    if isinstance(past_length, Integral):
        past_length = [int(past_length)] * q.shape[0] or None  # an empty list has no dtype
    call = _core.AttentionCall(
        op=op,
        q=q,
        k=k,
        v=args["v"],
        scale=1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale,
        softcap=softcap,
        causal=causal,
        window_left=window[0],
        window_right=window[1],
        bias=args.get("bias"),
        mask=mask,
        kv_lengths=_lengths(args, "kv_lengths", kv_lengths),
        prefix_lengths=_lengths(args, "prefix_lengths", prefix_lengths),
        past=_lengths(args, "past_length", past_length),
    )
    return call, [*q.shape[:3], k.shape[2]]


def _lengths(args: Floats, name: str, values: ArrayLike | None) -> Tensor | None:
    return None if values is None else args.ids(name, values)
