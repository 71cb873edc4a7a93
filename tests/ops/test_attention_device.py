"""Attention of bfloat16 activations on a GPU: tensor cores where they fit, and what does not."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from attention_cases import DROPOUT, draw, kept_weights, run_core, tensors
from llmcore import _core
from reference import attention as reference

# Sizes as in attention_cases.py and what else is given: arrays by their shapes.
CASES = {
    "one": ((1, 1, 1, 1, 1, 8, 8), {}),
    "few keys": ((1, 1, 1, 130, 7, 64, 64), {}),
    "few queries": ((1, 4, 1, 3, 300, 64, 64), {"causal": True, "past": [297]}),
    "causal": ((2, 2, 2, 150, 150, 64, 64), {"causal": True}),
    "wide": ((1, 2, 2, 150, 150, 128, 128), {"causal": True}),
    "between": ((2, 4, 2, 65, 130, 80, 128), {}),
    "values of other widths": ((1, 4, 2, 33, 200, 64, 40), {"causal": True, "past": [150]}),
    "groups of three": ((2, 6, 2, 70, 90, 64, 64), {"causal": True, "past": [20, 3]}),
    "a group of many": ((1, 12, 1, 20, 40, 128, 128), {"causal": True, "past": [20]}),
    "window": ((2, 2, 1, 170, 170, 64, 64), {"causal": True, "window": (20, -1)}),
    "lengths": ((3, 2, 2, 90, 90, 64, 64), {"kv_lengths": [90, 33, 0]}),
    "prefix": ((2, 2, 2, 90, 90, 32, 32), {"causal": True, "prefix_lengths": [70, 3]}),
    "softcap": ((1, 2, 2, 80, 80, 64, 64), {"causal": True, "softcap": 2.0}),
    "negative scale": ((1, 2, 2, 70, 70, 64, 64), {"scale": -0.2}),
    "dropout": ((1, 2, 1, 80, 83, 16, 16), {"causal": True, **DROPOUT}),
    "dropout, wide": ((1, 2, 1, 80, 84, 128, 128), DROPOUT),
    "bias": ((2, 2, 2, 40, 80, 64, 64), {"bias": (1, 2, 40, 80)}),
    "shared bias": ((2, 2, 1, 40, 80, 128, 128), {"bias": (1, 2, 1, 80)}),
    "mask": ((2, 2, 2, 40, 80, 64, 64), {"mask": (2, 1, 40, 80)}),
    "no tensor cores": ((1, 2, 1, 70, 70, 33, 15), {"causal": True}),
    "widest": ((1, 2, 2, 70, 70, 256, 256), {"causal": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_against_float64(rng, name):
    sizes, options = CASES[name]
    options = {"scale": sizes[5] ** -0.5, **options}
    arrays = [llmcore.tensor(x, "bfloat16") for x in tensors(rng, sizes)]
    if arrays[0].device == "cpu":
        pytest.skip("the CPU's activations are float32")
    dropout = {key: options.pop(key) for key in DROPOUT if key in options}
    known, given = {}, {}
    for key, x in options.items():
        if key == "window":
            given["window_left"], given["window_right"] = known[key] = x
        elif key in ("bias", "mask"):
            known[key] = draw(rng, *x) if key == "bias" else rng.random(x) < 0.6
            given[key] = known[key] if key == "bias" else _core.as_tensor(known[key])
        elif isinstance(x, list):
            known[key], given[key] = np.array(x), _core.as_tensor(np.array(x, np.int32))
        else:
            known[key] = given[key] = x
    got = run_core(*arrays, dtype="bfloat16", **given, **dropout)
    again = run_core(*arrays, dtype="bfloat16", **given, **dropout)
    q, k, v, dout = (x.numpy().astype(np.float64) for x in arrays)
    keep = kept_weights(sizes, **dropout) if dropout else None
    bias = known.pop("bias", None)
    wanted = [
        reference.attention(q, k, v, keep, bias=bias, **known),
        *reference.attention_backward(dout, q, k, v, bias, keep, **known),
    ]
    for what, x, twin, want in zip(("out", "dq", "dk", "dv", "dbias"), got, again, wanted):  # noqa: B905
        error = np.linalg.norm(x - want)
        assert error <= 1e-2 * np.linalg.norm(want) + 1e-6, (what, error)
        assert np.array_equal(x, twin), what
