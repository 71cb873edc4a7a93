"""Named architectures: what `ModelConfig.preset` builds."""

from __future__ import annotations

import math
from typing import Any

_NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "ffn_bias"), False)
_GPT2: dict[str, Any] = {"vocab_size": 50257, "bos_id": 50256, "eos_id": 50256}
_GPT2_SMALL = {**_GPT2, "hidden_size": 768, "num_decoder_layers": 12, "num_heads": 12}

#: Arguments of `ModelConfig`, with the paper each size comes from.
PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, without dropout as in OpenAI's released code.
    "gpt2": _GPT2_SMALL,
    "gpt2-124m": _GPT2_SMALL,
    "gpt2-medium": {**_GPT2, "hidden_size": 1024, "num_decoder_layers": 24, "num_heads": 16},
    "gpt2-large": {**_GPT2, "hidden_size": 1280, "num_decoder_layers": 36, "num_heads": 20},
    "gpt2-xl": {**_GPT2, "hidden_size": 1600, "num_decoder_layers": 48, "num_heads": 25},
    # The character model nanoGPT's README trains on a CPU.
    "gpt-nano": {
        "vocab_size": 65,
        "hidden_size": 128,
        "num_decoder_layers": 4,
        "num_heads": 4,
        "max_positions": 64,
        "activation": "gelu",
        **_NO_BIASES,
        "norm_bias": False,
    },
    # The 15M model of llama2.c, trained on TinyStories.
    "llama-tiny": {
        "vocab_size": 32000,
        "hidden_size": 288,
        "num_decoder_layers": 6,
        "num_heads": 6,
        "ffn_size": 768,
        "max_positions": 256,
        "norm": "rms",
        "positions": "rope",
        "activation": "silu",
        "gated_ffn": True,
        **_NO_BIASES,
        "bos_id": 1,
        "eos_id": 2,
    },
    # Devlin et al. 2019, uncased, with the masked language model head.
    "bert-base": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_encoder_layers": 12,
        "num_heads": 12,
        "max_positions": 512,
        "norm_eps": 1e-12,
        "norm_placement": "post",
        "final_norm": False,
        "embedding_norm": True,
        "type_vocab_size": 2,
        "activation": "gelu",
        "head_bias": True,
        "head_transform": True,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "pad_id": 0,
    },
    # Vaswani et al. 2017, table 3, base; one shared table, biases as in Marian.
    "transformer-base": {
        "vocab_size": 37000,
        "hidden_size": 512,
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "norm_placement": "post",
        "final_norm": False,
        "positions": "sinusoidal",
        "embedding_scale": math.sqrt(512),
        "activation": "relu",
        "head_bias": True,
        "embedding_dropout": 0.1,
        "residual_dropout": 0.1,
    },
    # Raffel et al. 2020; the first T5: tied head, scaled by 1 / sqrt(C), no gate.
    "t5-small": {
        "vocab_size": 32128,
        "hidden_size": 512,
        "num_encoder_layers": 6,
        "num_decoder_layers": 6,
        "num_heads": 8,
        "max_positions": 512,
        "norm": "rms",
        "norm_eps": 1e-6,
        "positions": "relative",
        "attention_scale": 1.0,
        "activation": "relu",
        **_NO_BIASES,
        "head_scale": 512**-0.5,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "ffn_dropout": 0.1,
        "eos_id": 1,
        "pad_id": 0,
        "decoder_start_id": 0,
    },
}


def scales_of(name: str, overrides: dict[str, Any]) -> dict[str, float]:
    """Return a preset's scales of embeddings and of the head at another width than its own.

    They are powers of it, and that is how transformers knows them: with the preset's own at another
    width a model would be one that it does not read.
    """
    size = overrides.get("hidden_size")
    if not isinstance(size, int) or size < 1:
        return {}
    powers = {"embedding_scale": 0.5, "head_scale": -0.5}
    return {field: size**power for field, power in powers.items() if field in PRESETS[name]}
