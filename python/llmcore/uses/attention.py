"""Attention maps: the weights of any layer and head, for just the queries asked about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmcore import _core
from llmcore.errors import ConfigError
from llmcore.inputs import Inputs

if TYPE_CHECKING:
    from llmcore.model import Transformer

Float32Array = NDArray[np.float32]
MapKind = Literal["encoder", "decoder", "cross"]


def attention_maps(
    model: Transformer,
    inputs: Inputs,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    kind: MapKind,
    queries: tuple[int, int] | None,
) -> Float32Array:
    """Attention weights; see `Transformer.attention_maps`."""
    config = model.config
    check_kind(model, kind)
    count = config.num_encoder_layers if kind == "encoder" else config.num_decoder_layers
    wanted_layers = _chosen(layers, count, "layers")
    wanted_heads = _chosen(heads, config.num_heads, "heads")
    asked, keys = _ids(inputs, kind), _ids(inputs, "encoder" if kind != "decoder" else "decoder")
    batch, length = asked.shape
    first, stop = (0, length) if queries is None else queries
    if not 0 <= first < stop <= length:
        raise ConfigError(
            f"attention_maps: queries must be a range (first, stop) within 0 and {length}, "
            f"got ({first}, {stop})"
        )
    shape = (len(wanted_layers), len(wanted_heads), batch, stop - first, keys.shape[1])
    probes = [(layer, head, first) for layer in wanted_layers for head in wanted_heads]
    out = _core.empty([len(probes), *shape[2:]], device=model.device)
    model._core.attention_weights(inputs, kind, probes, out)
    weights: Float32Array = out.numpy().reshape(shape)
    return np.ascontiguousarray(np.moveaxis(weights, 2, 0))


def check_kind(model: Transformer, kind: str) -> None:
    """Raise `ConfigError` unless the model has attention of this kind."""
    needed = {
        "encoder": model.config.num_encoder_layers > 0,
        "decoder": model.config.num_decoder_layers > 0,
        "cross": model.config.kind == "encoder-decoder",
    }
    if kind not in needed:
        raise ConfigError(
            f"attention_maps: kind must be one of {', '.join(get_args(MapKind))}, got {kind!r}"
        )
    if not needed[kind]:
        have = ", ".join(repr(name) for name, there in needed.items() if there)
        raise ConfigError(f"attention_maps: the model has no {kind!r} attention; it has {have}")


def _ids(inputs: Inputs, kind: str) -> NDArray[np.int32]:
    ids = inputs.enc_ids if kind == "encoder" else inputs.dec_ids
    assert ids is not None  # the model has that stack, and so do its inputs
    return ids


def _chosen(wanted: Sequence[int] | None, count: int, what: str) -> list[int]:
    if wanted is None:
        return list(range(count))
    chosen = [int(index) for index in wanted]
    wrong = [index for index in chosen if not 0 <= index < count]
    if wrong or not chosen:
        raise ConfigError(
            f"attention_maps: {what} must be numbers from 0 to {count - 1}, got {chosen}"
        )
    return chosen
