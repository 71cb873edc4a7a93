"""A GPU, or its emulation, beside the CPU: tensors go there and back, models compute the same."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import (
    CausalLM,
    Classification,
    DeviceError,
    GenerationConfig,
    LoraConfig,
    MaskedLM,
    ModelConfig,
    Seq2Seq,
    TrainStep,
    Transformer,
    ops,
)
from llmcore.objectives import Batch
from llmcore.training.assemble import build_trainer
from llmcore.training.train_config import RunConfig

pytestmark = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
VOCAB = 61
SMALL = {
    "vocab_size": VOCAB,
    "bos_id": None,
    "eos_id": None,
    "hidden_size": 24,
    "num_heads": 3,
    "max_positions": 32,
}
DECODER = {**SMALL, "num_decoder_layers": 2}
ENCODER = {**SMALL, "num_encoder_layers": 2, "num_decoder_layers": 0}
BOTH = {**SMALL, "num_encoder_layers": 1, "num_decoder_layers": 2, "decoder_start_id": 2}
FAMILIES = {
    "gpt2": ModelConfig.preset("gpt2", **DECODER),
    "llama": ModelConfig.preset("llama-tiny", **DECODER, num_kv_heads=1, ffn_size=40),
    "bert": ModelConfig.preset("bert-base", **ENCODER),
    # Its gradients are overwritten where a mask would have copied them.
    "undropped": ModelConfig.preset("bert-base", **ENCODER, residual_dropout=0.0),
    "classifier": ModelConfig.preset("bert-base", **ENCODER, num_labels=3, pooler=True),
    "transformer": ModelConfig.preset("transformer-base", **BOTH),
    "t5": ModelConfig.preset("t5-small", **BOTH),
    "lora": ModelConfig.preset("gpt2", **DECODER, lora=LoraConfig(rank=2)),
}
WRITERS = [name for name, config in FAMILIES.items() if config.kind != "encoder"]


def close(got, want, scale=1e-5):
    """Within `scale` of the largest number: sums of another order."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.abs(got - want).max(initial=0) <= scale * (np.abs(want).max(initial=0) + 1e-3)


def pair(name, **changes):
    """The same model on the CPU and on the device."""
    config = FAMILIES[name].replace(**changes)
    models = [Transformer(config, device=device, seed=3) for device in ("cpu", "cuda")]
    for parameter, other in zip(*(m.parameters().values() for m in models), strict=True):
        assert np.array_equal(parameter.numpy(), other.numpy())
    return models


def ragged(rng, *lengths):
    return [rng.integers(3, VOCAB, length).tolist() for length in lengths]


def batch_for(config, rng) -> Batch:
    rows = ragged(rng, 9, 5, 12)
    if config.num_labels:
        return Classification()(rows, [0, 2, 1])
    if config.kind == "encoder-decoder":
        return Seq2Seq(decoder_start_id=2, eos_id=1)(rows, ragged(rng, 4, 7, 6))
    ids = rng.integers(3, VOCAB, (3, 12))
    if config.kind == "encoder":
        return MaskedLM(vocab_size=VOCAB, mask_id=1, probability=0.5)(ids, [12, 5, 9])
    return CausalLM()(ids, [12, 5, 9])


class TestTensors:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int64", "bool"])
    @pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 1, 700)])
    def test_there_and_back(self, rng, dtype, shape):
        values = rng.integers(0, 2, shape)
        tensor = llmcore.tensor(values, dtype, device="cuda")
        assert (tensor.device, tensor.dtype, tensor.shape) == ("cuda:0", dtype, shape)
        assert np.array_equal(tensor.numpy(), values)
        back = tensor.to(device="cpu")
        assert back.device == "cpu"
        assert np.array_equal(back.numpy(), values)
        again = llmcore.tensor(tensor, device="cuda")
        assert np.array_equal(again.numpy(), values)

    def test_numpy_is_a_copy_there(self):
        tensor = llmcore.zeros([3], device="cuda")
        tensor.numpy()[0] = 1
        assert tensor.tolist() == [0, 0, 0]

    def test_memory_is_counted_and_released(self):
        before = llmcore.memory_stats("cuda")["current_bytes"]
        tensor = llmcore.zeros([1 << 16], device="cuda")
        assert llmcore.memory_stats("cuda")["current_bytes"] >= before + (1 << 18)
        assert llmcore.memory_stats("cuda")["peak_bytes"] >= before + (1 << 18)
        del tensor
        assert llmcore.memory_stats("cuda")["current_bytes"] == before

    def test_another_gpu_is_refused(self):
        with pytest.raises(DeviceError):
            llmcore.zeros([1], device="cuda:99")


class TestDLPack:
    def test_shares_memory(self):
        tensor = llmcore.tensor([1.0, 2.0, 3.0], device="cuda")
        assert tensor.__dlpack_device__() == (2, 0)
        shared = llmcore.from_dlpack(tensor)
        assert shared.device == "cuda:0"
        ops.adamw_step(shared, shared, *llmcore_zeros(3), lr=1.0, step=1)
        assert tensor.tolist() == shared.tolist() != [1, 2, 3]

    def test_outlives_its_source(self):
        tensor = llmcore.tensor([1.0, 2.0], device="cuda")
        shared = llmcore.from_dlpack(tensor)
        del tensor
        assert shared.tolist() == [1, 2]

    def test_copies_where_asked(self):
        tensor = llmcore.tensor([1.0, 2.0], device="cuda")
        copied = llmcore.from_dlpack(Capsule(tensor, copy=True))
        assert copied.device == "cuda:0"
        here = llmcore.from_dlpack(Capsule(tensor, dl_device=(1, 0)))
        assert (here.device, here.tolist()) == ("cpu", [1, 2])
        with pytest.raises(BufferError, match="as a copy alone"):
            tensor.__dlpack__(dl_device=(1, 0), copy=False)
        with pytest.raises(BufferError, match="dl_device"):
            tensor.__dlpack__(dl_device=(2, 7))

    def test_any_stream_may_be_given(self):
        tensor = llmcore.tensor([1.0], device="cuda")
        for stream in (None, 1, 2, -1):
            assert llmcore.from_dlpack(Capsule(tensor, stream=stream)).tolist() == [1]


class Capsule:
    """An array that exports a tensor in a way of its own."""

    def __init__(self, tensor, **options):
        self._tensor, self._options = tensor, options

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options, **self._options)


def llmcore_zeros(size):
    return llmcore.zeros([size], device="cuda"), llmcore.zeros([size], device="cuda")


class TestOperations:
    def test_results_are_where_the_arguments_are(self, rng):
        x, weight = rng.standard_normal((2, 3, 4)).astype(np.float32), np.ones(4, np.float32)
        on_device = ops.layer_norm(llmcore.tensor(x, device="cuda"), weight)  # NumPy's comes along
        assert on_device.device == "cuda:0"
        close(on_device, ops.layer_norm(llmcore.tensor(x, device="cpu"), weight))

    @pytest.mark.parametrize(
        ("call", "words"),
        [
            (lambda a, b: ops.layer_norm(a, b), ["layer_norm", "weight", "cuda:0", "x", "cpu"]),
            (lambda a, b: ops.embedding(_ids("cpu"), a), ["embedding", "ids", "cuda:0", "weight"]),
            (lambda a, b: ops.adamw_step(b, a, b, b, lr=1, step=1), ["adamw_step", "grad"]),
            (lambda a, b: ops.matmul(b, a), ["matmul", "b must be on cpu as a is", "cuda:0"]),
        ],
    )
    def test_arguments_on_two_devices_are_named(self, call, words):
        with pytest.raises(DeviceError) as raised:
            call(
                llmcore.tensor(np.ones((4, 4), np.float32), device="cuda"),
                llmcore.tensor(np.ones(4, np.float32), device="cpu"),
            )
        assert all(word in str(raised.value) for word in words), raised.value

    @pytest.mark.parametrize(
        ("name", "call"),
        {
            "softmax": lambda x: ops.softmax(x, axis=0),
            "norm": lambda x: ops.rms_norm(x),
            "activation": lambda x: ops.gelu(x),
            "swiglu": lambda x: ops.swiglu(x, x),
            "matmul": lambda x: ops.matmul(x, x, transpose_b=True),
            "linear": lambda x: ops.linear(x, x, activation="silu"),
            "embedding": lambda x: ops.embedding([[5], [0]], x),
            "attention": lambda x: ops.attention(*[x.reshape([1, 2, 3, 8])] * 3, causal=True),
        }.items(),
    )
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_equal_the_cpus(self, rng, name, call, dtype):
        if (name, dtype) == ("softmax", "bfloat16"):
            pytest.skip("softmax is of float32")
        shape = (6, 8)
        x = llmcore.tensor(rng.standard_normal(shape), dtype, device="cpu")
        here, there = call(x), call(x.to(device="cuda"))
        assert (there.device, there.dtype) == ("cuda:0", dtype)
        close(there, here, 1e-5 if dtype == "float32" else 2.0**-7)


def _ids(device):
    return llmcore.tensor([0], "int32", device=device)


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_outputs(self, name, rng):
        here, there = pair(name)
        assert there.device == "cuda:0"
        assert repr(there).endswith("on cuda:0)")
        ids = np.array(ragged(rng, 7, 7))
        lengths = [7, 4]
        if here.config.kind == "encoder-decoder":
            options = {"decoder_ids": ids[:, ::-1], "decoder_lengths": [5, 7]}
        else:
            options = {}
        got = there(ids, lengths, **options)
        assert got.device == "cuda:0"
        for row, length in enumerate(options.get("decoder_lengths", lengths)):
            close(got.numpy()[row, :length], here(ids, lengths, **options).numpy()[row, :length])
        close(there.encode(ids).numpy(), here.encode(ids).numpy())

    def test_loss_and_all_gradients(self, name, rng):
        here, there = pair(name)
        batch = batch_for(here.config, rng)
        close(there.loss(batch), here.loss(batch))
        close(there.row_losses(batch), here.row_losses(batch))
        close(there.loss_and_grad(batch), here.loss_and_grad(batch))
        want = {key: tensor.numpy() for key, tensor in here.gradients().items()}
        largest = max(np.abs(gradient).max() for gradient in want.values())
        for key, tensor in there.gradients().items():
            assert np.abs(tensor.numpy() - want[key]).max() <= 1e-5 * largest, key

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_three_steps(self, name, rng, dtype):
        here, there = pair(name)
        options = {"lr": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, "dtype": dtype}
        steps = [TrainStep(model, dropout_seed=5, **options) for model in (here, there)]
        batches = [[batch_for(here.config, rng) for _ in range(2)] for _ in range(3)]
        scale = 1e-4 if dtype == "float32" else 3e-2
        for batch in batches:
            want, got = (step(batch) for step in steps)
            close([got.loss, got.targets], [want.loss, want.targets], scale)
            close(got.grad_norm, want.grad_norm, 10 * scale)
            assert not got.skipped
        if dtype == "float32":
            for key, tensor in here.parameters().items():
                if key.endswith("k.bias"):  # its gradient is rounding alone
                    continue
                close(there.parameters()[key].numpy(), tensor.numpy(), 2e-3)

    def test_the_same_answer_every_time(self, name, rng):
        batch = batch_for(FAMILIES[name], rng)
        results = []
        for _ in range(2):
            model = Transformer(FAMILIES[name], device="cuda", seed=3)
            step = TrainStep(model, lr=1e-2, dropout_seed=5, dtype="bfloat16")
            losses = [step(batch).loss for _ in range(2)]
            results.append((losses, [t.numpy().tobytes() for t in model.parameters().values()]))
        assert results[0] == results[1]


def test_frozen_parameters_and_weight_decay(rng):
    # The larger matrices are several parts to the optimizer, and offsets are odd.
    here, there = pair("gpt2", hidden_size=131, num_heads=1, ffn_size=263)
    steps = []
    for model in (here, there):
        model.freeze(["*norm.weight", "decoder.layers.0.feed_forward.*"])
        steps.append(TrainStep(model, lr=1e-2, weight_decay=0.5, dropout_seed=5))
    start = {key: tensor.numpy().copy() for key, tensor in here.parameters().items()}
    for _ in range(3):
        batch = batch_for(here.config, rng)
        want, got = (step(batch) for step in steps)
        close([got.loss, got.grad_norm], [want.loss, want.grad_norm], 1e-4)
    trained = here.trainable_parameters()
    assert 0 < len(trained) < len(start)
    for key, tensor in there.parameters().items():
        if key not in trained:
            assert np.array_equal(tensor.numpy(), start[key])
        elif not key.endswith("k.bias"):  # its gradient is rounding alone
            close(tensor.numpy(), trained[key].numpy(), 2e-3)
    for name in ("m", "v"):
        theirs, ours = (step.state_dict()[name] for step in steps)
        assert np.array_equal(ours != 0, theirs != 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_masks_of_attention_are_those_of_the_step(dtype, rng):
    # Weights that stay, large enough that losses tell masks apart; the first steps are asked for
    # kernel by kernel, later ones as a graph.
    still = {"residual_dropout": 0.0, "embedding_dropout": 0.0, "init_std": 0.2}
    models = pair("gpt2", attention_dropout=0.5, **still)
    steps = [TrainStep(model, lr=0.0, dropout_seed=5, dtype=dtype) for model in models]
    batch = batch_for(models[0].config, rng)
    results = [[step(batch) for _ in range(5)] for step in steps]
    for what in ("loss", "grad_norm"):
        want, got = (np.array([getattr(one, what) for one in series]) for series in results)
        close(got - got.mean(), want - want.mean(), 1e-3 if dtype == "float32" else 0.1)


@pytest.mark.parametrize("name", ["gpt2", "lora"])
@pytest.mark.parametrize("steps", [1, 3])  # asked for kernel by kernel; as a graph
def test_a_step_multiplies_with_the_weights_as_they_are(name, steps, rng):
    batch = batch_for(FAMILIES[name], rng)
    model, copy = (Transformer(FAMILIES[name], device="cuda", seed=seed) for seed in (3, 4))
    step, other = (TrainStep(one, lr=1e-2, dtype="bfloat16") for one in (model, copy))
    for _ in range(steps):
        step(batch)
    for key, tensor in model.parameters().items():
        llmcore._core.copy(source=tensor, target=copy.parameters()[key])
    other.load_state_dict(step.state_dict())
    assert step(batch).loss == other(batch).loss


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"do_sample": True, "top_k": 9, "temperature": 0.8, "seed": 4},
        {"cache_dtype": "bfloat16"},
    ],
    ids=["greedy", "beams", "sampled", "bfloat16 cache"],
)
def test_texts(name, settings, rng):
    here, there = pair(name)
    config = GenerationConfig(max_new_tokens=8, stop_ids=(2,), **settings)
    prompts = ragged(rng, 5, 1, 9)
    for want, got in zip(
        here.generate(prompts, config), there.generate(prompts, config), strict=True
    ):
        assert got.ids == want.ids
        assert [one.ids for one in got.alternatives] == [one.ids for one in want.alternatives]


def test_shared_memory_for_wide_heads(rng):
    """A block's own variables count with what it is started with: 48 KiB are had unasked."""
    here, there = pair("llama", num_heads=4, num_kv_heads=1, head_dim=176)
    config = GenerationConfig(max_new_tokens=3, stop_ids=())
    prompts = ragged(rng, 5)
    assert there.generate(prompts, config)[0].ids == here.generate(prompts, config)[0].ids


def test_a_cache_made_where_another_was_is_read_as_what_it_is(rng):
    here, there = pair("llama")
    prompts = ragged(rng, 5, 1, 9)
    for cache_dtype in ("float32", "int8", "bfloat16", "float32"):
        config = GenerationConfig(max_new_tokens=6, stop_ids=(2,), cache_dtype=cache_dtype)
        wanted = [result.ids for result in here.generate(prompts, config)]
        assert [result.ids for result in there.generate(prompts, config)] == wanted


@pytest.mark.parametrize("format", ["bfloat16", "int8", "int4"])
def test_packed_models(format, rng, tmp_path):
    model = Transformer(FAMILIES["llama"], device="cpu", seed=3)
    model.save_pretrained(tmp_path / "float32")
    here, there = (
        Transformer.from_pretrained(tmp_path / "float32", device=device, dtype=format)
        for device in ("cpu", "cuda")
    )
    ids = np.array(ragged(rng, 9))
    assert (there.device, there.dtype) == ("cuda:0", format)
    close(there(ids), here(ids), 1e-2)
    there.save_pretrained(tmp_path / "packed")
    again = Transformer.from_pretrained(tmp_path / "packed", device="cpu")
    assert again.dtype == format
    assert np.array_equal(again(ids).numpy(), here(ids).numpy())
    if format != "bfloat16":
        model = Transformer(FAMILIES["llama"], device="cuda", seed=3).quantize(format)
        assert model.device == "cuda:0"
        assert np.array_equal(model(ids).numpy(), there(ids).numpy())


def test_saved_there_and_loaded_anywhere(tmp_path, rng):
    there = Transformer(FAMILIES["gpt2"], device="cuda", seed=8)
    there.save_pretrained(tmp_path / "model")
    for device in ("cpu", "cuda:0"):
        model = Transformer.from_pretrained(tmp_path / "model", device=device)
        assert model.device == device
        for key, tensor in there.parameters().items():
            assert np.array_equal(model.parameters()[key].numpy(), tensor.numpy())


def test_adapters_there(tmp_path, rng):
    here, there = pair("gpt2")
    for model in (here, there):
        model.add_lora(LoraConfig(rank=2), seed=1)
        TrainStep(model, lr=1e-2)(batch_for(model.config, np.random.default_rng(0)))
    there.save_adapter(tmp_path / "adapter")
    base = pair("gpt2")[1]
    base.load_adapter(tmp_path / "adapter")
    ids = np.array(ragged(rng, 6))
    assert np.array_equal(base(ids).numpy(), there(ids).numpy())
    there.merge_lora()
    close(there(ids), here(ids), 1e-3)


def test_a_training_state_goes_from_device_to_device(rng):
    batches = [batch_for(FAMILIES["gpt2"], rng) for _ in range(9)]

    def train(devices):
        model = state = weights = None
        for device, begin in zip(devices, (0, 3, 6), strict=True):
            model = Transformer(FAMILIES["gpt2"], device=device, seed=3)
            if weights is not None:
                for key, tensor in model.parameters().items():
                    llmcore._core.copy(source=weights[key], target=tensor)
            step = TrainStep(model, lr=1e-2, weight_decay=0.1)
            if state is not None:
                step.load_state_dict(state)
            losses = [step(batch).loss for batch in batches[begin : begin + 3]]
            state, weights = step.state_dict(), model.parameters()
        return losses

    close(train(["cpu", "cuda", "cpu"]), train(["cpu", "cpu", "cpu"]), 1e-4)


def test_a_run_is_resumed_on_another_device(tmp_path, text):
    def fit(out, steps, device, resume=False):
        run = RunConfig.from_dict(
            {
                "model": {"name": "gpt-nano", "hidden_size": 16, "num_decoder_layers": 1},
                "data": {"path": str(text)},
                "train": {
                    "steps": steps, "out_dir": str(tmp_path / out), "batch_size": 2,
                    "block_size": 16, "eval_interval": 3, "eval_batches": 1, "sample_tokens": 0,
                    "resume": resume, "schedule": "constant",
                },
            }
        )  # fmt: skip
        trainer = build_trainer(run, device=device)
        assert trainer.model.device.startswith(device)
        return trainer.fit().loss

    losses = {}
    for out, devices in {"same": ["cpu"] * 3, "mixed": ["cpu", "cuda", "cpu"]}.items():
        for round, device in enumerate(devices):
            losses[out] = fit(out, 3 * round + 3, device, resume=round > 0)
    close(losses["mixed"], losses["same"], 1e-4)


def test_uses(rng):
    here, there = pair("bert")
    rows = ragged(rng, 6, 3)
    close(there.embed(rows), here.embed(rows))
    ids = np.array(ragged(rng, 7, 7))
    options = {"layers": [1], "heads": [0, 2], "kind": "encoder"}
    close(there.attention_maps(ids, **options), here.attention_maps(ids, **options))
    here, there = pair("classifier")
    close([c.score for c in there.classify(rows)], [c.score for c in here.classify(rows)])
    here, there = pair("gpt2")
    close([s.score for s in there.score(rows)], [s.score for s in here.score(rows)])


def test_the_engine_and_guesses(rng):
    model = Transformer(FAMILIES["gpt2"], device="cuda", seed=3)
    prompts = ragged(rng, 5, 8)
    plain = model.generate(prompts, GenerationConfig(max_new_tokens=6))
    with llmcore.Engine(model, max_batch=2, capacity=32) as engine:
        requests = [engine.submit(row, GenerationConfig(max_new_tokens=6)) for row in prompts]
        assert [request.result().ids for request in requests] == [one.ids for one in plain]
    draft = Transformer(FAMILIES["gpt2"], device="cpu", seed=4)
    guessing = GenerationConfig(max_new_tokens=6, speculate="draft")
    with pytest.raises(DeviceError, match="draft model must be on cuda:0 as the model is, got cpu"):
        model.generate(prompts, guessing, draft_model=draft)
    draft = Transformer(FAMILIES["gpt2"], device="cuda", seed=4)
    assert model.generate(prompts, guessing, draft_model=draft)[0].ids == plain[0].ids
