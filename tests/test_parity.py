"""GPT-2 and Llama against PyTorch: logits, loss, every gradient, a training trajectory, both ways.

The exact values are PyTorch's in float64; our error may be twice PyTorch's own in float32.
"""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import TrainStep, Transformer
from llmcore.objectives import CausalLM
from tolerance import EPS, FLOOR_ULPS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, V = 3, 17, 61


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=32, n_embd=48, n_layer=3, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(**changes):
    settings = {
        "vocab_size": V, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, **changes}))


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "gpt2": gpt2,
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "llama-wide-heads": lambda: llama(head_dim=20),
    "llama-linear": lambda: llama(rope_parameters={
        "rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}),
    "llama-llama3": lambda: llama(rope_parameters=LLAMA3),
    "llama-yarn": lambda: llama(rope_parameters=YARN),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(
        vocab_size=V, hidden_size=48, intermediate_size=80, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=64,
        sliding_window=5, attn_implementation="eager")),
}  # fmt: skip


class Pair:
    """The same model in PyTorch (float32 and float64) and here."""

    def __init__(self, make, directory):
        torch.manual_seed(1)
        self.single = make()
        with torch.no_grad():  # biases and norms start as constants: make every parameter count
            for parameter in self.single.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        self.single.save_pretrained(directory)
        self.ours = Transformer.from_pretrained(directory)
        self.double = make().double()
        self.double.load_state_dict(self.single.state_dict())

    def torch_loss(self, model, ids):
        logits = model(torch.tensor(ids[:, :-1])).logits
        target = torch.tensor(ids[:, 1:]).reshape(-1)
        return torch.nn.functional.cross_entropy(logits.reshape(-1, V), target)

    def gradients(self, model, ids, directory):
        """The gradients of a PyTorch model under our names, by way of our own loader."""
        model.zero_grad()
        self.torch_loss(model, ids).backward()
        holder = type(model)(model.config).to(model.dtype)
        holder.load_state_dict(model.state_dict())
        with torch.no_grad():
            for parameter, source in zip(holder.parameters(), model.parameters(), strict=True):
                parameter.copy_(source.grad)
        return names_to_arrays(holder, directory)


def names_to_arrays(model, directory):
    """A PyTorch model's tensors under our names, float64: two float32 halves travel by file."""
    from llmcore import hf

    halves = []
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for half in range(2):
        part = type(model)(model.config).float()
        rest = {
            name: value if half == 0 else value.double() - value.float().double()
            for name, value in values.items()
        }
        part.load_state_dict({name: value.float() for name, value in rest.items()})
        part.save_pretrained(directory / f"half{half}")
        config = hf.load_config(directory / f"half{half}")
        state = hf.load_state(directory / f"half{half}", config)
        halves.append({name: np.array(array, np.float64) for name, array in state})
    return {name: halves[0][name] + halves[1][name] for name in halves[0]}


def assert_within(name, got, exact, single):
    got, exact, single = (np.asarray(x, np.float64) for x in (got, exact, single))
    allowed = 2 * np.abs(single - exact).max() + FLOOR_ULPS * EPS["float32"] * np.abs(exact).max()
    error = np.abs(got - exact).max()
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    return Pair(MODELS[request.param], tmp_path / "hf")


@pytest.fixture
def ids(rng):
    return rng.integers(0, V, (B, T + 1))


def test_logits_loss_and_all_gradients(pair, ids, tmp_path):
    batch = CausalLM()(ids)
    with torch.no_grad():
        want = [m(torch.tensor(ids[:, :-1])).logits.numpy() for m in (pair.double, pair.single)]
        losses = [pair.torch_loss(m, ids).item() for m in (pair.double, pair.single)]
    assert_within("logits", pair.ours(ids[:, :-1]), *want)
    assert_within("loss", pair.ours.loss(batch), *losses)
    assert_within("loss", pair.ours.loss_and_grad(batch), *losses)
    exact = pair.gradients(pair.double, ids, tmp_path)
    single = pair.gradients(pair.single, ids, tmp_path)
    ours = pair.ours.gradients()
    assert set(ours) == set(exact)
    for name, gradient in ours.items():
        assert_within(name, gradient, exact[name], single[name])


def test_ten_adamw_steps(pair, rng, tmp_path):
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = TrainStep(pair.ours, max_grad_norm=1.0, **settings)
    batches = rng.integers(0, V, (10, B, T + 1))
    got = np.array([(r.loss, r.grad_norm) for r in (ours(CausalLM()(ids)) for ids in batches)])
    exact = torch_trajectory(pair, pair.double, batches, settings)
    # Rounding grows over the steps, by chance more or less: the larger of two runs is the measure.
    start = {name: tensor.clone() for name, tensor in pair.single.state_dict().items()}
    errors = []
    for implementation in ("eager", "sdpa"):
        pair.single.load_state_dict(start)
        pair.single.set_attn_implementation(implementation)
        errors.append(abs(torch_trajectory(pair, pair.single, batches, settings) - exact).max(0))
    allowed = 2 * np.maximum(*errors) + FLOOR_ULPS * EPS["float32"] * exact.max(0)
    error = abs(got - exact).max(0)
    assert (error <= allowed).all(), f"loss and norm: error {error}, allowed {allowed}"


def torch_trajectory(pair, model, batches, settings):
    """Loss and gradient norm of each step, [steps, 2]."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim >= 2) is decay],
         "weight_decay": settings["weight_decay"] if decay else 0.0}
        for decay in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, **settings)
    steps = []
    for ids in batches:
        optimizer.zero_grad()
        loss = pair.torch_loss(model, ids)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return np.array(steps)


def test_saved_by_us_loads_in_transformers(pair, ids, tmp_path):
    pair.ours.save_pretrained(tmp_path / "ours")
    theirs, report = type(pair.single).from_pretrained(
        tmp_path / "ours",
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation=pair.single.config._attn_implementation,
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, tensor in pair.single.state_dict().items():
        assert torch.equal(tensor, theirs.state_dict()[name]), name
    with torch.no_grad():
        logits = theirs(torch.tensor(ids[:, :-1])).logits
        assert torch.equal(logits, pair.single(torch.tensor(ids[:, :-1])).logits)
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert np.array_equal(again(ids[:, :-1]), pair.ours(ids[:, :-1]))
    assert llmcore.ModelConfig.from_dict(again.config.to_dict()) == pair.ours.config
