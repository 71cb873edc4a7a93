"""Small models of transformers, with random numbers in every tensor, for the tests of `hf`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENCODER = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 11,
}
LLAMA = {**ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
MARIAN = {
    "vocab_size": 31,
    "d_model": 12,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 11,
    "eos_token_id": 0,
    "pad_token_id": 30,
    "decoder_start_token_id": 30,
    "forced_eos_token_id": 0,
    "activation_dropout": 0.25,
}
BART = {
    **MARIAN,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": 31,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 1,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}
T5_1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "rope_theta": 1e6,
    "original_max_position_embeddings": 3,
}
#: Name -> (class, config class, values, fields of ours that must come out).
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "gpt2-base": (
        "GPT2Model",
        "GPT2",
        {"vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 3},
        {},
    ),
    "bert": (
        "BertForMaskedLM",
        "Bert",
        {**ENCODER, "hidden_act": "relu"},
        {"head_transform": True, "pooler": False, "pad_id": 0, "activation": "relu"},
    ),
    "bert-untied": (
        "BertForMaskedLM",
        "Bert",
        {**ENCODER, "tie_word_embeddings": False},
        {"tie_embeddings": False},
    ),
    "bert-base": ("BertModel", "Bert", ENCODER, {"pooler": True, "head_bias": False}),
    "bert-classifier": (
        "BertForSequenceClassification",
        "Bert",
        {**ENCODER, "num_labels": 3},
        {"pooler": True, "num_labels": 3, "head_transform": False},
    ),
    "roberta": (
        "RobertaForMaskedLM",
        "Roberta",
        ENCODER,
        {"position_offset": 2, "max_positions": 9, "bos_id": 0, "eos_id": 2, "pad_id": 1},
    ),
    "roberta-padding": (
        "RobertaForMaskedLM",
        "Roberta",
        {**ENCODER, "pad_token_id": 4, "type_vocab_size": 1},
        {"position_offset": 5, "max_positions": 6, "type_vocab_size": 1},
    ),
    "roberta-base": ("RobertaModel", "Roberta", ENCODER, {"pooler": True}),
    "roberta-classifier": (
        "RobertaForSequenceClassification",
        "Roberta",
        {**ENCODER, "hidden_act": "gelu_new"},
        {"pooler": True, "num_labels": 2, "activation": "gelu_tanh"},
    ),
    "marian": (
        "MarianMTModel",
        "Marian",
        {**MARIAN, "scale_embedding": True, "activation_function": "swish"},
        {
            "positions": "sinusoidal",
            "embedding_scale": 12**0.5,
            "activation": "silu",
            "ffn_dropout": 0.25,
            "forced_eos_id": 0,
            "decoder_start_id": 30,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        "Bart",
        {**BART, "scale_embedding": True},
        {"position_offset": 2, "embedding_norm": True, "embedding_scale": 12**0.5, "eos_id": 2},
    ),
    "bart-base": ("BartModel", "Bart", BART, {"head_bias": True}),
    "mbart": (
        "MBartForConditionalGeneration",
        "MBart",
        BART,
        {"norm_placement": "pre", "final_norm": True, "embedding_norm": True},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5",
        T5,
        {"tie_embeddings": True, "head_scale": 12**-0.5, "head_dim": 5, "gated_ffn": False},
    ),
    "t5-1.1": (
        "T5ForConditionalGeneration",
        "T5",
        T5_1_1,
        {"tie_embeddings": False, "head_scale": 1.0, "activation": "gelu_tanh", "gated_ffn": True},
    ),
    "t5-silu": (
        "T5ForConditionalGeneration",
        "T5",
        {**T5, "feed_forward_proj": "gated-silu", "num_decoder_layers": None},
        {"activation": "silu", "gated_ffn": True, "num_decoder_layers": 1},
    ),
    "qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2",
        {**LLAMA, "rope_parameters": YARN},
        {"attention_bias": True, "attention_out_bias": False, "sliding_window": 0},
    ),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        "Qwen2",
        {**LLAMA, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0},
        {"sliding_window": 3},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        "Qwen3",
        {**LLAMA, "head_dim": 8, "tie_word_embeddings": True},
        {"qk_norm": True, "head_dim": 8, "num_kv_heads": 1, "tie_embeddings": True},
    ),
    "qwen3-biases": (
        "Qwen3ForCausalLM",
        "Qwen3",
        {**LLAMA, "head_dim": 4, "attention_bias": True},
        {"attention_bias": True, "attention_out_bias": True, "tie_embeddings": False},
    ),
}


def build(name: str):
    """A small model with random numbers in every tensor, biases and norms among them."""
    architecture, family, values, _ = MODELS[name]
    model = getattr(transformers, architecture)(
        getattr(transformers, f"{family}Config")(**values)
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not (family == "Marian" and "embed_positions" in key):
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
        if name == "bert-untied":
            model.cls.predictions.bias.copy_(model.cls.predictions.decoder.bias)
        if name == "t5-1.1":
            # As in the published files. Version 5 of transformers ties what it builds itself.
            model.lm_head.weight = torch.nn.Parameter(torch.randn(31, 12, generator=generator))
    return model


class Saved:
    """Builds and saves each model once.

    Args:
        new_folder: Makes an empty folder of a name.
    """

    def __init__(self, new_folder: Callable[[str], Path]) -> None:
        self._new_folder = new_folder
        self._made: dict[str, tuple[Any, Path]] = {}

    def __call__(self, name: str) -> tuple[Any, Path]:
        """Return the model, and where transformers saved it."""
        if name not in self._made:
            model, folder = build(name), self._new_folder(name)
            model.save_pretrained(folder)
            self._made[name] = model, folder
        return self._made[name]
