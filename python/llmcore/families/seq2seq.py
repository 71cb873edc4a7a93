"""Encoder-decoder families: Marian, BART, mBART and T5."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcore.config import ModelConfig
from llmcore.errors import ConfigError
from llmcore.families.family import Family, Key, Row, Rule, linear
from llmcore.families.values import (
    ACTIVATION_NAMES,
    SCALE_EMBEDDING,
    activation,
    activation_key,
)


def _has_both(config: ModelConfig) -> bool:
    return config.kind == "encoder-decoder"


# --- Marian and BART ----------------------------------------------------------------------------


def _decode_stacks(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read the sizes that config.json has for each stack, and a model of ours for both."""
    found = {}
    sizes = {"num_heads": ("attention_heads", 16), "ffn_size": ("ffn_dim", 4096)}
    for ours, (name, default) in sizes.items():
        ends = [values.get(f"{stack}_{name}", default) for stack in ("encoder", "decoder")]
        if ends[0] != ends[1]:
            raise ConfigError(
                f"decoder_{name}: expected encoder_{name} = {ends[0]!r}, got {ends[1]!r}"
            )
        found[ours] = ends[0]
    return found


def _encode_stacks(config: ModelConfig) -> dict[str, Any]:
    sizes = {"attention_heads": config.num_heads, "ffn_dim": config.ffn_size}
    return {f"{stack}_{name}": n for name, n in sizes.items() for stack in ("encoder", "decoder")}


def _stack_rows(stack: str) -> tuple[Row, ...]:
    ours, theirs = f"{stack}.layers.{{i}}", f"model.{stack}.layers.{{i}}"
    rows = [
        Row((f"{stack}.positions.weight",), f"model.{stack}.embed_positions.weight"),
        *linear(f"{stack}.embedding_norm", f"model.{stack}.layernorm_embedding"),
    ]
    kinds = {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
    for kind, name in kinds.items():
        for part in ("q", "k", "v", "out"):
            rows += linear(f"{ours}.{kind}.{part}", f"{theirs}.{name}.{part}_proj")
        rows += linear(f"{ours}.{kind}.norm", f"{theirs}.{name}_layer_norm")
    rows += linear(f"{ours}.feed_forward.up", f"{theirs}.fc1")
    rows += linear(f"{ours}.feed_forward.down", f"{theirs}.fc2")
    rows += linear(f"{ours}.feed_forward.norm", f"{theirs}.final_layer_norm")
    return (*rows, *linear(f"{stack}.norm", f"model.{stack}.layer_norm"))


BART = Family(
    architecture="BartForConditionalGeneration",
    also=("BartModel",),
    model_type="bart",
    fixed={
        "norm_placement": "post",
        "final_norm": False,
        "embedding_norm": True,
        "position_offset": 2,
        "head_bias": True,
    },
    keys=(
        Key("vocab_size", "vocab_size", 50265),
        Key("max_positions", "max_position_embeddings", 1024),
        Key("hidden_size", "d_model", 1024),
        Key("num_encoder_layers", "encoder_layers", 12),
        Key("num_decoder_layers", "decoder_layers", 12),
        activation_key("activation_function", "gelu"),
        Key("embedding_dropout", "dropout", 0.1),
        Key("residual_dropout", "dropout", 0.1),
        Key("attention_dropout", "attention_dropout", 0.0),
        Key("ffn_dropout", "activation_dropout", 0.0),
        Key("init_std", "init_std", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", True),
    ),
    rules=(Rule("encoder and decoder", _decode_stacks, _encode_stacks), SCALE_EMBEDDING),
    special_ids={
        "bos_id": 0,
        "eos_id": 2,
        "pad_id": 1,
        "decoder_start_id": 2,
        "forced_eos_id": 2,
    },
    rows=(
        Row(
            ("embed.tokens.weight",),
            "model.shared.weight",
            ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
        ),
        *_stack_rows("encoder"),
        *_stack_rows("decoder"),
        Row(("head.weight",), "lm_head.weight"),
        Row(("head.bias",), "final_logits_bias", batched=True, optional=True),
    ),
    base_prefix="model.",
    ignored=r"model\.(encoder|decoder)\.version",
    zero_filled=("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias", "head_bias"),
    copies=True,
    accepts=_has_both,
)

MBART = replace(
    BART,
    architecture="MBartForConditionalGeneration",
    also=("MBartModel",),
    model_type="mbart",
    fixed={**BART.fixed, "norm_placement": "pre", "final_norm": True},
    special_ids={**BART.special_ids, "decoder_start_id": None},
)

MARIAN = replace(
    BART,
    architecture="MarianMTModel",
    also=("MarianModel",),
    model_type="marian",
    fixed={
        "norm_placement": "post",
        "final_norm": False,
        "positions": "sinusoidal",
        "head_bias": True,
    },
    keys=tuple(
        replace(key, default=58101) if key.ours == "vocab_size" else key for key in BART.keys
    ),
    special_ids={
        "bos_id": None,
        "eos_id": 0,
        "pad_id": 58100,
        "decoder_start_id": 58100,
        "forced_eos_id": 0,
    },
    ignored=r"model\.(encoder|decoder)\.embed_positions\.weight",  # computed, not learned
    refused={"share_encoder_decoder_embeddings": True},
)

# --- T5 -----------------------------------------------------------------------------------------


def _decode_feed_forward(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Read "relu" or "gated-gelu"; what transformers derives from it wins where it is there."""
    spelling = values.get("feed_forward_proj", "relu")
    gate, _, name = str(spelling).rpartition("-")
    if gate not in ("", "gated"):
        raise ConfigError(
            f"feed_forward_proj {spelling!r} is not supported; known: relu, gated-gelu, …"
        )
    name = "gelu_new" if spelling == "gated-gelu" else name
    return {
        "activation": activation(values.get("dense_act_fn", name)),
        "gated_ffn": values.get("is_gated_act", gate == "gated"),
    }


def _encode_feed_forward(config: ModelConfig) -> dict[str, Any]:
    name = ACTIVATION_NAMES[config.activation]
    gated = "gated-gelu" if name == "gelu_new" else f"gated-{name}"
    return {
        "feed_forward_proj": gated if config.gated_ffn else name,
        "dense_act_fn": name,
        "is_gated_act": config.gated_ffn,
    }


def _decode_head(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The first T5 ties its head and scales its input, version 1.1 does neither.

    transformers 5 writes the latter as tied, and not scaled.
    """
    tied = values.get("tie_word_embeddings") is not False
    scaled = bool(values.get("scale_decoder_outputs", tied))
    return {
        "tie_embeddings": tied and scaled,
        "head_scale": fields["hidden_size"] ** -0.5 if scaled else 1.0,
    }


def _encode_head(config: ModelConfig) -> dict[str, Any]:
    return {
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.head_scale == config.hidden_size**-0.5,
    }


def _t5_stack_rows(stack: str) -> tuple[Row, ...]:
    ours, theirs = f"{stack}.layers.{{i}}", f"{stack}.block.{{i}}.layer"
    kinds = {"self_attention": "SelfAttention", "cross_attention": "EncDecAttention"}
    sublayers = list(kinds) if stack == "decoder" else ["self_attention"]
    rows = [
        Row(
            (f"{stack}.relative_bias.weight",),
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        )
    ]
    for place, kind in enumerate(sublayers):
        for part in ("q", "k", "v", "out"):
            name = f"{theirs}.{place}.{kinds[kind]}.{part[0]}.weight"
            rows.append(Row((f"{ours}.{kind}.{part}.weight",), name))
        rows.append(Row((f"{ours}.{kind}.norm.weight",), f"{theirs}.{place}.layer_norm.weight"))
    last, up = f"{theirs}.{len(sublayers)}", (f"{ours}.feed_forward.up.weight",)
    return (
        *rows,
        Row(up, f"{last}.DenseReluDense.wi.weight", when=lambda config: not config.gated_ffn),
        Row(up, f"{last}.DenseReluDense.wi_1.weight", when=lambda config: config.gated_ffn),
        Row((f"{ours}.feed_forward.gate.weight",), f"{last}.DenseReluDense.wi_0.weight"),
        Row((f"{ours}.feed_forward.down.weight",), f"{last}.DenseReluDense.wo.weight"),
        Row((f"{ours}.feed_forward.norm.weight",), f"{last}.layer_norm.weight"),
        Row((f"{stack}.norm.weight",), f"{stack}.final_layer_norm.weight"),
    )


T5 = Family(
    architecture="T5ForConditionalGeneration",
    also=("T5Model", "T5WithLMHeadModel"),
    model_type="t5",
    fixed={
        "norm": "rms",
        "positions": "relative",
        "attention_scale": 1.0,
        "attention_bias": False,
        "attention_out_bias": False,
        "ffn_bias": False,
    },
    keys=(
        Key("vocab_size", "vocab_size", 32128),
        Key("max_positions", "n_positions", 512),
        Key("hidden_size", "d_model", 512),
        Key("num_encoder_layers", "num_layers", 6),
        Key("num_heads", "num_heads", 8),
        Key("head_dim", "d_kv", 64),
        Key("ffn_size", "d_ff", 2048),
        Key("relative_buckets", "relative_attention_num_buckets", 32),
        Key("relative_max_distance", "relative_attention_max_distance", 128),
        Key("norm_eps", "layer_norm_epsilon", 1e-6),
        Key("embedding_dropout", "dropout_rate", 0.1),
        Key("attention_dropout", "dropout_rate", 0.1),
        Key("residual_dropout", "dropout_rate", 0.1),
        Key("ffn_dropout", "dropout_rate", 0.1),
    ),
    rules=(
        Rule(
            "num_decoder_layers",
            lambda values, fields: {
                "num_decoder_layers": fields["num_encoder_layers"]
                if values.get("num_decoder_layers") is None
                else values["num_decoder_layers"]
            },
            lambda config: {"num_decoder_layers": config.num_decoder_layers},
        ),
        Rule("feed_forward_proj", _decode_feed_forward, _encode_feed_forward),
        Rule("tie_word_embeddings", _decode_head, _encode_head),
    ),
    special_ids={"eos_id": 1, "pad_id": 0, "decoder_start_id": 0},
    rows=(
        Row(
            ("embed.tokens.weight",),
            "shared.weight",
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
        ),
        *_t5_stack_rows("encoder"),
        *_t5_stack_rows("decoder"),
        # transformers 5 leaves a head out that equals the table, whatever the config says of ties.
        Row(("head.weight",), "lm_head.weight", otherwise="shared.weight"),
    ),
    base_prefix="",
    # A table that early files have and no model uses.
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    accepts=_has_both,
)
