"""Every architecture against transformers: logits, loss, every gradient, a trajectory, both ways.

The exact values are PyTorch's in float64; our error may be twice PyTorch's own in float32.
"""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import TrainStep, Transformer
from tolerance import EPS, FLOOR_ULPS

parity = pytest.importorskip("parity", reason="needs torch and transformers")
from parity import MODELS, PAIRS, Pair, assert_within, make_case, our_logits, torch  # noqa: E402


@pytest.fixture(params=MODELS)
def pair(request, tmp_path):
    return Pair(request.param, tmp_path / "hf")


def test_logits_loss_and_all_gradients(pair, rng, tmp_path):
    case = make_case(pair.name, rng)
    with torch.no_grad():
        want = [case.logits(pair.double), *pair.singles(case.logits)]
        losses = [case.loss(pair.double), *pair.singles(case.loss)]
    assert_within("logits", our_logits(pair.ours, case), *want)
    assert_within("loss", pair.ours.loss(case.batch), *losses)
    assert_within("loss", pair.ours.loss_and_grad(case.batch), *losses)
    exact = pair.gradients(pair.double, case, tmp_path)
    singles = pair.singles(lambda model: pair.gradients(model, case, tmp_path))
    ours = pair.our_gradients()
    assert set(ours) == set(exact)
    for name, gradient in ours.items():
        if name in pair.constants:
            continue
        # A key's bias adds the same to all scores of a query, so that its gradient cancels.
        scale = exact[name.replace("bias", "weight")] if name.endswith("k.bias") else None
        assert_within(name, gradient, exact[name], *(one[name] for one in singles), scale=scale)


@pytest.mark.parametrize("pair", [name for name in MODELS if name not in PAIRS], indirect=True)
def test_ten_adamw_steps(pair, rng):
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    ours = TrainStep(pair.ours, max_grad_norm=1.0, **settings)
    cases = [make_case(pair.name, rng) for _ in range(10)]
    got = np.array([(r.loss, r.grad_norm) for r in (ours(case.batch) for case in cases)])
    exact = torch_trajectory(pair.double, cases, settings)
    start = {name: tensor.clone() for name, tensor in pair.single.state_dict().items()}

    def trajectory(model, rotation):
        model.load_state_dict(start)
        return torch_trajectory(model, [case.rotated(rotation) for case in cases], settings)

    # Rounding grows from step to step: PyTorch's own error is known from several orders of sums.
    errors = [
        abs(steps - exact).max(0)
        for rotation in range(3)
        for steps in pair.singles(lambda model: trajectory(model, rotation))  # noqa: B023
    ]
    allowed = 2 * np.max(errors, axis=0) + FLOOR_ULPS * EPS["float32"] * exact.max(0)
    error = abs(got - exact).max(0)
    assert (error <= allowed).all(), f"loss and norm: error {error}, allowed {allowed}"


def torch_trajectory(model, cases, settings):
    """Loss and gradient norm of each step, [steps, 2]."""
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim >= 2) is decay],
         "weight_decay": settings["weight_decay"] if decay else 0.0}
        for decay in (True, False)
    ]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, **settings)
    steps = []
    for case in cases:
        optimizer.zero_grad()
        loss = case.loss(model)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
    return np.array(steps)


def test_saved_by_us_loads_in_transformers(pair, rng, tmp_path):
    case = make_case(pair.name, rng)
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
        assert torch.equal(case.logits(theirs), case.logits(pair.single))
    again = Transformer.from_pretrained(tmp_path / "ours")
    assert np.array_equal(our_logits(again, case), our_logits(pair.ours, case))
    assert llmcore.ModelConfig.from_dict(again.config.to_dict()) == pair.ours.config
