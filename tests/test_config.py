"""ModelConfig: presets, exact parameter counts, and errors that say everything at once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest

from llmcore import GenerationConfig, TrainConfig
from llmcore.config import TOKEN_ID_FIELDS, LoraConfig, ModelConfig, RopeScaling
from llmcore.errors import ConfigError
from llmcore.parameters import parameter_shapes
from llmcore.presets import PRESETS
from llmcore.training.train_config import DataConfig

SMALL = {"vocab_size": 65, "hidden_size": 24, "num_decoder_layers": 2, "num_heads": 4}


def problems(**values) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # transformers 5: sum(p.numel() for p in Model(Config()).parameters())
        ("gpt2", 124_439_808),
        ("gpt2-124m", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("bert-base", 109_514_298),  # BertForMaskedLM
        ("t5-small", 60_506_624),
        ("llama-tiny", 15_191_712),  # llama2.c's stories15M
        # By hand: tables 65 C + 64 C, 4 layers of 2 C + 12 C², final norm C, at C = 128.
        ("gpt-nano", 129 * 128 + 4 * (2 * 128 + 12 * 128**2) + 128),
        # Encoder layer 4 (C² + C) + (8 C² + 5 C) + 4 C, decoder layer 4 (C² + C) + 2 C more.
        ("transformer-base", 37000 * 513 + 6 * (28 * 512**2 + 32 * 512)),
    ],
)
def test_preset_parameter_counts(name, count):
    assert ModelConfig.preset(name).num_parameters() == count


def test_all_presets_are_counted_and_round_trip():
    for name in PRESETS:
        config = ModelConfig.preset(name)
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert all(value is not None for value in _concrete(config).values())


def _concrete(config: ModelConfig) -> dict[str, object]:
    optional = {"rope_scaling", "lora", *TOKEN_ID_FIELDS}
    return {key: value for key, value in config.to_dict().items() if key not in optional}


@pytest.mark.parametrize(
    ("name", "field", "power"),
    [("transformer-base", "embedding_scale", 0.5), ("t5-small", "head_scale", -0.5)],
)
def test_a_presets_scales_are_those_of_its_width(name, field, power):
    assert getattr(ModelConfig.preset(name), field) == 512**power
    assert getattr(ModelConfig.preset(name, hidden_size=64), field) == 64**power
    assert getattr(ModelConfig.preset(name, hidden_size=64, **{field: 3.0}), field) == 3.0


def test_computed_defaults():
    config = ModelConfig(**SMALL)
    assert (config.num_kv_heads, config.head_dim, config.ffn_size, config.rotary_dim) == (
        4,
        6,
        96,
        6,
    )
    assert config.attention_scale == 1 / math.sqrt(6)
    assert config.norm_bias is True
    assert ModelConfig(**SMALL, norm="rms").norm_bias is False
    assert ModelConfig(**SMALL, head_dim=10).attention_scale == 1 / math.sqrt(10)


def test_replace_lets_computed_fields_follow():
    config = ModelConfig(**SMALL, ffn_size=7).replace(head_dim=16)
    assert (config.rotary_dim, config.attention_scale, config.ffn_size) == (16, 0.25, 7)
    assert config.replace(hidden_size=25).head_dim == 16
    assert config.replace(num_heads=8).num_kv_heads == 8
    assert config.replace(norm="rms").norm_bias is False
    assert ModelConfig(**SMALL).replace(num_heads=8, rotary_dim=2).head_dim == 3


def test_kind():
    assert ModelConfig.preset("gpt2").kind == "decoder"
    assert ModelConfig.preset("bert-base").kind == "encoder"
    assert ModelConfig.preset("t5-small").kind == "encoder-decoder"


def test_frozen_and_hashable():
    config = ModelConfig(**SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.vocab_size = 3
    assert hash(config) == hash(ModelConfig(**SMALL))


def test_numpy_scalars_become_plain():
    config = ModelConfig(**{**SMALL, "vocab_size": np.int64(65)}, norm_eps=np.float32(0.5))
    assert type(config.vocab_size) is int
    assert type(config.norm_eps) is float


def test_every_problem_is_named_once():
    found = problems(
        vocab_size="x",
        hidden_size=24,
        num_heads=0,
        num_decoder_layers=-1,
        norm="laier",
        ffn_dropout=1.0,
        eos_id=-5,
        pooler=1,
        hidden_dim=3,
    )
    assert [problem.split(":")[0] for problem in found] == [
        "unknown key 'hidden_dim', did you mean 'hidden_size'?",
        "vocab_size",
        "norm",
        "pooler",
        "num_heads",
        "num_decoder_layers",
        "ffn_dropout",
    ]  # eos_id cannot be judged without a vocab_size
    assert found[1] == "vocab_size: expected a whole number, got 'x'"
    assert found[6] == "ffn_dropout: expected a probability in [0, 1), got 1.0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_decoder_layers": 0}, "num_decoder_layers: expected at least 1"),
        ({"hidden_size": 25}, "hidden_size: expected a multiple of num_heads = 4"),
        ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads = 4, got 3"),
        ({"norm": "rms", "norm_bias": True}, "norm_bias: expected False with norm 'rms'"),
        ({"positions": "rope", "rotary_dim": 8}, "rotary_dim: expected an even number up to"),
        ({"positions": "rope", "head_dim": 5}, "rotary_dim: expected an even number up to"),
        ({"eos_id": 65}, "eos_id: expected an id in [0, vocab_size = 65), or None, got 65"),
        ({"vocab_size": True}, "vocab_size: expected a whole number, got True"),
        ({"vocab_size": None}, "vocab_size: expected a whole number, got None"),
        ({"norm_eps": float("nan")}, "norm_eps: expected a finite number, got nan"),
        ({"norm_eps": 0}, "norm_eps: expected a number above 0, got 0.0"),
        ({"max_positions": 2.5}, "max_positions: expected a whole number, got 2.5"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling: expected None with"),
        ({"rope_scaling": 3}, "rope_scaling: expected a RopeScaling, or None, got 3"),
        ({"rope_scaling": {"type": "yarn", "factor": 2}}, "rope_scaling: original_max_positions:"),
        ({"position_offset": 2, "positions": "rope"}, "position_offset: expected 0 with"),
        (
            {"hidden_size": 21, "num_heads": 3, "positions": "sinusoidal"},
            "hidden_size: expected an",
        ),
        ({"relative_max_distance": 16, "positions": "relative"}, "relative_max_distance: expected"),
        (
            {"num_decoder_layers": 0, "num_encoder_layers": 1, "sliding_window": 4},
            "sliding_window: expected 0 where num_decoder_layers is 0, got 4",
        ),
    ],
)
def test_one_mistake_gives_one_line(change, message):
    found = problems(**{**SMALL, **change})
    assert len(found) == 1, found
    assert found[0].startswith(message)


def test_missing_and_unknown_keys():
    assert problems(vocab_sizes=3) == (
        "unknown key 'vocab_sizes', did you mean 'vocab_size'?",
        "vocab_size: required, but missing",
        "hidden_size: required, but missing",
        "num_heads: required, but missing",
        "num_decoder_layers: expected at least 1 where num_encoder_layers is 0, got 0",
    )
    with pytest.raises(ConfigError, match=r"unknown preset 'gtp2', did you mean 'gpt2'\?"):
        ModelConfig.preset("gtp2")
    with pytest.raises(ConfigError, match="did you mean 'num_heads'"):
        ModelConfig.preset("gpt2", num_head=3)
    with pytest.raises(ValueError, match="did you mean 'norm_eps'"):
        ModelConfig.preset("gpt2").replace(norm_epsilon=3)


@pytest.mark.parametrize(
    ("cls", "values", "found"),
    [
        (
            ModelConfig,
            {"hidden_dim": 3, "norm": "x", "vocab_size": 9, "num_heads": 2},
            ["'hidden_dim', did you mean 'hidden_size'", "hidden_size: required", "norm: expected"],
        ),
        (
            LoraConfig,
            {"rnk": 3, "dropout": 2},
            ["'rnk', did you mean 'rank'", "rank: ", "dropout: "],
        ),
        (
            GenerationConfig,
            {"max_token": 3, "top_p": 2, "num_beam": 4, "seed": -1},
            ["'max_token'", "'num_beam', did you mean 'num_beams'", "top_p: ", "seed: "],
        ),
        (
            TrainConfig,
            {"step": 3, "lr": -1, "zzz": 0},
            ["'step', did you mean 'steps'", "'zzz'", "lr must be at least 0"],
        ),
        (
            TrainConfig,
            {"step": 3, "resume": True, "overwrite": True},
            ["'step', did you mean 'steps'", "resume and overwrite exclude each other"],
        ),
        (DataConfig, {"pth": "x", "vocab_size": 0}, ["'pth', did you mean 'path'", "vocab_size"]),
    ],
)
def test_constructors_say_everything_at_once(cls, values, found):
    builders = [cls, *([lambda **v: cls.from_dict(v)] if hasattr(cls, "from_dict") else [])]
    for build in builders:
        with pytest.raises(ConfigError) as caught:
            build(**values)
        told = list(caught.value.problems)
        for words in found:
            assert sum(words in problem for problem in told) == 1, (words, told)
        extra = {"num_decoder_layers: expected at least 1 where num_encoder_layers is 0, got 0"}
        assert len(set(told) - extra) == len(found), told
    assert str(inspect.signature(cls)).count("*") == 1  # help() still names every field


def test_rope_scaling():
    scaling = RopeScaling(type="yarn", factor=4, original_max_positions=32)
    assert scaling.attention_factor == 0.1 * math.log(4) + 1
    assert RopeScaling(type="llama3", factor=8, original_max_positions=32).attention_factor == 1
    config = ModelConfig(**SMALL, positions="rope", rope_scaling=scaling)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="high_freq_factor: expected more than low_freq_factor"):
        RopeScaling(type="llama3", factor=8, original_max_positions=32, high_freq_factor=1)


def test_parameter_order_within_a_layer():
    names = list(
        parameter_shapes(ModelConfig(**SMALL, gated_ffn=True, qk_norm=True, num_kv_heads=2))
    )
    layer = [
        n.removeprefix("decoder.layers.0.") for n in names if n.startswith("decoder.layers.0.")
    ]
    assert layer == [
        *("self_attention.norm.weight", "self_attention.norm.bias"),
        *("self_attention.q.weight", "self_attention.k.weight", "self_attention.v.weight"),
        *("self_attention.q.bias", "self_attention.k.bias", "self_attention.v.bias"),
        *("self_attention.q_norm.weight", "self_attention.k_norm.weight"),
        *("self_attention.out.weight", "self_attention.out.bias"),
        *("feed_forward.norm.weight", "feed_forward.norm.bias"),
        *("feed_forward.gate.weight", "feed_forward.up.weight"),
        *("feed_forward.gate.bias", "feed_forward.up.bias"),
        *("feed_forward.down.weight", "feed_forward.down.bias"),
    ]
    assert names[:2] == ["embed.tokens.weight", "embed.positions.weight"]
    assert names[-2:] == ["decoder.norm.weight", "decoder.norm.bias"]


def test_parameter_order_of_the_whole_model():
    config = ModelConfig(
        **{**SMALL, "num_encoder_layers": 1, "num_decoder_layers": 1},
        embedding_norm=True,
        norm_bias=False,
        tie_embeddings=False,
        head_bias=True,
        head_transform=True,
        pooler=True,
        num_labels=3,
        position_offset=2,
        max_positions=7,
        attention_bias=False,
        attention_out_bias=False,
        ffn_bias=False,
    )
    shapes = parameter_shapes(config)
    outside = [name for name in shapes if ".layers." not in name]
    assert outside == [
        *("embed.tokens.weight", "encoder.positions.weight", "encoder.embedding_norm.weight"),
        *("encoder.norm.weight", "decoder.positions.weight", "decoder.embedding_norm.weight"),
        *("decoder.norm.weight", "head.weight", "head.bias", "head.transform.weight"),
        *("head.transform.bias", "head.transform.norm.weight", "pooler.weight", "pooler.bias"),
        *("classifier.weight", "classifier.bias"),
    ]
    assert shapes["encoder.positions.weight"] == (9, 24)
    cross = [name for name in shapes if "cross_attention" in name]
    assert cross[0] == "decoder.layers.0.cross_attention.norm.weight"
    assert len(cross) == 5


def test_flops_are_those_of_nanogpt_for_gpt2():
    # nanoGPT's estimate_mfu: 6 N + 12 L H Q T, N without the position table. It also counts norms
    # and biases, 121 344 numbers that are in no matrix product.
    nano = 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024
    assert ModelConfig.preset("gpt2").flops_per_token(1024) == nano - 6 * 121_344
    windowed = ModelConfig.preset("gpt2", sliding_window=128)
    assert windowed.flops_per_token(1024) == nano - 6 * 121_344 - 12 * 12 * 768 * (1024 - 128)
