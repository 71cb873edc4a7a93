"""Values of config.json that many families share: names of activations, rotary positions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llmcore.config import ModelConfig
from llmcore.errors import ConfigError
from llmcore.families.family import Key, Rule

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

#: Our name of an activation -> transformers'.
ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


def activation(name: Any) -> str:
    """Translate the name of an activation.

    Raises:
        ConfigError: if it is not supported.
    """
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def activation_key(theirs: str, default: str) -> Key:
    """Return the key that holds the activation of the feed-forward network."""
    return Key("activation", theirs, default, activation, ACTIVATION_NAMES.get)


def _embedding_scale(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    return (
        {"embedding_scale": math.sqrt(fields["hidden_size"])}
        if values.get("scale_embedding")
        else {}
    )


#: Whether token embeddings are multiplied by √C.
SCALE_EMBEDDING = Rule(
    "scale_embedding",
    _embedding_scale,
    lambda config: {"scale_embedding": config.embedding_scale == math.sqrt(config.hidden_size)},
)

# --- rotary positions ---------------------------------------------------------------------------

# Numbers that go with a rope type, beyond its factor; they have the same names on both sides.
_ROPE_NUMBERS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
}


def _decode_rope(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both.

    Meaning and defaults follow modeling_rope_utils.py of transformers 5.
    """
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ConfigError(f"rope_parameters: expected an object, got {parameters!r}")
    max_positions = fields["max_positions"]
    theta = parameters.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    part = parameters.get("partial_rotary_factor", 1.0)
    if part != 1.0:
        raise ConfigError(
            f"rope_parameters: partial_rotary_factor: only 1.0 is supported, got {part!r}"
        )
    if kind == "default":
        return {"rope_theta": theta}
    if not isinstance(kind, str) or kind not in _ROPE_NUMBERS:
        raise ConfigError(
            f"rope_type {kind!r} is not supported; known: default, {', '.join(_ROPE_NUMBERS)}"
        )
    if not parameters.get("truncate", True):
        raise ConfigError("rope_parameters: truncate: only True is supported, got False")
    scaling: dict[str, Any] = {"type": kind, "factor": parameters.get("factor")}
    if kind != "linear":
        scaling["original_max_positions"] = values.get(
            "original_max_position_embeddings",
            parameters.get("original_max_position_embeddings", max_positions),
        )
    if kind == "yarn":
        mscale, mscale_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        if scaling["factor"] is None:
            scaling["factor"] = max_positions / scaling["original_max_positions"]
        if mscale and mscale_all and scaling["factor"] > 1:
            log = 0.1 * math.log(scaling["factor"])
            scaling["attention_factor"] = (mscale * log + 1.0) / (mscale_all * log + 1.0)
    for name in _ROPE_NUMBERS[kind]:
        if parameters.get(name) is not None:
            scaling[name] = parameters[name]
    return {"rope_theta": theta, "rope_scaling": scaling}


def _encode_rope(config: ModelConfig) -> dict[str, Any]:
    """Write the older spelling, which transformers before and after version 5 both read."""
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    values: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type != "linear":
        values["original_max_position_embeddings"] = scaling.original_max_positions
    values |= {name: getattr(scaling, name) for name in _ROPE_NUMBERS[scaling.type]}
    return {"rope_theta": config.rope_theta, "rope_scaling": values}


#: Base and stretching of the rotary frequencies, in both spellings.
ROPE = Rule("rope_parameters", _decode_rope, _encode_rope)
