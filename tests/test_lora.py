"""Low-rank adapters and freezing: gradients, what is left alone, the same answer every time."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest

from llmcore import (
    CheckpointError,
    ConfigError,
    ModelConfig,
    TrainConfig,
    Trainer,
    TrainStep,
    Transformer,
)
from llmcore.config import LORA_TARGETS, LoraConfig
from llmcore.objectives import Batch, CausalLM
from llmcore.parameters import parameter_shapes
from llmcore.tensor import write
from llmcore.training import plan
from test_model import DROPOUT, LLAMA, TINY, state_bytes
from tolerance import assert_matches

ALL = LoraConfig(rank=3, alpha=5.0, targets=LORA_TARGETS)
DROPPED = LoraConfig(rank=3, alpha=5.0, dropout=0.25, targets=LORA_TARGETS)
BOTH = {**TINY, "num_encoder_layers": 2}
VARIANTS = {
    "gpt2": TINY,
    "llama": {**TINY, **LLAMA},
    "post-norm": {**TINY, "norm_placement": "post", "embedding_norm": True, "final_norm": False},
    "original": {**BOTH, "norm_placement": "post", "positions": "sinusoidal", "activation": "gelu"},
    "t5": {**BOTH, **LLAMA, "positions": "relative", "relative_buckets": 8},
}


def make(variant="llama", lora=ALL, seed=0, **changes):
    """A model with adapters whose B is not zero."""
    model = Transformer(ModelConfig(**{**VARIANTS[variant], **changes}), seed=seed)
    model.add_lora(lora, seed=seed)
    rng = np.random.default_rng(seed + 1)
    for parameter in model.parameters().values():
        noise = 0.2 * rng.standard_normal(parameter.shape).astype(np.float32)
        write(parameter, parameter.numpy() + noise)
    return model


def batch_for(config, rng, rows=3, length=9):
    ids = rng.integers(0, config.vocab_size, (rows, length + 1))
    causal = CausalLM(label_smoothing=0.1)(ids)
    if config.num_encoder_layers == 0:
        return causal
    return Batch(
        enc_ids=rng.integers(0, config.vocab_size, (rows, length + 2)),
        enc_lengths=rng.integers(1, length + 3, rows),
        dec_ids=causal.dec_ids,
        targets=causal.targets,
        weights=rng.uniform(0.5, 2, rows * length),
        label_smoothing=0.1,
    )


def outputs(model, batch):
    if batch.enc_ids is None:
        return model(batch.dec_ids).numpy()
    return model(batch.enc_ids, batch.enc_lengths, decoder_ids=batch.dec_ids).numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_those_the_config_says(variant):
    model = make(variant)
    shapes = {name: tensor.shape for name, tensor in model.parameters().items()}
    assert list(shapes.items()) == list(parameter_shapes(model.config).items())
    assert all(name.endswith(("lora_a", "lora_b")) for name in model.trainable_parameters())
    attentions = 3 if model.config.num_encoder_layers else 1
    matrices = 4 * attentions + (3 if model.config.gated_ffn else 2) * (attentions + 1) // 2
    assert len(model.trainable_parameters()) == 2 * 2 * matrices  # A and B, two layers


@pytest.mark.parametrize("dropout", [False, True], ids=["plain", "dropout"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_agree_with_finite_differences(variant, dropout, rng):
    """Along each parameter's own gradient, the loss changes by its norm; masks are held fixed."""
    model = make(variant, DROPPED, **DROPOUT) if dropout else make(variant)
    model.unfreeze("*")
    batch = batch_for(model.config, rng)
    step = TrainStep(model, lr=0.0, dropout_seed=3)
    state = {**step.state_dict(), "calls": 4}

    def loss():
        step.load_state_dict(state)
        return step(batch).loss

    loss()
    gradients = {name: g.numpy().copy() for name, g in model.gradients().items()}
    for name, parameter in model.parameters().items():
        norm = np.linalg.norm(gradients[name].astype(np.float64))
        if norm < 1e-6:  # a key's bias does not change a softmax
            assert name.endswith("k.bias"), f"{name} has no gradient"
            continue
        if not name.endswith(("lora_a", "lora_b")) and "layers.0" not in name:
            continue
        before = parameter.numpy().copy()
        size = min(0.02 / norm, 0.1)
        direction = (gradients[name] / norm).astype(np.float32)
        differences = []
        for distance in (size, size / 2, size / 4):
            write(parameter, before + np.float32(distance) * direction)
            above = loss()
            write(parameter, before - np.float32(distance) * direction)
            differences.append((above - loss()) / (2 * distance))
        write(parameter, before)
        coarse, fine = ((4 * b - a) / 3 for a, b in itertools.pairwise(differences))
        extrapolated = (16 * fine - coarse) / 15  # Richardson, twice
        rounding = 4 * 2.0**-24 * above / (size / 4)
        assert extrapolated == pytest.approx(norm, rel=2e-3, abs=rounding), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_new_adapters_change_nothing(variant, rng):
    model = Transformer(ModelConfig(**VARIANTS[variant]))
    batch = batch_for(model.config, rng)
    before = outputs(model, batch), model.loss(batch), model.loss_and_grad(batch)
    model.add_lora(DROPPED, seed=5)
    after = outputs(model, batch), model.loss(batch), model.loss_and_grad(batch)
    assert np.array_equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert all(np.any(p.numpy()) for n, p in model.parameters().items() if n.endswith("lora_a"))


def test_initial_values_have_the_variance_of_peft():
    model = Transformer(ModelConfig(**{**TINY, "hidden_size": 256, "num_decoder_layers": 1}))
    model.add_lora(LoraConfig(rank=64, targets=["q"]))
    a = model.parameters()["decoder.layers.0.self_attention.q.lora_a"].numpy()
    expected = 1 / np.sqrt(3 * 256)  # of uniform numbers in ±1/sqrt(in)
    assert a.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * a.size))
    assert abs(a.mean()) < 4 * expected / np.sqrt(a.size)


@pytest.mark.parametrize("targets", [["q"], ["k", "v"], ["q", "v"], ["gate", "down"], ["up"]])
def test_some_targets_are_the_others_at_zero(targets, rng):
    """Adapters on a part of a matrix equal adapters on all of it whose other B are zero."""
    some = make(lora=LoraConfig(rank=3, targets=targets))
    every = make(lora=LoraConfig(rank=3, targets=LORA_TARGETS))
    shared = some.parameters()
    for name, parameter in every.parameters().items():
        write(parameter, shared[name].numpy() if name in shared else 0.0)
    batch = batch_for(some.config, rng)
    assert np.array_equal(outputs(some, batch), outputs(every, batch))
    some.loss_and_grad(batch)
    every.loss_and_grad(batch)
    for name, gradient in some.gradients().items():
        assert np.array_equal(gradient, every.gradients()[name]), name


def test_merging_adds_the_products_and_keeps_the_function(rng):
    model = make("t5")
    before = {name: p.numpy().copy() for name, p in model.parameters().items()}
    batch = batch_for(model.config, rng)
    adapted = outputs(model, batch)
    model.recompute = True
    model.merge_lora()
    assert model.config == ModelConfig(**VARIANTS["t5"])
    assert model.recompute
    assert model.trainable_parameters().keys() == model.parameters().keys()
    for name, weight in model.parameters().items():
        stem = name.removesuffix(".weight")
        if f"{stem}.lora_a" not in before:
            assert np.array_equal(weight, before[name])
            continue
        halves = before[f"{stem}.lora_b"], before[f"{stem}.lora_a"]
        scale = np.float32(5 / 3)
        assert_matches(weight, lambda w, b, a, s=scale: w + s * (b @ a), before[name], *halves)
    # Merged and adapted round differently, neither more than the other is off: parity has the rule.
    difference = np.abs(outputs(model, batch) - adapted).max()
    assert 0 < difference < 1e-5 * np.abs(adapted).max()


def test_frozen_parameters_stay_as_they_are(rng):
    model = make(lora=DROPPED, **DROPOUT)
    model.unfreeze(["decoder.norm.*", "*.0.self_attention.k.weight"])
    trained = set(model.trainable_parameters())
    before = {name: p.numpy().copy() for name, p in model.parameters().items()}
    step = TrainStep(model, lr=1e-2, weight_decay=0.1)
    for _ in range(3):
        batch = batch_for(model.config, rng)
        norm = step([batch, batch]).grad_norm
    names, start, state = list(before), 0, step.state_dict()
    for name in names:
        gradient, now = model.gradients()[name].numpy(), model.parameters()[name].numpy()
        moment = state["m"][start : start + now.size]
        start += now.size
        assert np.array_equal(now, before[name]) == (name not in trained), name
        assert np.any(gradient) == np.any(moment) == (name in trained), name
    squares = sum(np.square(g.numpy(), dtype=np.float64).sum() for g in model.gradients().values())
    assert norm == pytest.approx(np.sqrt(squares), rel=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_freezing_changes_no_other_gradient(variant, rng):
    model = Transformer(ModelConfig(**VARIANTS[variant]))
    batch = batch_for(model.config, rng)
    model.loss_and_grad(batch)
    before = {name: g.numpy().copy() for name, g in model.gradients().items()}
    kept = "decoder.layers.0.self_attention.out.weight"
    model.freeze("*")
    assert not any(np.any(g.numpy()) for g in model.gradients().values())
    model.unfreeze(kept)
    model.loss_and_grad(batch)
    for name, gradient in model.gradients().items():
        assert np.array_equal(gradient, before[name] if name == kept else 0 * before[name]), name


@pytest.mark.parametrize("variant", ["llama", "t5"])
def test_training_does_not_depend_on_threads(variant, threads):
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        model = make(variant, DROPPED, **DROPOUT)
        step = TrainStep(model, lr=1e-2, weight_decay=0.1, max_grad_norm=0.5)
        rng = np.random.default_rng(7)
        parts = [batch_for(model.config, rng), batch_for(model.config, rng, 2, 5)]
        losses = [step(parts).loss for _ in range(3)]
        results.append((losses, state_bytes(model)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("variant", VARIANTS)
def test_recompute_changes_nothing(variant):
    results = []
    for recompute in (False, True):
        model = make(variant, DROPPED, **DROPOUT)
        model.recompute = recompute
        step = TrainStep(model, lr=1e-2, dropout_seed=5)
        batch = batch_for(model.config, np.random.default_rng(3))
        results.append(([step(batch).loss for _ in range(3)], state_bytes(model)))
    assert results[0] == results[1]


@pytest.mark.cpu("bits that only it promises")
def test_a_row_does_not_depend_on_its_batch(rng):
    model = make()
    ids, lengths = rng.integers(0, TINY["vocab_size"], (5, 12)), np.array([12, 1, 7, 3, 12])
    together = model(ids, lengths).numpy()
    for row, length in enumerate(lengths):
        alone = model(ids[row : row + 1, :length]).numpy()
        assert np.array_equal(alone[0], together[row, :length])


def test_dropout_masks_differ_between_layers_and_steps(rng):
    """At this rate two masks of the same place would be equal; the losses show that none are."""
    model = make("gpt2", LoraConfig(rank=4, dropout=0.5, targets=["q", "out", "up", "down"]))
    batch = batch_for(model.config, rng)
    step = TrainStep(model, lr=0.0, dropout_seed=1)
    losses = [step(batch).loss for _ in range(4)]
    assert len(set(losses)) == 4
    names = [name for name in model.parameters() if name.endswith("lora_b")]
    kept = {name: model.parameters()[name].numpy().copy() for name in names}
    effects = []
    for name in names:  # one adapter alone, its mask alone
        for other in names:
            write(model.parameters()[other], kept[other] if other == name else 0.0)
        step.load_state_dict({**step.state_dict(), "calls": 0})
        effects.append(step(batch).loss - model.loss(batch))
    assert len(set(effects)) == len(names)
    assert 0.0 not in effects


@pytest.mark.filterwarnings("ignore:save_pretrained")
def test_training_goes_on_from_a_saved_model(rng, tmp_path):
    batches = [batch_for(make().config, rng) for _ in range(4)]
    model = make(lora=DROPPED, **DROPOUT)
    step = TrainStep(model, lr=1e-2, dropout_seed=9, weight_decay=0.1)
    for batch in batches[:2]:
        step(batch)
    model.save_pretrained(tmp_path)
    again = Transformer.from_pretrained(tmp_path)
    assert again.config == model.config
    assert again.trainable_parameters().keys() == model.trainable_parameters().keys()
    resumed = TrainStep(again, lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(step.state_dict())
    for batch in batches[2:]:
        assert step(batch) == resumed(batch)
    assert state_bytes(model) == state_bytes(again)


def test_a_run_goes_on_where_it_stopped(rng, tmp_path, monkeypatch):
    """The trainer, its checkpoints included: the same weights as without the stop."""
    monkeypatch.setattr(plan, "measure_peak_flops", lambda seconds=0.0: 1e9)
    ids = rng.integers(0, TINY["vocab_size"], 400)
    settings = {"batch_size": 2, "block_size": 8, "dropout": None, "schedule": "constant"}

    def run(folder, steps, resume=False):
        model = make(lora=DROPPED, **DROPOUT)
        config = TrainConfig(
            steps=steps, out_dir=str(tmp_path / folder), resume=resume, eval_interval=2, **settings
        )
        Trainer(model, (ids, ids[:50]), config).fit()
        return model

    whole = run("whole", 6)
    run("parts", 3)
    assert state_bytes(run("parts", 6, resume=True)) == state_bytes(whole)
    start = make(lora=DROPPED, **DROPOUT).parameters()
    for name, parameter in whole.parameters().items():
        same = np.array_equal(parameter, start[name])
        assert same == (name not in whole.trainable_parameters()), name
    saved = Transformer.from_pretrained(tmp_path / "whole" / "last")
    assert state_bytes(saved) == state_bytes(whole)


CHILD = """
import re, sys
import numpy as np
from llmcore import ModelConfig, TrainStep, Transformer
from llmcore.config import LoraConfig
from llmcore.objectives import CausalLM
config = ModelConfig(vocab_size=256, hidden_size=512, num_decoder_layers=8, num_heads=8)
model = Transformer(config)
if sys.argv[1] == "lora":
    model.add_lora(LoraConfig(rank=8))
step = TrainStep(model, lr=1e-3)
step.load_state_dict({**step.state_dict(), "m": np.zeros_like(step.state_dict()["m"])})
step(CausalLM()(np.arange(33)[None]))
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
print(1024 * int(peak), config.num_parameters())
"""


def test_memory_is_that_of_the_weights():
    """Full training holds a weight, its gradient and two moments; adding adapters, two weights."""
    command = [sys.executable, "-c", CHILD]
    peaks = {}
    for kind in ("full", "lora"):
        printed = subprocess.check_output([*command, kind], text=True).split()
        peaks[kind], parameters = int(printed[0]), int(printed[1])
    saved = (peaks["full"] - peaks["lora"]) / (4 * parameters)
    assert saved > 1.5, f"{peaks} of {4 * parameters} bytes of weights"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m.add_lora(LoraConfig(rank=2)), ConfigError, ["already", "merge_lora"]),
        (lambda m: m.freeze("decoder.nrom.weight"), ConfigError, ["did you mean", "decoder.norm"]),
        (lambda m: m.unfreeze(["*", "xyz*"]), ConfigError, ["xyz*", "parameters()"]),
        (lambda m: m.freeze([3]), TypeError, ["patterns", "3"]),
        (lambda m: (m.freeze("*"), TrainStep(m, lr=1.0)(CausalLM()([[1, 2]]))), ConfigError,
         ["frozen"]),
        (lambda m: (m.merge_lora(), m.merge_lora()), ConfigError, ["no adapters"]),
        (lambda m: (m.merge_lora(), m.save_adapter("x")), ConfigError, ["no adapters"]),
        (lambda m: (m.merge_lora(), m.add_lora({"rank": 2})), TypeError, ["LoraConfig", "dict"]),
        (lambda m: (m.merge_lora(), m.add_lora(LoraConfig(rank=2), seed=-1)), ConfigError,
         ["seed"]),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as raised:
        call(make())
    assert all(word in str(raised.value) for word in words), raised.value


def test_targets_that_a_model_lacks():
    model = Transformer(ModelConfig(**TINY))
    ids = np.array([[1, 2, 3]])
    before = model(ids).numpy()
    with pytest.raises(ConfigError, match="gate"):
        model.add_lora(LoraConfig(rank=2, targets=["gate"]))
    assert model.config.lora is None
    assert np.array_equal(model(ids), before)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        model.load_adapter("nowhere")
