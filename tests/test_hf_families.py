"""Every foreign architecture against transformers: read, written, and computing the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from foreign import MODELS, Saved, torch, transformers
from llmcore import hf
from llmcore.config import ModelConfig
from llmcore.parameters import parameter_shapes


def outputs(model) -> np.ndarray:
    ids = torch.tensor([[5, 9, 12, 6], [7, 8, 20, 21]])
    inputs = {"decoder_input_ids": ids[:, :3] + 1} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **inputs)[0].numpy()


def state_of(model) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp)


@pytest.mark.parametrize("name", MODELS)
def test_config(name, saved):
    _, folder = saved(name)
    config = hf.load_config(folder)
    expected = MODELS[name][3]
    assert {field: getattr(config, field) for field in expected} == expected
    written = json.loads(json.dumps(hf.config_to_hf(config)))
    (ours,) = written["architectures"]
    assert ours == {
        "GPT2Model": "GPT2LMHeadModel",
        "BartModel": "BartForConditionalGeneration",
    }.get(MODELS[name][0], MODELS[name][0])
    assert hf.config_from_hf(written, hf.generation_to_hf(config)) == config
    del written["llmcore"]
    assert hf.config_from_hf(written) == config


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, saved, tmp_path):
    model, folder = saved(name)
    config = hf.load_config(folder)
    parameters = dict(hf.load_state(folder, config))
    assert {n: a.shape for n, a in parameters.items()} == parameter_shapes(config)
    hf.save_state(config, parameters, tmp_path)
    again, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    bare = {"final_logits_bias"} if name == "bart-base" else set()
    assert not info["missing_keys"] | info["mismatched_keys"] | (info["unexpected_keys"] - bare)
    before, after = state_of(model), state_of(again)
    assert before.keys() == after.keys()
    for key, array in before.items():
        assert np.array_equal(array.view(np.uint32), after[key].view(np.uint32)), key
    assert np.array_equal(outputs(model), outputs(again.eval()))
    # And what transformers makes of our files means the same to us.
    again.save_pretrained(tmp_path / "again")
    assert hf.load_config(tmp_path / "again") == config
    for key, array in hf.load_state(tmp_path / "again", config):
        assert np.array_equal(array, parameters[key]), key


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("bert", "embed.types.weight", "bert.embeddings.token_type_embeddings.weight"),
        (
            "bert",
            "encoder.layers.1.self_attention.norm.bias",
            "bert.encoder.layer.1.attention.output.LayerNorm.bias",
        ),
        (
            "bert",
            "encoder.layers.1.feed_forward.norm.weight",
            "bert.encoder.layer.1.output.LayerNorm.weight",
        ),
        ("bert", "head.transform.norm.weight", "cls.predictions.transform.LayerNorm.weight"),
        ("bert-classifier", "pooler.weight", "bert.pooler.dense.weight"),
        ("bert-base", "embed.norm.bias", "embeddings.LayerNorm.bias"),
        ("roberta", "head.transform.weight", "lm_head.dense.weight"),
        ("roberta-classifier", "pooler.bias", "classifier.dense.bias"),
        ("roberta-classifier", "classifier.weight", "classifier.out_proj.weight"),
        (
            "marian",
            "decoder.layers.1.cross_attention.k.weight",
            "model.decoder.layers.1.encoder_attn.k_proj.weight",
        ),
        (
            "marian",
            "decoder.layers.1.feed_forward.norm.bias",
            "model.decoder.layers.1.final_layer_norm.bias",
        ),
        ("bart", "encoder.embedding_norm.weight", "model.encoder.layernorm_embedding.weight"),
        ("bart", "decoder.positions.weight", "model.decoder.embed_positions.weight"),
        ("mbart", "decoder.norm.weight", "model.decoder.layer_norm.weight"),
        (
            "t5",
            "decoder.relative_bias.weight",
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        (
            "t5",
            "decoder.layers.1.cross_attention.out.weight",
            "decoder.block.1.layer.1.EncDecAttention.o.weight",
        ),
        (
            "t5",
            "encoder.layers.0.feed_forward.up.weight",
            "encoder.block.0.layer.1.DenseReluDense.wi.weight",
        ),
        (
            "t5-1.1",
            "decoder.layers.1.feed_forward.gate.weight",
            "decoder.block.1.layer.2.DenseReluDense.wi_0.weight",
        ),
        (
            "t5-1.1",
            "decoder.layers.1.feed_forward.up.weight",
            "decoder.block.1.layer.2.DenseReluDense.wi_1.weight",
        ),
        ("t5-1.1", "head.weight", "lm_head.weight"),
        ("qwen2", "decoder.layers.1.self_attention.v.bias", "model.layers.1.self_attn.v_proj.bias"),
        (
            "qwen3",
            "decoder.layers.1.self_attention.k_norm.weight",
            "model.layers.1.self_attn.k_norm.weight",
        ),
    ],
)
def test_names(name, ours, theirs, saved):
    model, folder = saved(name)
    found = dict(hf.load_state(folder, hf.load_config(folder)))[ours]
    assert np.array_equal(found, state_of(model)[theirs])


def test_logit_biases_have_an_axis_more(saved):
    model, folder = saved("marian")
    found = dict(hf.load_state(folder, hf.load_config(folder)))["head.bias"]
    assert np.array_equal(found, state_of(model)["final_logits_bias"][0])
    assert "model.encoder.embed_positions.weight" in state_of(model)


@pytest.mark.parametrize("name", ["bert", "bart", "t5-1.1"])
def test_shards(name, saved, tmp_path):
    model, folder = saved(name)
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    config = hf.load_config(tmp_path)
    expected = dict(hf.load_state(folder, config))
    found = dict(hf.load_state(tmp_path, config))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


# --- what we train opens in transformers --------------------------------------------------------

SMALL = {"vocab_size": 31, "hidden_size": 12, "num_heads": 3, "ffn_size": 20, "max_positions": 9}
LAYERS = {"num_encoder_layers": 1, "num_decoder_layers": 2}
NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias"), False)


SPECIAL_IDS = {
    "pad_id": 30,
    "eos_id": 0,
    "decoder_start_id": 30,
    "forced_eos_id": 0,
    "forced_bos_id": 7,
    "suppressed_ids": [30, 4],
}
UNTIED = {"tie_embeddings": False}
SQRT = {"embedding_scale": 12**0.5}
UNSCALED = {"embedding_scale": 1.0}
GATED = {"head_scale": 1.0, "gated_ffn": True, "activation": "gelu", **UNTIED}


@pytest.mark.parametrize(
    ("preset", "changes", "architecture"),
    [
        ("bert-base", {"num_encoder_layers": 2}, "BertForMaskedLM"),
        ("bert-base", {"num_encoder_layers": 2, **NO_BIASES}, "BertForMaskedLM"),
        ("transformer-base", LAYERS | SQRT, "MarianMTModel"),
        ("transformer-base", LAYERS | UNSCALED | NO_BIASES | {"head_bias": False}, "MarianMTModel"),
        ("transformer-base", LAYERS | UNSCALED | UNTIED, "MarianMTModel"),
        ("transformer-base", LAYERS | SQRT | SPECIAL_IDS, "MarianMTModel"),
        ("t5-small", LAYERS | {"head_scale": 12**-0.5}, "T5ForConditionalGeneration"),
        ("t5-small", LAYERS | GATED, "T5ForConditionalGeneration"),
    ],
)
def test_presets_open_in_transformers(preset, changes, architecture, tmp_path):
    config = ModelConfig.preset(preset, **SMALL, **changes)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(config)
    parameters = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    hf.save_state(config, parameters, tmp_path)
    assert hf.load_config(tmp_path) == config
    cls = getattr(transformers, architecture)
    model, info = cls.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert np.isfinite(outputs(model.eval())).all()
    if config.num_decoder_layers:
        generation = model.generation_config
        assert generation.forced_bos_token_id == config.forced_bos_id
        assert generation.suppress_tokens == (list(config.suppressed_ids) or None)
        assert generation.eos_token_id == config.eos_id
    model.save_pretrained(tmp_path / "again")
    assert hf.load_config(tmp_path / "again") == config
    for name, array in hf.load_state(tmp_path / "again", config):
        assert np.array_equal(array, parameters[name]), name


@pytest.mark.parametrize("preset", ["bert-base", "transformer-base", "t5-small", "llama-tiny"])
def test_presets_are_foreign_architectures_as_they_are(preset):
    config = ModelConfig.preset(preset)
    values = hf.config_to_hf(config)
    assert values["architectures"] != ["LlmcoreModel"]
    assert hf.config_from_hf(values) == config
    cls = getattr(transformers, values["architectures"][0])
    with torch.device("meta"):
        model = cls(cls.config_class.from_dict(values))
    count = sum(p.numel() for n, p in model.named_parameters() if "embed_positions" not in n)
    buffers = {n: b.numel() for n, b in model.named_buffers()}
    assert config.num_parameters() == count + buffers.get("final_logits_bias", 0)


@pytest.mark.parametrize("family", hf.FAMILIES[:-1], ids=lambda family: family.architecture)
def test_defaults_are_those_of_transformers(family):
    """An empty config.json means the same as one in which every key is spelled out."""
    cls = getattr(transformers, family.architecture)
    spelled_out = cls.config_class().to_dict()
    if family.model_type == "bart":
        del spelled_out["id2label"]
    names = {"architectures": [family.architecture]}
    assert hf.config_from_hf(names) == hf.config_from_hf({**spelled_out, **names})
