"""The Hugging Face layout: configs and tensors to and from transformers, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmcore
from llmcore import hf
from llmcore.config import LoraConfig, ModelConfig, RopeScaling
from llmcore.errors import CheckpointError, ConfigError
from llmcore.parameters import parameter_shapes
from llmcore.safetensors_io import SafetensorsFile

GPT2 = ModelConfig(
    vocab_size=31, hidden_size=12, num_decoder_layers=2, num_heads=3, ffn_size=20, max_positions=9
)
LLAMA = ModelConfig(
    vocab_size=31,
    hidden_size=12,
    num_decoder_layers=2,
    num_heads=6,
    num_kv_heads=2,
    ffn_size=20,
    max_positions=64,
    norm="rms",
    positions="rope",
    activation="silu",
    gated_ffn=True,
    attention_bias=False,
    attention_out_bias=False,
    ffn_bias=False,
)
NO_BIASES = dict.fromkeys(("attention_bias", "attention_out_bias", "ffn_bias", "norm_bias"), False)
# Name -> (our config, the architecture it is written as).
CONFIGS = {
    "gpt2": (GPT2.replace(eos_id=30, bos_id=30), "GPT2LMHeadModel"),
    "gpt2-untied": (GPT2.replace(tie_embeddings=False), "GPT2LMHeadModel"),
    "gpt2-without-biases": (GPT2.replace(**NO_BIASES, activation="gelu"), "GPT2LMHeadModel"),
    "gpt2-dropout": (GPT2.replace(residual_dropout=0.25, ffn_dropout=0.5), "GPT2LMHeadModel"),
    "gpt2-unscaled": (GPT2.replace(attention_scale=1.0), "GPT2LMHeadModel"),
    "llama": (LLAMA.replace(eos_id=2), "LlamaForCausalLM"),
    "llama-untied": (LLAMA.replace(tie_embeddings=False), "LlamaForCausalLM"),
    "llama-head-dim": (LLAMA.replace(head_dim=6), "LlamaForCausalLM"),
    "llama-biases": (
        LLAMA.replace(attention_bias=True, attention_out_bias=True, ffn_bias=True),
        "LlamaForCausalLM",
    ),
    "llama-linear": (
        LLAMA.replace(rope_scaling=RopeScaling(type="linear", factor=2.5), rope_theta=5e5),
        "LlamaForCausalLM",
    ),
    "llama3": (
        LLAMA.replace(rope_scaling=RopeScaling(type="llama3", factor=8, original_max_positions=16)),
        "LlamaForCausalLM",
    ),
    "llama-yarn": (
        LLAMA.replace(
            rope_scaling=RopeScaling(type="yarn", factor=4, original_max_positions=16, beta_fast=9)
        ),
        "LlamaForCausalLM",
    ),
    "mistral": (LLAMA.replace(sliding_window=5), "MistralForCausalLM"),
    "own": (LLAMA.replace(qk_norm=True, attention_bias=True), "LlmcoreModel"),
    "own-gpt2": (GPT2.replace(norm_placement="post"), "LlmcoreModel"),
    "own-right-to-left": (GPT2.replace(right_to_left=True), "LlmcoreModel"),
    "own-adapters": (LLAMA.replace(lora=LoraConfig(rank=2)), "LlmcoreModel"),
}
FOREIGN = [name for name, (_, architecture) in CONFIGS.items() if architecture != "LlmcoreModel"]


def random_parameters(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in parameter_shapes(config).items()
    }


def assert_same(state, expected: dict[str, np.ndarray]) -> None:
    state = dict(state)
    assert state.keys() == expected.keys()
    for name, array in state.items():
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
        assert np.array_equal(
            np.ascontiguousarray(array).view(np.uint32), expected[name].view(np.uint32)
        ), name


def edit_config(path: Path, **changes) -> None:
    values = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        values.pop(key, None) if value is ... else values.update({key: value})
    (path / "config.json").write_text(json.dumps(values))


# --- configs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_config_round_trip(name):
    config, architecture = CONFIGS[name]
    values = json.loads(json.dumps(hf.config_to_hf(config)))
    assert values["architectures"] == [architecture]
    assert hf.config_from_hf(values) == config


@pytest.mark.parametrize("name", FOREIGN)
def test_config_without_our_key_is_the_same_but_for_dropout_and_absent_biases(name):
    config, _ = CONFIGS[name]
    values = hf.config_to_hf(config)
    del values["llmcore"]
    found = hf.config_from_hf(values)
    biases = dict.fromkeys(NO_BIASES, True) if "without-biases" in name else {}
    assert found == config.replace(ffn_dropout=0.0, **biases)


def test_foreign_keys_count_when_they_were_edited():
    values = hf.config_to_hf(GPT2.replace(ffn_dropout=0.5))
    values["vocab_size"] = 40  # as transformers' resize_token_embeddings leaves it
    assert hf.config_from_hf(values) == GPT2.replace(vocab_size=40)


def test_defaults_are_those_of_transformers():
    assert hf.config_from_hf({"model_type": "gpt2"}) == ModelConfig.preset(
        "gpt2", embedding_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1
    )


def llama_rope(**values) -> ModelConfig:
    base = {"model_type": "llama", "max_position_embeddings": 64}
    return hf.config_from_hf({**base, **values})


def test_both_spellings_of_rope():
    llama3 = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
    old = llama_rope(rope_theta=5e5, rope_scaling=llama3)
    assert old == llama_rope(rope_parameters={**llama3, "rope_theta": 5e5})
    assert old.rope_theta == 5e5
    assert old.rope_scaling == RopeScaling(type="llama3", factor=8, original_max_positions=16)
    linear = llama_rope(rope_scaling={"type": "linear", "factor": 2.0})
    assert linear.rope_scaling == RopeScaling(type="linear", factor=2)
    assert llama_rope(rope_parameters={"rope_type": "default", "rope_theta": 7.0}).rope_theta == 7


def test_yarn_factors():
    yarn = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 0.5}
    scaling = llama_rope(rope_parameters=yarn).rope_scaling
    assert scaling.original_max_positions == 64
    log = 0.1 * np.log(4)
    assert scaling.attention_factor == pytest.approx((log + 1) / (0.5 * log + 1), rel=1e-12)
    with pytest.raises(ConfigError, match="truncate: only True"):
        llama_rope(rope_parameters={**yarn, "truncate": False})
    with pytest.raises(ConfigError, match="rope_type 'dynamic' is not supported; known: default, "):
        llama_rope(rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(ConfigError, match="factor: expected a finite number, got None"):
        llama_rope(rope_scaling={"type": "linear"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["FooModel"]}, "'FooModel' is not supported; supported: GPT2LM"),
        ({}, "architecture 'None' is not supported"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention: only False"),
        ({"model_type": "gpt2", "activation_function": "tanh"}, "activation 'tanh' is not"),
        ({"model_type": "gpt2", "n_embd": "768"}, "hidden_size: expected a whole number"),
        ({"architectures": ["LlmcoreModel"]}, "the key 'llmcore', an object, is missing"),
        ({"model_type": "llama", "rope_scaling": 3}, "rope_parameters: expected an object, got 3"),
        ({"model_type": "llama", "partial_rotary_factor": 0.5}, "partial_rotary_factor: only 1.0"),
    ],
)
def test_config_errors(values, message):
    with pytest.raises(ConfigError, match=message):
        hf.config_from_hf(values)


# --- tensors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_state_round_trip_is_bitwise(name, tmp_path):
    config, _ = CONFIGS[name]
    parameters = random_parameters(config)
    parameters["embed.tokens.weight"][0, :3] = [-0.0, np.nan, 1e-45]
    hf.save_state(config, parameters, tmp_path)
    assert hf.load_config(tmp_path) == config
    assert_same(hf.load_state(tmp_path, config), parameters)
    # The reference implementation reads the same bytes.
    reference = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    ours = SafetensorsFile(tmp_path / "model.safetensors")
    assert reference.keys() == ours.entries.keys()
    for key, array in reference.items():
        assert np.array_equal(array, ours.float32(key), equal_nan=True)


def test_gpt2_split_against_slices(tmp_path):
    hf.save_state(GPT2, random_parameters(GPT2), tmp_path)
    foreign = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    state = dict(hf.load_state(tmp_path, GPT2))
    c_attn = foreign["transformer.h.1.attn.c_attn.weight"]  # [in, 3 out]
    assert np.array_equal(state["decoder.layers.1.self_attention.k.weight"], c_attn[:, 12:24].T)
    assert np.array_equal(
        state["decoder.layers.1.self_attention.v.bias"],
        foreign["transformer.h.1.attn.c_attn.bias"][24:],
    )


def test_gpt2_file_without_prefix_and_with_mask_buffers(tmp_path):
    parameters = random_parameters(GPT2)
    hf.save_state(GPT2, parameters, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = {name.removeprefix("transformer."): array for name, array in tensors.items()}
    tensors["h.0.attn.bias"] = np.tril(np.ones((1, 1, 9, 9), np.bool_))
    tensors["h.1.attn.masked_bias"] = np.array(-1e4, np.float32)
    tensors["lm_head.weight"] = tensors["wte.weight"]
    safetensors.numpy.save_file(tensors, file)
    (tmp_path / "checkpoint.json").unlink()
    assert_same(hf.load_state(tmp_path, GPT2), parameters)
    tensors["lm_head.weight"] = tensors["wte.weight"] + 1
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs from transformer.wte"):
        hf.load_state(tmp_path, GPT2)


def test_sharded(tmp_path):
    parameters = random_parameters(LLAMA)
    hf.save_state(LLAMA, parameters, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    file.unlink()
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    for shard in set(shards.values()):
        part = {name: tensors[name] for name in tensors if shards[name] == shard}
        safetensors.numpy.save_file(part, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_same(hf.load_state(tmp_path, LLAMA), parameters)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors: cannot be read"):
        hf.load_state(tmp_path, LLAMA)
    for name in ("../a.safetensors", "", "a\0", "\ud800", ["a"], None):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="weight_map must map"):
            hf.load_state(tmp_path, LLAMA)


def test_all_that_does_not_fit_is_listed_together(tmp_path):
    hf.save_state(LLAMA, random_parameters(LLAMA), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][1:]
    ids = np.zeros((12, 12), np.int32)
    tensors["model.layers.0.self_attn.q_proj.weight"] = ids
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        hf.load_state(tmp_path, LLAMA)
    message = str(caught.value)
    assert "1 missing: model.norm.weight; 1 unexpected: model.extra; 2 misshapen: " in message
    assert "model.embed_tokens.weight (expected [31, 12], got [30, 12])" in message
    assert "model.layers.0.self_attn.q_proj.weight (of dtype I32)" in message


def test_zero_biases_that_are_not_zero(tmp_path):
    config = GPT2.replace(**NO_BIASES)
    hf.save_state(config, random_parameters(config), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["transformer.ln_f.bias"][3] = 1
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"transformer.ln_f.bias is not zero, but the model"):
        dict(hf.load_state(tmp_path, config))
    edit_config(tmp_path, llmcore=...)
    with_biases = hf.load_config(tmp_path)
    assert with_biases == GPT2
    assert dict(hf.load_state(tmp_path, with_biases))["decoder.norm.bias"][3] == 1


def test_saving_checks_names_shapes_and_dtypes(tmp_path):
    parameters = random_parameters(GPT2)
    parameters["extra"] = parameters.pop("decoder.norm.bias")
    parameters["decoder.norm.weight"] = np.zeros(3, np.float64)
    with pytest.raises(CheckpointError, match=r"decoder.norm.bias is missing, extra is unexpected"):
        hf.save_state(GPT2, parameters, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_our_own_layout_is_fine_tuned_as_well(tmp_path):
    config = GPT2.replace(right_to_left=True, head_bias=True)
    parameters = random_parameters(config)
    hf.save_state(config, parameters, tmp_path)
    classifier = config.replace(head_bias=False, num_labels=2)
    with pytest.raises(CheckpointError) as caught:
        hf.load_state(tmp_path, classifier)
    assert "2 missing: classifier.weight, classifier.bias; 1 unexpected: head.bias" in str(
        caught.value
    )
    state = hf.load_state(tmp_path, classifier, fresh=["classifier.*"], drop=["head.*"])
    del parameters["head.bias"]
    assert_same(state, parameters)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_other_floats_widen_exactly(dtype, tmp_path):
    bits = np.arange(0, 1 << 16, 7, dtype=np.uint16)
    if dtype == "BF16":
        data, expected = bits.tobytes(), (bits.astype(np.uint32) << 16).view(np.float32)
    elif dtype == "F16":
        data, expected = bits.tobytes(), bits.view(np.float16).astype(np.float32)
    else:
        values = bits.astype(np.float64) / 8
        data, expected = values.tobytes(), values.astype(np.float32)
    entry = {"dtype": dtype, "shape": [len(bits)], "data_offsets": [0, len(data)]}
    for padding in (b"", b" ", b"   "):  # also where the data is not aligned
        header = json.dumps({"x": entry}).encode() + padding
        (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + data)
        assert np.array_equal(
            SafetensorsFile(tmp_path / "x").float32("x"), expected, equal_nan=True
        )


# --- files that are something else --------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    hf.save_state(GPT2, random_parameters(GPT2), path)
    return path


def load_all(path: Path) -> None:
    dict(hf.load_state(path, hf.load_config(path)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "a git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "an HTML page"),
        (b"hello, I am a text\n" * 20, "a text file"),
        (b"PK\x03\x04" + b"\x80" * 50, "a Python pickle"),
        (bytes(5000), "(zero bytes|not valid JSON)"),
    ],
)
def test_files_that_are_something_else(saved, tmp_path, name, content, message):
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(content if file.name == name else file.read_bytes())
    with pytest.raises(CheckpointError, match=message) as caught:
        load_all(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


def test_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: cannot be read: No such file"):
        hf.load_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected model.safetensors, found none"):
        hf.load_state(tmp_path, GPT2)
    with pytest.raises(CheckpointError, match="expected a directory with a model, found none"):
        hf.load_state(tmp_path / "no", GPT2)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match="its weights are Python pickles"):
        hf.load_state(tmp_path, GPT2)


def test_every_truncation_is_told(saved, tmp_path):
    data = (saved / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_bytes((saved / "config.json").read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    offsets = [*range(64), *range(header - 9, header + 9), *range(header, len(data), 997)]
    for size in [*offsets, len(data) - 1]:
        (tmp_path / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(CheckpointError) as caught:
            load_all(tmp_path)
        if size >= header:
            assert "truncated: its header promises" in str(caught.value)
    (tmp_path / "model.safetensors").write_bytes(data + b"x")
    with pytest.raises(CheckpointError, match="1 bytes follow the last tensor"):
        load_all(tmp_path)


def survives(path: Path) -> bool:
    """Whether the files load; any other exception than CheckpointError is a failure."""
    try:
        load_all(path)
    except CheckpointError:
        return False
    return True


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["model.safetensors", "config.json"]))
def test_flipped_bytes_never_crash(saved, tmp_path, data, name):
    content = bytearray((saved / name).read_bytes())
    if name == "model.safetensors":  # data bytes may be anything; the header is what can break
        limit = 8 + int.from_bytes(content[:8], "little")
    else:
        limit = len(content)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, limit - 1))] = data.draw(st.integers(0, 255))
    for file in ("model.safetensors", "config.json"):
        (tmp_path / file).write_bytes(content if file == name else (saved / file).read_bytes())
    survives(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), architecture=st.sampled_from(["gpt2", "llama3", "llama-yarn", "own"]))
def test_any_json_value_under_any_config_key(tmp_path, data, architecture):
    values = hf.config_to_hf(CONFIGS[architecture][0])
    target = values
    while isinstance(target, dict) and target:
        parent, key = target, data.draw(st.sampled_from(sorted(target)))
        target = target[key] if data.draw(st.booleans()) else None
    parent[key] = data.draw(JSON)
    (tmp_path / "config.json").write_text(json.dumps(values))
    survives(tmp_path)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    entry=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), JSON)
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3"]),
            "shape": st.lists(st.integers(-1, 1 << 70), max_size=9),
            "data_offsets": st.lists(st.integers(-1, 1 << 70), min_size=2, max_size=2),
        }
    )
)
def test_any_header_entry(tmp_path, entry):
    header = json.dumps({"transformer.wte.weight": entry}).encode()
    data = len(header).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(hf.config_to_hf(GPT2)))
    assert not survives(tmp_path)


def test_deeply_nested_header(tmp_path):
    header = b"{" + b'"a":{' * 100_000
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        SafetensorsFile(tmp_path / "x")


# --- transformers itself ------------------------------------------------------------------------


def torch_state(model) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", FOREIGN)
def test_transformers_reads_what_we_write(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    config, architecture = CONFIGS[name]
    parameters = random_parameters(config)
    hf.save_state(config, parameters, tmp_path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(model).__name__ == architecture
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    written = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    state = torch_state(model)
    assert state.keys() - written.keys() <= {"lm_head.weight"}
    for key, array in written.items():
        assert np.array_equal(state[key], array), key
    assert (
        sum(p.numel() for p in model.parameters())
        == (
            config.replace(**dict.fromkeys(NO_BIASES, True)) if "without" in name else config
        ).num_parameters()
    )
    values = transformers.AutoConfig.from_pretrained(tmp_path)
    assert values.vocab_size == config.vocab_size
    if config.rope_scaling:
        assert values.rope_parameters["factor"] == config.rope_scaling.factor
        assert values.rope_parameters["rope_theta"] == config.rope_theta
    # And back: what transformers makes of it means the same to us.
    model.save_pretrained(tmp_path / "again")
    assert hf.load_config(tmp_path / "again") == config
    assert_same(hf.load_state(tmp_path / "again", config), parameters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("GPT2", {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 9, "n_inner": 40}),
        ("GPT2", {"n_embd": 12, "n_layer": 1, "n_head": 3, "tie_word_embeddings": False}),
        ("Llama", {"num_key_value_heads": 2}),
        ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "head_dim": 8}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e5}}),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": 3}),
        ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    ],
)
def test_we_read_what_transformers_writes(family, values, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if family != "GPT2":
        sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6}
        values = {**sizes, "intermediate_size": 20, **values}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    foreign = getattr(transformers, f"{family}Config")(vocab_size=31, **tokens, **values)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(foreign).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="4KB" if dtype == "float32" else "1GB")
    config = hf.load_config(tmp_path)
    assert config.sliding_window == (values.get("sliding_window") or 0)
    assert config.num_parameters() == sum(p.numel() for p in model.parameters())
    state = dict(hf.load_state(tmp_path, config))
    loaded = llmcore.Transformer.from_pretrained(tmp_path).parameters()
    assert_same(((name, tensor.numpy()) for name, tensor in loaded.items()), state)
    hf.save_state(config, state, tmp_path / "ours")
    back = safetensors.numpy.load_file(tmp_path / "ours" / "model.safetensors")
    expected = torch_state(model.float())
    if config.tie_embeddings:
        del expected["lm_head.weight"]
    assert back.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(back[name], array), name
    reread = transformers.AutoConfig.from_pretrained(tmp_path / "ours").to_dict()
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).to_dict()
    incidental = {
        "_name_or_path",
        "dtype",
        "llmcore",
        "n_inner",
        "architectures",
        "model_type",
        "sliding_window",
    }
    for key in (reread.keys() & theirs.keys()) - incidental:
        assert reread[key] == theirs[key], key


@pytest.mark.parametrize(
    ("preset", "model"),
    [
        ("gpt2-medium", "GPT2LMHeadModel"),
        ("bert-base", "BertForMaskedLM"),
        ("t5-small", "T5ForConditionalGeneration"),
    ],
)
def test_preset_sizes_are_those_of_transformers(preset, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ModelConfig.preset(preset)
    cls = getattr(transformers, model)
    sizes = {}
    if preset == "gpt2-medium":
        sizes = {"n_embd": 1024, "n_layer": 24, "n_head": 16}
    with torch.device("meta"):
        count = sum(p.numel() for p in cls(cls.config_class(**sizes)).parameters())
    assert config.num_parameters() == count
