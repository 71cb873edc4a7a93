"""Models in bfloat16, int8 and int4: what they compute, their files, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import llmcore
from command import fails, run
from foreign import Saved, torch, transformers
from llmcore import (
    CausalLM,
    GenerationConfig,
    ModelConfig,
    TrainStep,
    Transformer,
    checkpoint,
    hf,
)
from llmcore.config import LoraConfig
from llmcore.data.tokens import shakespeare
from llmcore.errors import CheckpointError, ConfigError, DTypeError, LlmcoreError
from llmcore.parameters import parameter_shapes
from llmcore.quantized import Quantized
from llmcore.tensor import write
from test_model import TINY
from tolerance import round_bfloat16

FORMATS = ["bfloat16", "int8", "int4"]
INTEGERS = ["int8", "int4"]
MODELS = ["gpt2-base", "qwen2", "qwen3", "bert", "roberta", "marian", "bart", "t5", "t5-1.1"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp)


def outputs(model: Transformer) -> np.ndarray:
    ids = np.array([[5, 9, 12, 6], [7, 8, 20, 21]])
    both = model.config.kind == "encoder-decoder"
    return model(ids, **({"decoder_ids": ids[:, :3] + 1} if both else {})).numpy()


def packed_model(format: str, config: ModelConfig, seed: int = 0) -> Transformer:
    if format == "bfloat16":
        return Transformer(config, dtype=format, seed=seed)
    return Transformer(config, seed=seed).quantize(format)


def round_int4(weight: np.ndarray) -> np.ndarray:
    matrix = llmcore._core.PackedWeight(llmcore.tensor(weight), "int4")
    return matrix.unpack().numpy()


def round_int8(weight: np.ndarray) -> np.ndarray:
    most = np.abs(weight).max(1, keepdims=True)
    return np.rint(weight / (most / 127)) * (most / np.float32(127))


ROUND = {"bfloat16": round_bfloat16, "int8": round_int8, "int4": round_int4}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_is_rounded_saved_and_loaded(name, format, saved, tmp_path):
    """From a foreign folder and back; the same logits, from the same weights rounded by NumPy."""
    folder = saved(name)[1]
    original = dict(hf.load_state(folder, hf.load_config(folder)))
    model = Transformer.from_pretrained(folder, dtype=format)
    assert model.dtype == format
    assert repr(model).endswith(f"parameters, {format} on {model.device})")
    packed = set(model._core.packed_names())
    ends = ("q.weight", "down.weight", "tokens.weight")
    assert {key for key in original if key.endswith(ends)} <= packed
    assert model.parameters().keys() == original.keys() - packed
    if format != "bfloat16":
        other = Transformer.from_pretrained(folder).quantize(format)
        assert np.array_equal(outputs(other), outputs(model))

    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.dtype == format
    assert again.config == model.config
    assert np.array_equal(outputs(again), outputs(model))

    widened = Transformer.from_pretrained(tmp_path, dtype="float32")
    for key, tensor in widened.parameters().items():
        expected = ROUND[format](original[key]) if key in packed else original[key]
        assert np.allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7), key
    exact = outputs(widened)
    allowed = 0.02 if format == "bfloat16" else 0.05  # for rounding what is multiplied
    assert np.abs(outputs(model) - exact).max() <= allowed * np.abs(exact).max()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["gpt2-base", "qwen3", "marian", "t5"])
def test_generation_does_not_depend_on_the_batch(name, format, saved, tmp_path, threads):
    model = Transformer.from_pretrained(saved(name)[1], dtype=format)
    prompts = [[5, 9, 12], [7], [11, 3, 8, 4, 2]]
    for options in ({}, {"num_beams": 3}):
        settings = GenerationConfig(max_new_tokens=3, **options)
        threads(2)
        together = model.generate(prompts, settings)
        threads(1)
        alone = [model.generate([prompt], settings)[0] for prompt in prompts]
        assert [(r.ids, r.score) for r in together] == [(r.ids, r.score) for r in alone]


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", INTEGERS)
def test_files_hold_codes_and_scales(format, saved, tmp_path):
    """Read by another implementation of the format, and put together by hand."""
    folder = saved("gpt2-base")[1]
    model = Transformer.from_pretrained(folder, dtype=format)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["quantization"] == {"format": format}
    stored = safetensors.numpy.load_file(folder / "model.safetensors")
    original = {f"transformer.{name}": array for name, array in stored.items()}
    with safetensors.safe_open(tmp_path / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = {name for name in original if "attn.c_" in name and name.endswith("weight")}
    assert found.keys() - original.keys() >= {f"{name}.scale" for name in names}
    for name in names:
        codes, scale = found[name], found[f"{name}.scale"].float()
        wanted = original[name].T  # [out, in], in GPT-2's files too
        n, k = wanted.shape
        if format == "int8":
            assert (codes.dtype, tuple(codes.shape)) == (torch.int8, (n, k))
            weight = codes.float() * scale[:, None]
        else:
            assert found[f"{name}.scale"].dtype == torch.bfloat16
            assert (codes.dtype, tuple(codes.shape)) == (torch.uint8, (n, -(-k // 2)))
            pairs = torch.stack([codes & 15, codes >> 4], -1).reshape(n, -1)[:, :k]
            weight = (pairs.float() - 8) * scale.repeat_interleave(32, 1)[:, :k]
        assert np.allclose(weight.numpy(), ROUND[format](np.ascontiguousarray(wanted)), atol=1e-7)


@pytest.mark.parametrize("name", ["gpt2-base", "qwen2", "bert", "marian"])
def test_transformers_reads_bfloat16(name, saved, tmp_path):
    foreign, folder = saved(name)
    model = Transformer.from_pretrained(folder, dtype="bfloat16")
    model.save_pretrained(tmp_path)
    again = type(foreign).from_pretrained(tmp_path, dtype="auto")
    assert again.dtype == torch.bfloat16
    expected = foreign.to(torch.bfloat16).state_dict()
    assert all(torch.equal(t, expected[key]) for key, t in again.state_dict().items())


def test_transformers_refuses_integers(tmp_path):
    Transformer(ModelConfig(**TINY)).quantize("int8").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="llmcore"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_converted_while_reading(format, tmp_path):
    config = ModelConfig(**TINY)
    packed_model(format, config).save_pretrained(tmp_path / "a")
    float32 = Transformer.from_pretrained(tmp_path / "a", dtype="float32")
    for other in FORMATS:
        converted = Transformer.from_pretrained(tmp_path / "a", dtype=other)
        assert converted.dtype == other
        float32.save_pretrained(tmp_path / "b")
        same = Transformer.from_pretrained(tmp_path / "b", dtype=other)
        if other != format:  # codes are taken over, not rounded once more
            assert np.array_equal(outputs(converted), outputs(same))


@pytest.mark.parametrize("format", FORMATS)
def test_training_starts_from_a_rounded_model(format, tmp_path):
    packed_model(format, ModelConfig(**TINY)).save_pretrained(tmp_path)
    saved = checkpoint.load(tmp_path)
    target = Transformer(saved.config, seed=3)
    checkpoint.copy_parameters(saved.parameters, target.parameters())
    loaded = Transformer.from_pretrained(tmp_path, dtype="float32")
    assert np.array_equal(outputs(target), outputs(loaded))
    assert TrainStep(target, lr=1e-3)(CausalLM()([[1, 2, 3]])).grad_norm > 0


@pytest.fixture
def folder(tmp_path) -> Path:
    Transformer(ModelConfig(**TINY)).quantize("int8").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "checkpoint.json").unlink()  # its checksums would find every change
    return tmp_path / "model"


def change(folder: Path, edit) -> None:
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    edit(tensors, "transformer.h.1.attn.c_proj.weight")
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def spoil(tensors, name):
    tensors[name] = tensors[name].copy()
    tensors[name][1, 2] = -128


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t, n: t.pop(f"{n}.scale"), "1 misshapen: {}.scale (missing)"),
        (lambda t, n: t.pop(n), "1 missing: {}"),
        (
            lambda t, n: t.update({f"{n}.scale": t[f"{n}.scale"][1:]}),
            "{}.scale (expected F32 [24], got F32 [23])",
        ),
        (
            lambda t, n: t.update({f"{n}.scale": t[f"{n}.scale"].astype(np.float64)}),
            "{}.scale (expected F32 [24], got F64 [24])",
        ),
        (lambda t, n: t.update({n: t[n][:, 1:]}), "{} (expected I8 [24, 24], got I8 [24, 23])"),
        (
            lambda t, n: t.update({n: t[n].view(np.uint8)}),
            "{} (expected I8 [24, 24], got U8 [24, 24])",
        ),
        (lambda t, n: t.update({n: t[n].astype(np.int32)}), "{} (of dtype I32)"),
        (spoil, "{}: codes must be from -127 to 127, got -128"),
    ],
)
def test_wrong_codes_and_scales_are_told(edit, words, folder):
    change(folder, edit)
    with pytest.raises(CheckpointError) as raised:
        Transformer.from_pretrained(folder)
    assert words.format("transformer.h.1.attn.c_proj.weight") in str(raised.value)


def test_a_config_that_does_not_fit_its_integers(folder):
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for key, words in (
        ({"format": "int4"}, r"expected U8 \[24, 12\], got I8"),
        ({"format": "int3"}, "format must be one of bfloat16, int8, int4, got 'int3'"),
        ("int8", "format must be one of"),
        (None, "of dtype I8, with no int8 or int4 in config.json"),
    ):
        file.write_text(json.dumps({**values, "quantization": key}))
        if key == "int8":
            assert Transformer.from_pretrained(folder).dtype == "int8"
            continue
        with pytest.raises(CheckpointError, match=words):
            Transformer.from_pretrained(folder)


def test_quantized_is_an_array():
    codes = np.arange(-35, 35, dtype=np.int8).reshape(2, 35)
    matrix = Quantized(codes, np.array([0.5, -2], np.float32), 35)
    assert np.array_equal(np.asarray(matrix), codes * [[0.5], [-2]])
    assert np.array_equal(np.asarray(matrix[1:]), codes[1:] * -2.0)

    digits = np.arange(70).reshape(2, 35) % 16
    padded = np.pad(digits, ((0, 0), (0, 1))).astype(np.uint8)
    scales = np.array([[0.5, 2], [1, -1]], np.float32)
    bits = (scales.view(np.uint32) >> 16).astype(np.uint16)
    matrix = Quantized(padded[:, ::2] | padded[:, 1::2] << 4, bits, 35)
    expected = (digits - 8) * np.repeat(scales, 32, 1)[:, :35]
    assert np.array_equal(np.asarray(matrix), expected)
    assert np.array_equal(np.asarray(matrix[1:]), expected[1:])


@pytest.mark.parametrize("dtype", ["int8", "int4", "float32"])
def test_codes_out_of_range_are_told_in_any_format(dtype, folder):
    change(folder, spoil)
    with pytest.raises(CheckpointError, match="codes must be from -127 to 127, got -128"):
        Transformer.from_pretrained(folder, dtype=dtype)


# --- quality ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned() -> tuple[Transformer, np.ndarray]:
    """A model that has learned Shakespeare a little, and ids it has not seen."""
    text = shakespeare()
    ids = np.unique(list(text), return_inverse=True)[1]
    train, held_out = ids[:-20000], ids[-20000:]
    model = Transformer(
        ModelConfig(vocab_size=65, hidden_size=64, num_decoder_layers=2, num_heads=4,
                    ffn_size=256, max_positions=64)
    )  # fmt: skip
    step = TrainStep(model, lr=3e-3, max_grad_norm=1.0)
    rng = np.random.default_rng(0)
    for _ in range(150):
        starts = rng.integers(0, len(train) - 65, 16)
        step(CausalLM()(np.stack([train[i : i + 65] for i in starts])))
    return model, held_out


@pytest.mark.parametrize(("format", "limit"), [("bfloat16", 1e-3), ("int8", 5e-3), ("int4", 0.04)])
def test_perplexity_on_text_not_seen(learned, format, limit, tmp_path):
    model, ids = learned
    batch = CausalLM()(ids[: 65 * 64].reshape(64, 65))
    before = model.loss(batch)
    assert 1.5 < before < 2.8
    model.save_pretrained(tmp_path)
    after = Transformer.from_pretrained(tmp_path, dtype=format).loss(batch)
    assert abs(np.expm1(after - before)) < limit
    assert after != before


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
def test_training_is_refused(format):
    model = packed_model(format, ModelConfig(**TINY))
    before, batch = outputs(model), CausalLM()([[1, 2, 3]])
    for call in (
        lambda: TrainStep(model, lr=1e-3),
        lambda: model.loss_and_grad(batch),
        model.gradients,
        lambda: model.add_lora(LoraConfig(rank=2)),
        lambda: model.quantize("int4"),
    ):
        with pytest.raises(ConfigError, match=format):
            call()
    with pytest.raises(LlmcoreError, match=f"{format}|packed on the CPU"):
        model._core.pack("int8")
    assert model.loss(batch) > 0
    assert np.array_equal(outputs(model), before)


def test_views_outlive_quantize():
    model = Transformer(ModelConfig(**TINY))
    view = model.parameters()["embed.tokens.weight"].numpy()
    before = view.copy()
    model.quantize("int4")
    assert np.array_equal(view, before)


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="'int8' or 'int4', got 'int3'"):
        Transformer(ModelConfig(**TINY)).quantize("int3")
    with pytest.raises(DTypeError, match="float32, bfloat16, int8, int4, got 'fp8'"):
        Transformer.from_pretrained(tmp_path, dtype="fp8")


@pytest.mark.parametrize("format", INTEGERS)
def test_adapters_stay_float32(format, tmp_path):
    model = Transformer(ModelConfig(**TINY))
    model.add_lora(LoraConfig(rank=2))
    for name, tensor in model.parameters().items():
        if name.endswith("lora_b"):
            write(tensor, 0.1)
    before = outputs(model)
    adapter = model.parameters()["decoder.layers.0.self_attention.q.lora_a"].numpy().copy()
    model.quantize(format)
    found = model.parameters()["decoder.layers.0.self_attention.q.lora_a"].numpy()
    assert np.array_equal(found, adapter)
    assert np.abs(outputs(model) - before).max() < 0.2 * np.abs(before).max()
    model.save_pretrained(tmp_path)
    assert np.array_equal(outputs(Transformer.from_pretrained(tmp_path)), outputs(model))
    for call in (model.merge_lora, lambda: model.save_adapter(tmp_path / "a")):
        with pytest.raises(ConfigError, match=format):
            call()


def test_matrices_too_deep_for_exact_sums_are_refused_and_left():
    model = Transformer(
        ModelConfig(**{**TINY, "hidden_size": 4, "num_heads": 1, "ffn_size": 65537})
    )
    before = outputs(model)
    with pytest.raises(ConfigError, match="65537 columns"):
        model.quantize("int8")
    assert np.array_equal(outputs(model), before)


@pytest.mark.cpu("its memory")
def test_memory_is_that_of_the_format(tmp_path):
    config = ModelConfig.preset(
        "gpt2", num_decoder_layers=2, vocab_size=5000, bos_id=None, eos_id=None
    )
    Transformer(config).save_pretrained(tmp_path)
    float32 = 4 * sum(np.prod(shape) for shape in parameter_shapes(config).values())
    sizes = {}
    for format in ("float32", *FORMATS):
        before = llmcore.memory_stats()["current_bytes"]
        model = Transformer.from_pretrained(tmp_path, dtype=format)
        sizes[format] = llmcore.memory_stats()["current_bytes"] - before
        del model
    assert sizes["float32"] >= float32
    for format, share in (("bfloat16", 0.5), ("int8", 0.25), ("int4", 4.5 / 32)):
        # Positions and vectors stay as they are, and the buffers end on whole huge pages.
        assert sizes[format] < float32 * share + 10e6, format


# --- the command line ---------------------------------------------------------------------------


def test_command(capsys, tmp_path, finished_run):
    out = tmp_path / "model"
    text = finished_run.parent / "text.txt"
    for format in FORMATS:
        options = ("--format", format, "--text", text, "--overwrite")
        status, printed, err = run(capsys, "quantize", finished_run, out, *options)
        assert (status, err) == (0, "")
        lines = [line.split() for line in printed.splitlines()]
        assert lines[0] == ["float32", format]
        assert [line[0] for line in lines[1:]] == ["size", "perplexity", "tokens/s"]
        before, after = (float(word) for word in lines[2][1:])
        assert before == pytest.approx(after, rel=0.05)
        model = Transformer.from_pretrained(out)
        assert model.dtype == format
        assert model.tokenizer is not None
        found = model.score([text.read_text()])[0].perplexity
        assert found == pytest.approx(after, rel=1e-3)
    generated = [
        run(capsys, "generate", place, "--prompt", "to be", "--max-new-tokens", 9, *options)
        for place, options in ((out, ()), (finished_run, ("--dtype", "int4")))
    ]
    assert generated[0][0] == 0
    assert generated[0] == generated[1]


def test_command_mistakes(capsys, tmp_path, finished_run):
    source, out = finished_run, tmp_path / "model"
    assert "int8, int4, bfloat16" in fails(capsys, 2, "quantize", source, out, "--format", "int3")
    assert run(capsys, "quantize", source, out)[0] == 0
    assert "--overwrite" in fails(capsys, 1, "quantize", source, out)
    assert "is int8 already" in fails(capsys, 1, "quantize", out, tmp_path / "again")
    assert "fp8" in fails(capsys, 2, "generate", source, "--dtype", "fp8", "--prompt", "a")
