"""Adapters against the library peft: logits, gradients, a trajectory, and files both ways."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest

from llmcore import CheckpointError, ConfigError, ModelConfig, TrainStep, Transformer
from llmcore.config import LORA_TARGETS, LoraConfig
from llmcore.objectives import CausalLM
from llmcore.tensor import write
from tolerance import EPS, FLOOR_ULPS

peft = pytest.importorskip("peft")
parity = pytest.importorskip("parity", reason="needs torch and transformers")
from parity import V, assert_within, gpt2, llama, make_case, our_logits, torch  # noqa: E402

B, T = 3, 17
# How far rounding leads is chance: the larger error of two runs is the measure.
IMPLEMENTATIONS = ("eager", "sdpa")
# Our parts of each module of theirs.
LLAMA = {
    "self_attn.q_proj": ["self_attention.q"], "self_attn.k_proj": ["self_attention.k"],
    "self_attn.v_proj": ["self_attention.v"], "self_attn.o_proj": ["self_attention.out"],
    "mlp.gate_proj": ["feed_forward.gate"], "mlp.up_proj": ["feed_forward.up"],
    "mlp.down_proj": ["feed_forward.down"],
}  # fmt: skip
GPT2 = {
    "attn.c_attn": ["self_attention.q", "self_attention.k", "self_attention.v"],
    "attn.c_proj": ["self_attention.out"],
    "mlp.c_fc": ["feed_forward.up"],
    "mlp.c_proj": ["feed_forward.down"],
}
FAMILIES = {
    "llama": (llama, LLAMA, "model.layers"),
    "gpt2": (gpt2, GPT2, "transformer.h"),
}
CASES = {
    "llama-qv": ("llama", ["self_attn.q_proj", "self_attn.v_proj"], {}),
    "llama-all": ("llama", list(LLAMA), {"use_rslora": True}),
    "gpt2-attention": ("gpt2", ["attn.c_attn"], {"fan_in_fan_out": True}),
    "gpt2-all": ("gpt2", list(GPT2), {"fan_in_fan_out": True}),
    "gpt2-feed-forward": ("gpt2", ["mlp.c_fc", "mlp.c_proj"], {"fan_in_fan_out": True}),
}


class Pair:
    """A base model with one adapter, in peft (float32 and float64) and here."""

    def __init__(self, case, directory):
        family, targets, settings = CASES[case]
        make, self.modules, self.layers = FAMILIES[family]
        torch.manual_seed(1)
        base = make()
        base.save_pretrained(directory / "base")
        config = peft.LoraConfig(
            r=4, lora_alpha=7, target_modules=targets, task_type="CAUSAL_LM", **settings
        )
        self.single = peft.get_peft_model(base, config)
        with torch.no_grad():
            for name, parameter in self.single.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self.single.save_pretrained(directory / "adapter")
        other = make().double()
        other.load_state_dict({k: v.double() for k, v in make_state(base).items()})
        self.double = peft.PeftModel.from_pretrained(
            other, directory / "adapter", is_trainable=True
        ).double()
        self.ours = Transformer.from_pretrained(directory / "base")
        self.ours.load_adapter(directory / "adapter")

    def loss(self, model, ids):
        logits = model(torch.tensor(ids[:, :-1])).logits
        target = torch.tensor(ids[:, 1:]).reshape(-1)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, V), target)

    def logits(self, ids):
        with torch.no_grad():
            return [m(torch.tensor(ids)).logits.numpy() for m in (self.double, self.single)]

    def gradients(self, model, ids):
        """(layer, module, "A" or "B") to the gradient."""
        model.zero_grad()
        self.loss(model, ids).backward()
        found = {}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                place = name.removeprefix(f"base_model.model.{self.layers}.").split(".")
                module, half = ".".join(place[1:-3]), place[-3][-1]
                found[int(place[0]), module, half] = parameter.grad.numpy().copy()
        return found

    def our_gradients(self, keys):
        """The same of ours: a shared A has the sum of its copies' gradients."""
        gradients = self.ours.gradients()
        ours = {}
        for layer, module, half in keys:
            parts = [
                np.array(gradients[f"decoder.layers.{layer}.{part}.lora_{half.lower()}"], float)
                for part in self.modules[module]
            ]
            ours[layer, module, half] = sum(parts) if half == "A" else np.concatenate(parts)
        return ours


def make_state(base):
    """The state of a model that peft has wrapped in place, without the adapters."""
    return {
        name.replace(".base_layer", ""): tensor
        for name, tensor in base.state_dict().items()
        if "lora_" not in name
    }


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    return Pair(request.param, tmp_path)


def test_logits_and_loss(pair, rng):
    ids = rng.integers(0, V, (B, T + 1))
    assert_within("logits", pair.ours(ids[:, :-1]), *pair.logits(ids[:, :-1]))
    losses = [pair.loss(m, ids).item() for m in (pair.double, pair.single)]
    assert_within("loss", pair.ours.loss_and_grad(CausalLM()(ids)), *losses)


def test_gradients(pair, rng):
    """Over four batches: which of two sums, rounded alike, is nearer in one of them is chance."""
    batches = rng.integers(0, V, (4, B, T + 1))
    exact = [pair.gradients(pair.double, ids) for ids in batches]
    singles = []
    for implementation in IMPLEMENTATIONS:
        pair.single.base_model.model.set_attn_implementation(implementation)
        singles.append([pair.gradients(pair.single, ids) for ids in batches])
    ours = []
    for ids in batches:
        pair.ours.loss_and_grad(CausalLM()(ids))
        ours.append(pair.our_gradients(exact[0]))
    assert len(exact[0]) == 2 * 3 * len({module for _, module, _ in exact[0]})
    for key in exact[0]:
        assert_within(key, *([one[key] for one in each] for each in (ours, exact, *singles)))


def test_merged(pair, rng):
    ids = rng.integers(0, V, (B, T))
    exact, single = pair.logits(ids)
    merged = pair.single.merge_and_unload()
    with torch.no_grad():
        single = merged(torch.tensor(ids)).logits.numpy()
    pair.ours.merge_lora()
    assert_within("logits", pair.ours(ids), exact, single)


@pytest.mark.parametrize("case", ["llama-qv", "llama-all", "gpt2-feed-forward"])
def test_ten_adamw_steps(case, rng, tmp_path):
    pair = Pair(case, tmp_path)
    # At a rate of 1e-2 single steps multiply rounding a thousandfold, in PyTorch as here.
    settings = {"lr": 2e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = TrainStep(pair.ours, max_grad_norm=0.5, **settings)
    batches = rng.integers(0, V, (10, B, T + 1))
    got = np.array([(r.loss, r.grad_norm) for r in (ours(CausalLM()(ids)) for ids in batches)])
    exact = trajectory(pair, pair.double, batches, settings)
    start = {name: tensor.clone() for name, tensor in pair.single.state_dict().items()}
    errors = []
    for implementation in IMPLEMENTATIONS:
        pair.single.load_state_dict(start)
        pair.single.base_model.model.set_attn_implementation(implementation)
        errors.append(abs(trajectory(pair, pair.single, batches, settings) - exact).max(0))
    allowed = 2 * np.maximum(*errors) + FLOOR_ULPS * EPS["float32"] * exact.max(0)
    error = abs(got - exact).max(0)
    assert (error <= allowed).all(), f"loss and norm: error {error}, allowed {allowed}"


def trajectory(pair, model, batches, settings):
    """Loss and gradient norm of each step, [steps, 2]."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, **settings)
    steps = []
    for ids in batches:
        optimizer.zero_grad()
        loss = pair.loss(model, ids)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return np.array(steps)


TARGETS = [["q"], ["q", "v"], ["out"], ["down"], ["k", "up", "down"], list(LORA_TARGETS)]


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_by_us_loads_in_peft(family, targets, rng, tmp_path):
    make, _, _ = FAMILIES[family]
    torch.manual_seed(1)
    base = make()
    base.save_pretrained(tmp_path / "base")
    ours = Transformer.from_pretrained(tmp_path / "base")
    ours.add_lora(LoraConfig(rank=3, alpha=6.5, dropout=0.1, targets=targets))
    for name, parameter in ours.trainable_parameters().items():
        if name.endswith("lora_b"):
            write(parameter, 0.1 * rng.standard_normal(parameter.shape))
    ours.save_adapter(tmp_path / "ours", base_model="base")

    double = make().double()
    double.load_state_dict({k: v.double() for k, v in base.state_dict().items()})
    models = [peft.PeftModel.from_pretrained(m, tmp_path / "ours") for m in (double, base)]
    models[0].double()
    adapters = [p for n, p in models[1].named_parameters() if "lora_" in n]
    ids = rng.integers(0, V, (B, T))
    with torch.no_grad():
        exact, single = (m.eval()(torch.tensor(ids)).logits.numpy() for m in models)
    assert_within("logits", ours(ids), exact, single)
    # Nothing beside our adapters was made: each of peft's holds some of ours.
    trained = sum(p.numpy().size for p in ours.trainable_parameters().values())
    if family == "llama":
        assert sum(p.numel() for p in adapters) == trained
    assert all(torch.any(p != 0) for p in adapters)

    again = Transformer.from_pretrained(tmp_path / "base")
    again.load_adapter(tmp_path / "ours")
    assert again.config == ours.config
    for name, parameter in ours.parameters().items():
        assert np.array_equal(parameter, again.parameters()[name]), name


@pytest.mark.parametrize("name", [*parity.ENCODERS, *parity.CLASSIFIERS, *parity.PAIRS, "qwen3"])
def test_every_architecture_both_ways(name, rng, tmp_path):
    pair, case = parity.Pair(name, tmp_path / "base"), make_case(name, rng)
    ours = pair.ours
    ours.add_lora(LoraConfig(rank=3, alpha=6.5, targets=LORA_TARGETS))
    for parameter in ours.trainable_parameters().values():
        write(parameter, parameter.numpy() + 0.1 * rng.standard_normal(parameter.shape))
    ours.save_adapter(tmp_path / "ours")
    double, single = (
        peft.PeftModel.from_pretrained(m, tmp_path / "ours").eval()
        for m in (pair.double, pair.single)
    )
    double.double()
    with torch.no_grad():
        assert_within("logits", our_logits(ours, case), case.logits(double), case.logits(single))
    single.save_pretrained(tmp_path / "theirs")
    again = Transformer.from_pretrained(tmp_path / "base")
    again.load_adapter(tmp_path / "theirs")
    assert again.trainable_parameters().keys() == ours.trainable_parameters().keys()
    assert np.array_equal(our_logits(again, case), our_logits(ours, case))


def test_an_edited_file_means_what_it_says(tmp_path, rng):
    """Our own file counts as long as peft's agree with it."""
    base = Transformer(ModelConfig.preset("gpt-nano", num_decoder_layers=1, hidden_size=32))
    ids = rng.integers(0, 65, (2, 5))
    model = Transformer(base.config)
    model.add_lora(LoraConfig(rank=2, alpha=4.0, targets=["q", "v", "out"]))
    for parameter in model.trainable_parameters().values():
        write(parameter, 0.1 * rng.standard_normal(parameter.shape))
    model.save_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text())
    assert values["r"] == 2
    assert values["rank_pattern"] == {"c_attn": 4}
    assert values["target_modules"] == ["attn.c_proj", "c_attn"]
    edited = tmp_path / "edited"
    edited.mkdir()
    for name in ("adapter_model.safetensors", "llmcore_adapter.json"):
        shutil.copy(tmp_path / name, edited)
    values |= {"lora_alpha": 8, "alpha_pattern": {"c_attn": 16}}
    (edited / "adapter_config.json").write_text(json.dumps(values))
    base.load_adapter(edited)
    # q, k and v now have the stacked A each, out is padded to their rank; the scale is twice 2.
    assert base.config.lora == LoraConfig(rank=4, alpha=16.0, targets=["q", "k", "v", "out"])
    lora = LoraConfig(rank=2, alpha=8.0, targets=["q", "v", "out"])
    doubled = Transformer(dataclasses.replace(model.config, lora=lora))
    for name, parameter in doubled.parameters().items():
        write(parameter, model.parameters()[name].numpy())
    assert np.allclose(base(ids), doubled(ids), rtol=0, atol=1e-5)
    assert not np.allclose(base(ids), model(ids), rtol=0, atol=1e-3)


def test_what_else_was_trained_goes_with_the_adapter(tmp_path, rng):
    make, _, _ = FAMILIES["llama"]
    torch.manual_seed(1)
    make().save_pretrained(tmp_path / "base")
    ours = Transformer.from_pretrained(tmp_path / "base")
    ours.add_lora(LoraConfig(rank=2))
    ours.unfreeze("decoder.norm.*")
    for parameter in ours.trainable_parameters().values():
        write(parameter, parameter.numpy() + 0.1 * rng.standard_normal(parameter.shape))
    ours.save_adapter(tmp_path / "ours")
    again = Transformer.from_pretrained(tmp_path / "base")
    again.load_adapter(tmp_path / "ours")
    assert again.trainable_parameters().keys() == ours.trainable_parameters().keys()
    ids = rng.integers(0, V, (B, T))
    assert np.array_equal(ours(ids), again(ids))
    theirs = type(make()).from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    with torch.no_grad():
        single = theirs(torch.tensor(ids)).logits.numpy()
        exact = theirs.double()(torch.tensor(ids)).logits.numpy()
    assert_within("logits", ours(ids), exact, single)


def rewrite(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def drop_tensor(folder):
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file)


def drop_module(folder):
    from safetensors.numpy import load_file, save_file

    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t for n, t in tensors.items() if "layers.1.self_attn.q_proj" not in n}, file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: rewrite(f, peft_type="IA3"), ["peft_type", "IA3"]),
        (lambda f: rewrite(f, use_dora=True), ["use_dora", "True"]),
        (lambda f: rewrite(f, alpha_pattern={"q_proj": 3}), ["one scale", "q_proj"]),
        (lambda f: rewrite(f, lora_alpha="8"), ["lora_alpha", "str"]),
        (lambda f: rewrite(f, lora_dropout=2.0), ["adapter_config.json", "dropout"]),
        (drop_tensor, ["q_proj", "expected A [r, 48]"]),
        (drop_module, ["lacks 1", "model.layers.1.self_attn.q_proj"]),
        (lambda f: (f / "adapter_model.safetensors").unlink(), ["adapter_model.safetensors"]),
        (lambda f: (f / "adapter_config.json").write_text("{"), ["adapter_config.json", "JSON"]),
    ],
)
def test_files_that_do_not_fit_are_named(damage, words, tmp_path):
    pair = Pair("llama-qv", tmp_path)
    damage(tmp_path / "adapter")
    model = Transformer.from_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError) as raised:
        model.load_adapter(tmp_path / "adapter")
    assert all(word in str(raised.value) for word in words), raised.value
    assert model.config.lora is None
    assert pair.ours.config.lora is not None


@pytest.mark.filterwarnings("ignore:save_pretrained")
def test_adapters_of_another_model(tmp_path):
    pair = Pair("llama-qv", tmp_path)
    other = Transformer(ModelConfig.preset("llama-tiny", num_decoder_layers=1))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        other.load_adapter(tmp_path / "adapter")
    pair.ours.save_pretrained(tmp_path / "whole")
    with pytest.raises(CheckpointError, match="directory of their own"):
        pair.ours.save_adapter(tmp_path / "whole")
    again = Transformer.from_pretrained(tmp_path / "base")
    again.add_lora(LoraConfig(rank=9))
    with pytest.raises(ConfigError, match="other adapters"):
        again.load_adapter(tmp_path / "adapter")
