"""Decoder-only families: GPT-2, Llama, and those that change a little of Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcore.config import ModelConfig
from llmcore.errors import ConfigError
from llmcore.families.family import Family, Key, Row, Rule, changed, linear
from llmcore.families.values import ROPE, activation_key

_LAYER = "decoder.layers.{i}"
_ATTENTION = f"{_LAYER}.self_attention"
_FEED_FORWARD = f"{_LAYER}.feed_forward"


def _attention_scale(scaled: Any) -> float | None:
    return None if scaled else 1.0


GPT2 = Family(
    architecture="GPT2LMHeadModel",
    also=("GPT2Model",),
    model_type="gpt2",
    fixed={},
    keys=(
        Key("vocab_size", "vocab_size", 50257),
        Key("max_positions", "n_positions", 1024),
        Key("hidden_size", "n_embd", 768),
        Key("num_decoder_layers", "n_layer", 12),
        Key("num_heads", "n_head", 12),
        Key("ffn_size", "n_inner"),
        activation_key("activation_function", "gelu_new"),
        Key("norm_eps", "layer_norm_epsilon", 1e-5),
        Key("attention_scale", "scale_attn_weights", True, _attention_scale, lambda v: v != 1.0),
        Key("embedding_dropout", "embd_pdrop", 0.1),
        Key("attention_dropout", "attn_pdrop", 0.1),
        Key("residual_dropout", "resid_pdrop", 0.1),
        Key("init_std", "initializer_range", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", True),
    ),
    special_ids={"bos_id": 50256, "eos_id": 50256},
    rows=(
        Row(("embed.tokens.weight",), "transformer.wte.weight"),
        Row(("embed.positions.weight",), "transformer.wpe.weight"),
        *linear(f"{_ATTENTION}.norm", "transformer.h.{i}.ln_1"),
        *linear(
            f"{_ATTENTION}.q,{_ATTENTION}.k,{_ATTENTION}.v",
            "transformer.h.{i}.attn.c_attn",
            transposed=True,
        ),
        *linear(f"{_ATTENTION}.out", "transformer.h.{i}.attn.c_proj", transposed=True),
        *linear(f"{_FEED_FORWARD}.norm", "transformer.h.{i}.ln_2"),
        *linear(f"{_FEED_FORWARD}.up", "transformer.h.{i}.mlp.c_fc", transposed=True),
        *linear(f"{_FEED_FORWARD}.down", "transformer.h.{i}.mlp.c_proj", transposed=True),
        *linear("decoder.norm", "transformer.ln_f"),
        Row(("head.weight",), "lm_head.weight"),
    ),
    base_prefix="transformer.",
    ignored=r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",  # causal masks, once saved as buffers
    refused={"scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    # So that models trained without biases, gpt-nano among them, open in transformers as well.
    zero_filled=("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias"),
)

LLAMA = Family(
    architecture="LlamaForCausalLM",
    also=("LlamaModel",),
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
        activation_key("hidden_act", "silu"),
        Key("norm_eps", "rms_norm_eps", 1e-6),
        Key("attention_bias", "attention_bias", False),
        Key("attention_out_bias", "attention_bias", False),
        Key("ffn_bias", "mlp_bias", False),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("init_std", "initializer_range", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", False),
    ),
    rules=(ROPE,),
    special_ids={"bos_id": 1, "eos_id": 2},
    rows=(
        Row(("embed.tokens.weight",), "model.embed_tokens.weight"),
        *linear(f"{_ATTENTION}.norm", "model.layers.{i}.input_layernorm"),
        *linear(f"{_ATTENTION}.q", "model.layers.{i}.self_attn.q_proj"),
        *linear(f"{_ATTENTION}.k", "model.layers.{i}.self_attn.k_proj"),
        *linear(f"{_ATTENTION}.v", "model.layers.{i}.self_attn.v_proj"),
        *linear(f"{_ATTENTION}.out", "model.layers.{i}.self_attn.o_proj"),
        *linear(f"{_FEED_FORWARD}.norm", "model.layers.{i}.post_attention_layernorm"),
        *linear(f"{_FEED_FORWARD}.gate", "model.layers.{i}.mlp.gate_proj"),
        *linear(f"{_FEED_FORWARD}.up", "model.layers.{i}.mlp.up_proj"),
        *linear(f"{_FEED_FORWARD}.down", "model.layers.{i}.mlp.down_proj"),
        *linear("decoder.norm", "model.norm"),
        Row(("head.weight",), "lm_head.weight"),
    ),
    base_prefix="model.",
    ignored=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
    refused={"partial_rotary_factor": 1.0},
    accepts=lambda config: config.hidden_size % config.num_heads == 0,
)

_BIASES = ("attention_bias", "attention_out_bias", "ffn_bias")

MISTRAL = replace(
    LLAMA,
    architecture="MistralForCausalLM",
    also=("MistralModel",),
    model_type="mistral",
    fixed={**LLAMA.fixed, **dict.fromkeys(_BIASES, False)},
    keys=changed(
        LLAMA.keys,
        Key("num_kv_heads", "num_key_value_heads", 8),
        Key("ffn_size", "intermediate_size", 14336),
        Key("max_positions", "max_position_embeddings", 131072),
        Key("sliding_window", "sliding_window", 4096, lambda v: v or 0, lambda v: v or None),
        without=_BIASES,
    ),
    accepts=lambda config: True,
)


def _decode_window(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen's layers from `max_window_layers` on have a window; ours have one, all or none."""
    window = values.get("sliding_window", 4096) if values.get("use_sliding_window") else None
    layers = fields["num_decoder_layers"]
    full = min(values.get("max_window_layers", 28), layers) if window else layers
    types = values.get("layer_types") or [
        "full_attention" if i < full else "sliding_attention" for i in (0, layers - 1)
    ]
    kinds = set(types)
    if kinds == {"full_attention"}:
        return {"sliding_window": 0}
    if kinds != {"sliding_attention"}:
        raise ConfigError(
            "layer_types: only the same attention in every layer is supported, got both"
        )
    return {"sliding_window": window}


def _encode_window(config: ModelConfig) -> dict[str, Any]:
    window = config.sliding_window
    return {
        "use_sliding_window": window > 0,
        "sliding_window": window or None,
        "max_window_layers": 0 if window else config.num_decoder_layers,
    }


QWEN2 = replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    also=("Qwen2Model",),
    model_type="qwen2",
    fixed={
        **LLAMA.fixed,
        "attention_bias": True,
        "attention_out_bias": False,
        "ffn_bias": False,
    },
    keys=changed(
        LLAMA.keys,
        Key("vocab_size", "vocab_size", 151936),
        Key("max_positions", "max_position_embeddings", 32768),
        Key("num_kv_heads", "num_key_value_heads", 32),
        Key("ffn_size", "intermediate_size", 22016),
        without=_BIASES,
    ),
    rules=(ROPE, Rule("sliding_window", _decode_window, _encode_window)),
    special_ids={},
    accepts=lambda config: True,
)

QWEN3 = replace(
    QWEN2,
    architecture="Qwen3ForCausalLM",
    also=("Qwen3Model",),
    model_type="qwen3",
    fixed={**LLAMA.fixed, "qk_norm": True, "ffn_bias": False},
    keys=changed(
        QWEN2.keys,
        Key("head_dim", "head_dim", 128),
        Key("attention_bias", "attention_bias", False),
        Key("attention_out_bias", "attention_bias", False),
    ),
    rows=(
        *LLAMA.rows,
        Row((f"{_ATTENTION}.q_norm.weight",), "model.layers.{i}.self_attn.q_norm.weight"),
        Row((f"{_ATTENTION}.k_norm.weight",), "model.layers.{i}.self_attn.k_norm.weight"),
    ),
)
