"""Encoder-only families: BERT and RoBERTa, bare, with a language model head, with a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmcore.config import ModelConfig
from llmcore.families.family import Family, Key, Row, Rule, changed, linear
from llmcore.families.values import activation_key

_LAYER = "encoder.layers.{i}"
_ATTENTION = f"{_LAYER}.self_attention"
_FEED_FORWARD = f"{_LAYER}.feed_forward"


def _base_rows(prefix: str) -> tuple[Row, ...]:
    """Embeddings and layers, which BERT and RoBERTa name alike."""
    layer = f"{prefix}.encoder.layer.{{i}}"
    return (
        Row(("embed.tokens.weight",), f"{prefix}.embeddings.word_embeddings.weight"),
        Row(("embed.positions.weight",), f"{prefix}.embeddings.position_embeddings.weight"),
        Row(("embed.types.weight",), f"{prefix}.embeddings.token_type_embeddings.weight"),
        *linear("embed.norm", f"{prefix}.embeddings.LayerNorm"),
        *linear(f"{_ATTENTION}.q", f"{layer}.attention.self.query"),
        *linear(f"{_ATTENTION}.k", f"{layer}.attention.self.key"),
        *linear(f"{_ATTENTION}.v", f"{layer}.attention.self.value"),
        *linear(f"{_ATTENTION}.out", f"{layer}.attention.output.dense"),
        *linear(f"{_ATTENTION}.norm", f"{layer}.attention.output.LayerNorm"),
        *linear(f"{_FEED_FORWARD}.up", f"{layer}.intermediate.dense"),
        *linear(f"{_FEED_FORWARD}.down", f"{layer}.output.dense"),
        *linear(f"{_FEED_FORWARD}.norm", f"{layer}.output.LayerNorm"),
    )


def _decode_labels(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Count the names of the labels; transformers leaves them out where they are the usual two.

    Names that say no more than the number, or the same of several, are none.
    """
    names = values.get("id2label")
    if not isinstance(names, dict):
        return {"num_labels": values.get("num_labels", 2)}
    numbers = range(len(names))
    called = [str(names.get(str(i), names.get(i, f"LABEL_{i}"))) for i in numbers]
    telling = len({*called}) == len(called) and called != [f"LABEL_{i}" for i in numbers]
    return {"num_labels": len(names), "label_names": called if telling else ()}


def _encode_labels(config: ModelConfig) -> dict[str, Any]:
    names = config.label_names or [f"LABEL_{i}" for i in range(config.num_labels)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


_LABELS = Rule("id2label", _decode_labels, _encode_labels)
_BIASES = ("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias")

BERT_MASKED_LM = Family(
    architecture="BertForMaskedLM",
    also=("BertForPreTraining",),
    model_type="bert",
    fixed={
        "norm_placement": "post",
        "final_norm": False,
        "embedding_norm": True,
        "head_bias": True,
        "head_transform": True,
    },
    keys=(
        Key("vocab_size", "vocab_size", 30522),
        Key("max_positions", "max_position_embeddings", 512),
        Key("type_vocab_size", "type_vocab_size", 2),
        Key("hidden_size", "hidden_size", 768),
        Key("num_encoder_layers", "num_hidden_layers", 12),
        Key("num_heads", "num_attention_heads", 12),
        Key("ffn_size", "intermediate_size", 3072),
        activation_key("hidden_act", "gelu"),
        Key("norm_eps", "layer_norm_eps", 1e-12),
        Key("embedding_dropout", "hidden_dropout_prob", 0.1),
        Key("residual_dropout", "hidden_dropout_prob", 0.1),
        Key("attention_dropout", "attention_probs_dropout_prob", 0.1),
        Key("init_std", "initializer_range", 0.02),
        Key("tie_embeddings", "tie_word_embeddings", True),
    ),
    special_ids={"pad_id": 0},
    rows=(
        *_base_rows("bert"),
        *linear("pooler", "bert.pooler.dense"),
        *linear("head.transform", "cls.predictions.transform.dense"),
        *linear("head.transform.norm", "cls.predictions.transform.LayerNorm"),
        Row(("head.weight",), "cls.predictions.decoder.weight"),
        Row(("head.bias",), "cls.predictions.bias", ("cls.predictions.decoder.bias",)),
        *linear("classifier", "classifier"),
    ),
    base_prefix="bert.",
    # The published files were written by the pretraining model, which has a pooler and one more
    # head, at times with its index of positions.
    ignored=(
        r"bert\.embeddings\.position_ids|bert\.pooler\.dense\.(weight|bias)"
        r"|cls\.seq_relationship\.(weight|bias)"
    ),
    renames={r"LayerNorm\.gamma$": "LayerNorm.weight", r"LayerNorm\.beta$": "LayerNorm.bias"},
    refused={
        "is_decoder": False,
        "add_cross_attention": False,
        "position_embedding_type": "absolute",
    },
    zero_filled=(*_BIASES, "head_bias"),
    copies=True,
)

_WITHOUT_HEAD = {"head_bias": False, "head_transform": False}

BERT_CLASSIFIER = replace(
    BERT_MASKED_LM,
    architecture="BertForSequenceClassification",
    also=(),
    fixed={**BERT_MASKED_LM.fixed, **_WITHOUT_HEAD, "pooler": True},
    keys=changed(BERT_MASKED_LM.keys, without=("tie_embeddings",)),
    rules=(_LABELS,),
    ignored=r"bert\.embeddings\.position_ids",
    zero_filled=_BIASES,
    accepts=lambda config: config.num_labels > 0,
)

BERT_BASE = replace(
    BERT_CLASSIFIER,
    architecture="BertModel",
    rules=(),
    bare=True,
    accepts=lambda config: True,
)


def _decode_positions(values: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """RoBERTa counts positions from its padding id + 1."""
    offset = values.get("pad_token_id", 1) + 1
    return {
        "position_offset": offset,
        "max_positions": values.get("max_position_embeddings", 512) - offset,
    }


_POSITIONS = Rule(
    "max_position_embeddings and pad_token_id",
    _decode_positions,
    lambda c: {"max_position_embeddings": c.max_positions + c.position_offset},
)

ROBERTA_MASKED_LM = replace(
    BERT_MASKED_LM,
    architecture="RobertaForMaskedLM",
    also=(),
    model_type="roberta",
    keys=changed(
        BERT_MASKED_LM.keys, Key("vocab_size", "vocab_size", 50265), without=("max_positions",)
    ),
    rules=(_POSITIONS,),
    special_ids={"bos_id": 0, "eos_id": 2, "pad_id": 1},
    rows=(
        *_base_rows("roberta"),
        *linear("pooler", "roberta.pooler.dense"),
        *linear("head.transform", "lm_head.dense"),
        *linear("head.transform.norm", "lm_head.layer_norm"),
        Row(("head.weight",), "lm_head.decoder.weight"),
        Row(("head.bias",), "lm_head.bias", ("lm_head.decoder.bias",)),
    ),
    base_prefix="roberta.",
    ignored=r"roberta\.embeddings\.position_ids|roberta\.pooler\.dense\.(weight|bias)",
    # The head's activation is gelu, whatever the layers' is; ours is the same in both.
    refused={**BERT_MASKED_LM.refused, "hidden_act": "gelu"},
)

ROBERTA_CLASSIFIER = replace(
    BERT_CLASSIFIER,
    architecture="RobertaForSequenceClassification",
    model_type="roberta",
    keys=changed(ROBERTA_MASKED_LM.keys, without=("tie_embeddings",)),
    rules=(_POSITIONS, _LABELS),
    special_ids=ROBERTA_MASKED_LM.special_ids,
    rows=(
        *_base_rows("roberta"),
        *linear("pooler", "classifier.dense"),
        *linear("classifier", "classifier.out_proj"),
    ),
    base_prefix="roberta.",
    ignored=ROBERTA_MASKED_LM.ignored,
)

ROBERTA_BASE = replace(
    ROBERTA_CLASSIFIER,
    architecture="RobertaModel",
    rules=(_POSITIONS,),
    rows=ROBERTA_MASKED_LM.rows,
    ignored=r"roberta\.embeddings\.position_ids",
    bare=True,
    accepts=lambda config: True,
)
