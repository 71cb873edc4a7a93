"""The Hugging Face architectures we read and write, as tables of config keys and tensor names.

A `Family` is one foreign architecture, told in rows: `Key` rows map config keys, `Row` rows map
tensors. All code that walks them is general, so one more architecture of a kind the models can
express is one more `Family`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmcore.config import ModelConfig, parameter_shapes
from llmcore.errors import ConfigError
from llmcore.safetensors_io import Array, Shape

Float32 = NDArray[np.float32]

# Fields that do not change what a model computes: configs that differ only here are the same
# architecture.
_IMMATERIAL_FIELDS = (
    "decoder_start_id",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "ffn_dropout",
    "init_std",
)
_BIAS_FIELDS = ("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias")


@dataclass(frozen=True)
class Key:
    """A field of ours and the foreign config key that holds it.

    Attributes:
        ours: Field of `ModelConfig`.
        theirs: Key in config.json.
        default: Their value when the key is absent.
        decode: Their value to ours.
        encode: Our value to theirs.
    """

    ours: str
    theirs: str
    default: Any = None
    decode: Callable[[Any], Any] = lambda value: value
    encode: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Row:
    """Tensors of ours and the one foreign tensor that holds them.

    Attributes:
        ours: Our names; several are stacked along their first axis in the foreign tensor.
        theirs: The foreign name. `{i}` stands for the layer's index in both.
        transposed: Whether the foreign matrix is [in, out], as in GPT-2's Conv1D.
    """

    ours: tuple[str, ...]
    theirs: str
    transposed: bool = False

    def foreign_shape(self, shapes: Mapping[str, Shape]) -> Shape:
        """Return the shape of the foreign tensor, from the shapes of ours."""
        first = shapes[self.ours[0]]
        stacked = (sum(shapes[name][0] for name in self.ours), *first[1:])
        return stacked[::-1] if self.transposed else stacked

    def split(self, foreign: Float32, shapes: Mapping[str, Shape]) -> Iterator[tuple[str, Float32]]:
        """Yield (our name, view of the foreign tensor)."""
        start, stacked = 0, foreign.T if self.transposed else foreign
        for name in self.ours:
            end = start + shapes[name][0]
            yield name, stacked[start:end]
            start = end

    def join(self, tensors: Mapping[str, Array], shapes: Mapping[str, Shape]) -> Array:
        """Build the foreign tensor from ours; one we do not have is zero."""
        parts = [
            np.asarray(tensors[name]) if name in tensors else np.zeros(shapes[name], np.float32)
            for name in self.ours
        ]
        stacked = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return stacked.T if self.transposed else stacked


@dataclass(frozen=True)
class Family:
    """One foreign architecture, as tables.

    Attributes:
        architecture: The class name under `architectures` in config.json.
        model_type: The name under `model_type`.
        fixed: Our fields that every model of the family has in common.
        keys: Our fields that config.json holds.
        rows: Tensor names.
        base_prefix: Prefix of every name but the head's, absent from files of the bare base model.
        tied: Foreign name of the head, which a file with tied weights may repeat.
        ignored: Pattern of foreign names that hold no parameters.
        refused: Keys for which only the value given here is supported.
        rope: Whether positions are rotary, with the keys that go with them.
        zero_filled: Biases of the family that a model of ours may lack; they are written as zeros
            and must be zeros when such a model is read again.
        accepts: What transformers demands of a config beyond the keys.
    """

    architecture: str
    model_type: str
    fixed: Mapping[str, Any]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    base_prefix: str
    tied: str
    ignored: str = r"(?!)"
    refused: Mapping[str, Any] = field(default_factory=dict)
    rope: bool = False
    zero_filled: tuple[str, ...] = ()
    accepts: Callable[[ModelConfig], bool] = lambda config: True

    def decode(self, values: Mapping[str, Any]) -> ModelConfig:
        """Build our config from the family's keys."""
        for name, expected in self.refused.items():
            if values.get(name, expected) != expected:
                raise ConfigError(
                    f"{self.architecture}: {name}: only {expected!r} is supported, "
                    f"got {values[name]!r}"
                )
        fields = dict(self.fixed)
        for key in self.keys:
            fields[key.ours] = key.decode(values.get(key.theirs, key.default))
        _drop_foreign_token_ids(fields)
        if self.rope:
            try:
                fields |= _decode_rope(values, fields["max_positions"])
            except (TypeError, ArithmeticError) as error:
                raise ConfigError(f"{self.architecture}: rope_parameters: {error}") from error
        return ModelConfig.from_dict(fields)

    def encode(self, config: ModelConfig) -> dict[str, Any] | None:
        """Write our config with the family's keys, or return None if they cannot express it.

        The family can express what decodes to the same: there is no list of conditions to keep.
        """
        if not self.accepts(config):
            return None
        values: dict[str, Any] = {"architectures": [self.architecture]}
        values["model_type"] = self.model_type
        for key in self.keys:
            values[key.theirs] = key.encode(getattr(config, key.ours))
        if self.rope:
            values |= _encode_rope(config)
        try:
            same = _essence(self.decode(values)) == _essence(self.widen(config))
        except ConfigError:
            return None
        return values if same else None

    def widen(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with the biases that the family's files have in any case."""
        return (
            config.replace(**dict.fromkeys(self.zero_filled, True)) if self.zero_filled else config
        )

    def layout(self, config: ModelConfig) -> list[Row]:
        """List the rows of the model `config` describes, one for each foreign tensor."""
        shapes = parameter_shapes(self.widen(config))
        rows = []
        for row in self.rows:
            layers = range(config.num_encoder_layers + config.num_decoder_layers)
            for i in layers if "{i}" in row.theirs else (0,):
                ours = tuple(name.replace("{i}", str(i)) for name in row.ours)
                if ours[0] in shapes:
                    rows.append(Row(ours, row.theirs.replace("{i}", str(i)), row.transposed))
        return rows


def _essence(config: ModelConfig) -> dict[str, Any]:
    values = config.to_dict()
    return {key: value for key, value in values.items() if key not in _IMMATERIAL_FIELDS}


# --- values -------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_NAMES = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


def _activation(name: Any) -> Any:
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        raise ConfigError(f"activation {name!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _attention_scale(scaled: Any) -> float | None:
    return None if scaled else 1.0


def _token_id(value: Any) -> Any:
    """One id, or None. Of several the first is meant; a negative one means there is none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return None if isinstance(value, int) and value < 0 else value


def _token_keys(**defaults: int | None) -> tuple[Key, ...]:
    names = ("bos", "eos", "pad")
    return tuple(Key(f"{n}_id", f"{n}_token_id", defaults.get(n), _token_id) for n in names)


def _drop_foreign_token_ids(fields: dict[str, Any]) -> None:
    """Forget special ids outside the vocabulary.

    Small models keep the ids of transformers' defaults (50256 in GPT-2's), which they cannot mean.
    """
    size = fields["vocab_size"]
    for name in ("bos_id", "eos_id", "pad_id"):
        token = fields.get(name)
        if isinstance(token, int) and isinstance(size, int) and token >= size:
            fields[name] = None


# Numbers that go with a rope type, beyond its factor; they have the same names on both sides.
_ROPE_NUMBERS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "attention_factor"),
}


def _decode_rope(values: Mapping[str, Any], max_positions: Any) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling`, or `rope_parameters`, which holds both.

    Meaning and defaults follow modeling_rope_utils.py of transformers 5.
    """
    parameters = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ConfigError(f"rope_parameters: expected an object, got {parameters!r}")
    theta = parameters.get("rope_theta", values.get("rope_theta", 10000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
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


# --- the families -------------------------------------------------------------------------------


def _linear(ours: str, theirs: str, transposed: bool = False) -> tuple[Row, Row]:
    """A weight and the bias beside it; `ours` may name several, separated by commas."""
    names = ours.split(",")
    weights, biases = (tuple(f"{n}.{kind}" for n in names) for kind in ("weight", "bias"))
    return Row(weights, f"{theirs}.weight", transposed), Row(biases, f"{theirs}.bias")


_LAYER = "decoder.layers.{i}"
_ATTENTION = f"{_LAYER}.self_attention"
_FEED_FORWARD = f"{_LAYER}.feed_forward"

_GPT2 = Family(
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    fixed={},
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("max_positions", "n_positions", 1024),
        Key("hidden_size", "n_embd", 768),
        Key("num_decoder_layers", "n_layer", 12),
        Key("num_heads", "n_head", 12),
        Key("ffn_size", "n_inner"),
        Key("activation", "activation_function", "gelu_new", _activation, _ACTIVATION_NAMES.get),
        Key("norm_eps", "layer_norm_epsilon", 1e-5),
        Key("attention_scale", "scale_attn_weights", True, _attention_scale, lambda v: v != 1.0),
        Key("embedding_dropout", "embd_pdrop", 0.1),
        Key("attention_dropout", "attn_pdrop", 0.1),
        Key("residual_dropout", "resid_pdrop", 0.1),
        Key("init_std", "initializer_range", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", True),
        *_token_keys(bos=50256, eos=50256),
    ),
    rows=(
        Row(("embed.tokens.weight",), "transformer.wte.weight"),
        Row(("embed.positions.weight",), "transformer.wpe.weight"),
        *_linear(f"{_ATTENTION}.norm", "transformer.h.{i}.ln_1"),
        *_linear(
            f"{_ATTENTION}.q,{_ATTENTION}.k,{_ATTENTION}.v",
            "transformer.h.{i}.attn.c_attn",
            transposed=True,
        ),
        *_linear(f"{_ATTENTION}.out", "transformer.h.{i}.attn.c_proj", transposed=True),
        *_linear(f"{_FEED_FORWARD}.norm", "transformer.h.{i}.ln_2"),
        *_linear(f"{_FEED_FORWARD}.up", "transformer.h.{i}.mlp.c_fc", transposed=True),
        *_linear(f"{_FEED_FORWARD}.down", "transformer.h.{i}.mlp.c_proj", transposed=True),
        *_linear("decoder.norm", "transformer.ln_f"),
        Row(("head.weight",), "lm_head.weight"),
    ),
    base_prefix="transformer.",
    tied="lm_head.weight",
    ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # causal masks, once saved as buffers
    refused={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    # So that models trained without biases, gpt-nano among them, open in transformers as well.
    zero_filled=_BIAS_FIELDS,
)

_LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    fixed={
        "norm": "rms",
        "positions": "rope",
        "gated_ffn": True,
    },
    keys=(
        Key("vocab_size", "vocab_size", 32000),
        Key("max_positions", "max_position_embeddings", 2048),
        Key("hidden_size", "hidden_size", 4096),
        Key("num_decoder_layers", "num_hidden_layers", 32),
        Key("num_heads", "num_attention_heads", 32),
        Key("num_kv_heads", "num_key_value_heads"),
        Key("head_dim", "head_dim"),
        Key("ffn_size", "intermediate_size", 11008),
        Key("activation", "hidden_act", "silu", _activation, _ACTIVATION_NAMES.get),
        Key("norm_eps", "rms_norm_eps", 1e-6),
        Key("attention_bias", "attention_bias", False),
        Key("attention_out_bias", "attention_bias", False),
        Key("ffn_bias", "mlp_bias", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("init_std", "initializer_range", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", False),
        *_token_keys(bos=1, eos=2),
    ),
    rows=(
        Row(("embed.tokens.weight",), "model.embed_tokens.weight"),
        *_linear(f"{_ATTENTION}.norm", "model.layers.{i}.input_layernorm"),
        *_linear(f"{_ATTENTION}.q", "model.layers.{i}.self_attn.q_proj"),
        *_linear(f"{_ATTENTION}.k", "model.layers.{i}.self_attn.k_proj"),
        *_linear(f"{_ATTENTION}.v", "model.layers.{i}.self_attn.v_proj"),
        *_linear(f"{_ATTENTION}.out", "model.layers.{i}.self_attn.o_proj"),
        *_linear(f"{_FEED_FORWARD}.norm", "model.layers.{i}.post_attention_layernorm"),
        *_linear(f"{_FEED_FORWARD}.gate", "model.layers.{i}.mlp.gate_proj"),
        *_linear(f"{_FEED_FORWARD}.up", "model.layers.{i}.mlp.up_proj"),
        *_linear(f"{_FEED_FORWARD}.down", "model.layers.{i}.mlp.down_proj"),
        *_linear("decoder.norm", "model.norm"),
        Row(("head.weight",), "lm_head.weight"),
    ),
    base_prefix="model.",
    tied="lm_head.weight",
    ignored=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    refused={"partial_rotary_factor": 1.0},
    rope=True,
    accepts=lambda config: config.hidden_size % config.num_heads == 0,
)


def _changed(
    keys: tuple[Key, ...], *changes: Key, without: tuple[str, ...] = ()
) -> tuple[Key, ...]:
    """Return a family's keys with some replaced, added or taken away, by our name."""
    kept = {key.ours: key for key in (*keys, *changes)}
    return tuple(key for key in kept.values() if key.ours not in without)


_MISTRAL = dataclasses.replace(
    _LLAMA,
    architecture="MistralForCausalLM",
    model_type="mistral",
    fixed={**_LLAMA.fixed, **dict.fromkeys(_BIAS_FIELDS[:3], False)},
    keys=_changed(
        _LLAMA.keys,
        Key("num_kv_heads", "num_key_value_heads", 8),
        Key("ffn_size", "intermediate_size", 14336),
        Key("max_positions", "max_position_embeddings", 131072),
        Key("sliding_window", "sliding_window", 4096, lambda v: v or 0, lambda v: v or None),
        without=_BIAS_FIELDS,
    ),
    accepts=lambda config: True,
)


class _OwnFamily(Family):
    """The layout of last resort: our config and our names, which only llmcore reads."""

    def decode(self, values: Mapping[str, Any]) -> ModelConfig:
        ours = values.get("llmcore")
        if not isinstance(ours, dict):
            raise ConfigError(f"{self.architecture}: the key 'llmcore', an object, is missing")
        return ModelConfig.from_dict(ours)

    def encode(self, config: ModelConfig) -> dict[str, Any]:
        values = {"architectures": [self.architecture], "model_type": self.model_type}
        return {**values, "llmcore": config.to_dict()}

    def layout(self, config: ModelConfig) -> list[Row]:
        return [Row((name,), name) for name in parameter_shapes(config)]


_OWN = _OwnFamily("LlmcoreModel", "llmcore", {}, (), (), base_prefix="", tied="head.weight")

#: Every architecture that can be read and written; the first that fits a config is written.
FAMILIES: tuple[Family, ...] = (_GPT2, _LLAMA, _MISTRAL, _OWN)
