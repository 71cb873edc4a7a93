"""config.json and generation_config.json as published models have them, and what they mean."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmcore import checkpoint, hf
from llmcore.config import LoraConfig, ModelConfig, RopeScaling
from llmcore.errors import CheckpointError, ConfigError
from llmcore.parameters import parameter_shapes
from published import (
    BART_BASE,
    BERT_BASE_UNCASED,
    OPUS_MT_DE_EN,
    PUBLISHED,
    QWEN2_0_5B,
    QWEN3_0_6B,
    ROBERTA_BASE,
    ROTARY,
    SIZES,
    T5_SMALL,
    T5_V1_1_SMALL,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs(name):
    values, expected = PUBLISHED[name]
    assert hf.config_from_hf(values) == expected
    by_type = {key: value for key, value in values.items() if key != "architectures"}
    assert hf.config_from_hf(by_type) == expected
    written = json.loads(json.dumps(hf.config_to_hf(expected)))
    assert written["model_type"] == values["model_type"]
    assert hf.config_from_hf(written) == expected
    del written["llmcore"]
    assert hf.config_from_hf(written) == expected


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes(name):
    assert PUBLISHED[name][1].num_parameters() == SIZES[name]


@pytest.mark.parametrize("name", ROTARY)
def test_both_spellings_of_rope(name):
    values, expected = PUBLISHED[name]
    others = {k: v for k, v in values.items() if k not in ("rope_theta", "rope_scaling")}
    scaling = {"rope_type": "linear", "factor": 2.0}
    linear = expected.replace(rope_scaling=RopeScaling(type="linear", factor=2.0))
    theta = values["rope_theta"]
    plain = {"rope_type": "default", "rope_theta": theta}
    assert hf.config_from_hf({**others, "rope_parameters": plain}) == expected
    assert hf.config_from_hf({**values, "rope_scaling": scaling}) == linear
    both = {**scaling, "rope_theta": theta}
    assert hf.config_from_hf({**others, "rope_parameters": both}) == linear


def test_base_models_are_known():
    def read(values: dict[str, Any], architecture: str) -> ModelConfig:
        return hf.config_from_hf({**values, "architectures": [architecture]})

    assert read(BERT_BASE_UNCASED, "BertForPreTraining") == ModelConfig.preset("bert-base")
    bare = read(BERT_BASE_UNCASED, "BertModel")
    assert (bare.pooler, bare.head_transform, bare.head_bias, bare.num_labels) == (
        True,
        *[False] * 2,
        0,
    )
    classifier = read(BERT_BASE_UNCASED, "BertForSequenceClassification")
    assert classifier == bare.replace(num_labels=2)
    named = {**ROBERTA_BASE, "id2label": dict.fromkeys("01234", "a")}
    assert read(named, "RobertaForSequenceClassification").num_labels == 5
    assert read(BART_BASE, "BartForConditionalGeneration") == PUBLISHED["bart-base"][1]
    mbart = read({**BART_BASE, "model_type": "mbart"}, "MBartForConditionalGeneration")
    assert mbart == PUBLISHED["bart-base"][1].replace(norm_placement="pre", final_norm=True)


def test_spellings_of_t5():
    def read(**changes: Any) -> ModelConfig:
        return hf.config_from_hf({**T5_V1_1_SMALL, **changes})

    expected = PUBLISHED["t5-v1_1-small"][1]
    derived = {"dense_act_fn": "gelu_new", "is_gated_act": True}
    assert read(**derived) == read(feed_forward_proj="gated-gelu_new") == expected
    assert read(feed_forward_proj="relu", **derived) == expected
    # As version 5 of transformers saves it again.
    assert read(tie_word_embeddings=True, scale_decoder_outputs=False) == expected
    assert read(feed_forward_proj="silu") == expected.replace(activation="silu", gated_ffn=False)
    with pytest.raises(ConfigError, match="feed_forward_proj 'fancy-gelu' is not supported"):
        read(feed_forward_proj="fancy-gelu")


def test_windows_of_qwen():
    def read(**changes: Any) -> int:
        return hf.config_from_hf({**QWEN2_0_5B, **changes}).sliding_window

    on = {"use_sliding_window": True, "sliding_window": 32}
    assert read(**on) == 0  # max_window_layers is the number of layers
    assert read(**on, max_window_layers=0) == 32
    assert read(**on, layer_types=["sliding_attention"] * 24) == 32
    assert read(layer_types=["full_attention"] * 24) == 0
    with pytest.raises(ConfigError, match="the same attention in every layer"):
        read(**on, max_window_layers=5)


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (BERT_BASE_UNCASED, {"is_decoder": True}, "is_decoder: only False is supported"),
        (BERT_BASE_UNCASED, {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (ROBERTA_BASE, {"hidden_act": "relu"}, "hidden_act: only 'gelu' is supported"),
        (ROBERTA_BASE, {"pad_token_id": None}, "max_position_embeddings and pad_token_id: "),
        (OPUS_MT_DE_EN, {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_emb"),
        (OPUS_MT_DE_EN, {"decoder_ffn_dim": 1}, "decoder_ffn_dim: expected encoder_ffn_dim = 2048"),
        (BART_BASE, {"d_model": "768"}, "hidden_size: expected a whole number"),
        (T5_SMALL, {"d_model": 0}, "T5ForConditionalGeneration: tie_word_embeddings: "),
        (QWEN3_0_6B, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "only 1.0 is supported"),
    ],
)
def test_what_is_not_supported(values, changes, message):
    with pytest.raises(ConfigError, match=message):
        hf.config_from_hf({**values, **changes})


def test_the_error_for_an_unknown_architecture_lists_the_known():
    with pytest.raises(ConfigError) as caught:
        hf.config_from_hf({"architectures": ["FooModel"]})
    for family in hf.FAMILIES:
        assert family.architecture in str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_adapters_and_reading_backwards_are_no_foreign_model(name):
    config = PUBLISHED[name][1]
    for changes in ({"right_to_left": True}, {"lora": LoraConfig(rank=4)}):
        values = hf.config_to_hf(config.replace(**changes))
        assert values["architectures"] == ["LlmcoreModel"]
        assert hf.config_from_hf(json.loads(json.dumps(values))) == config.replace(**changes)


# --- special ids --------------------------------------------------------------------------------


def test_generation_config_wins():
    generation = {
        "bad_words_ids": [[7], [8, 9], [58100]],
        "eos_token_id": [5, 0],
        "forced_bos_token_id": 3,
        "num_beams": 6,
        "suppress_tokens": [9, 7],
    }
    expected = PUBLISHED["opus-mt-de-en"][1].replace(
        eos_id=5, forced_bos_id=3, suppressed_ids=[9, 7, 58100]
    )
    config = hf.config_from_hf(OPUS_MT_DE_EN, generation)
    assert config == expected
    assert hf.generation_to_hf(config) == {
        "bos_token_id": 0,
        "eos_token_id": 5,
        "pad_token_id": 58100,
        "decoder_start_token_id": 58100,
        "forced_bos_token_id": 3,
        "forced_eos_token_id": 0,
        "suppress_tokens": [9, 7, 58100],
    }
    assert hf.config_from_hf(hf.config_to_hf(config), hf.generation_to_hf(config)) == config


def test_ids_that_are_none_or_outside_the_vocabulary():
    values = {**OPUS_MT_DE_EN, "vocab_size": 100, "forced_eos_token_id": None, "eos_token_id": -1}
    config = hf.config_from_hf(values)
    assert config.eos_id is config.pad_id is config.forced_eos_id is config.decoder_start_id is None
    assert config.suppressed_ids == ()
    assert hf.config_to_hf(config)["forced_eos_token_id"] is None
    assert "decoder_start_token_id" not in hf.config_to_hf(config)


def small(name: str) -> ModelConfig:
    config = PUBLISHED[name][1]
    ids = {"bos_id": 1, "eos_id": 2, "pad_id": 1, "decoder_start_id": 3, "forced_eos_id": 2}
    layers = {f"num_{kind}_layers": 1 for kind in config.kind.split("-")}
    sizes = {"vocab_size": 9, "max_positions": 7, "hidden_size": 8, "num_heads": 2, "ffn_size": 4}
    scale = {"embedding_scale": 8**0.5} if config.embedding_scale != 1 else {}
    scale |= {"head_scale": 8**-0.5} if config.head_scale != 1 else {}
    values = {**config.to_dict(), **sizes, **ids, **layers, **scale}
    derived = ("head_dim", "num_kv_heads", "rotary_dim")
    derived += ("attention_scale",) if config.positions != "relative" else ()
    return ModelConfig.from_dict(
        {**values, **dict.fromkeys(derived), "forced_bos_id": None, "suppressed_ids": [4]}
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_special_ids_are_saved_beside_the_model_and_may_be_edited(name, tmp_path):
    config = small(name)
    parameters = {n: np.ones(s, np.float32) for n, s in parameter_shapes(config).items()}
    checkpoint.save(tmp_path, config=config, parameters=parameters)
    assert checkpoint.load(tmp_path).config == hf.load_config(tmp_path) == config
    file = tmp_path / "generation_config.json"
    assert file.exists() == (config.num_decoder_layers > 0)
    if file.exists():
        values = json.loads(file.read_text())
        file.write_text(json.dumps({**values, "eos_token_id": 5, "forced_bos_token_id": 6}))
        assert hf.load_config(tmp_path) == config.replace(eos_id=5, forced_bos_id=6)
        file.write_text("nonsense")
        with pytest.raises(CheckpointError, match=r"generation_config\.json"):
            hf.load_config(tmp_path)


# --- whatever a file may say --------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(sorted(PUBLISHED)), where=st.booleans())
def test_any_json_value_under_any_key(data, name, where):
    values = {**PUBLISHED[name][0], "layer_types": None, "rope_parameters": None, "id2label": None}
    generation = {"eos_token_id": 0, "bad_words_ids": [[1]], "suppress_tokens": [2]}
    target = values if where else generation
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON)
    try:
        config = hf.config_from_hf(values, generation)
    except ConfigError:
        return
    assert hf.config_from_hf(hf.config_to_hf(config)) == config
