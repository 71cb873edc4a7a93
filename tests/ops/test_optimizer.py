"""AdamW and gradient clipping against float64, and AdamW against PyTorch's trajectory."""

from __future__ import annotations

import math

import numpy as np
import pytest

import llmcore
from llmcore import _core, ops
from reference import optimizer as reference
from tolerance import assert_matches

SIZES = [1, 3, 16, 257, 70_001]
SETTINGS = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}


def arrays(rng, shape):
    param, grad, m = (rng.standard_normal(shape).astype(np.float32) for _ in range(3))
    return param, grad, m * np.float32(0.1), (grad * grad * np.float32(0.5))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_adamw(rng, size, step):
    param, grad, m, v = arrays(rng, size)
    got = [param.copy(), m.copy(), v.copy()]
    ops.adamw_step(got[0], grad, got[1], got[2], **SETTINGS, step=step)
    assert_matches(tuple(got), reference.adamw, param, grad, m, v, *SETTINGS.values(), step)


def test_gradient_scale_comes_first(rng):
    param, grad, m, v = arrays(rng, 33)
    both = [[param.copy(), m.copy(), v.copy()] for _ in range(2)]
    ops.adamw_step(both[0][0], grad * np.float32(0.25), both[0][1], both[0][2], **SETTINGS, step=3)
    scaled = [_core.as_tensor(array) for array in both[1]]
    _core.adamw(
        param=scaled[0], grad=_core.as_tensor(grad), m=scaled[1], v=scaled[2], **SETTINGS,
        step=3, grad_scale=0.25,
    )  # fmt: skip
    for one, other in zip(both[0], scaled, strict=True):
        assert np.array_equal(one, other.numpy())


def test_ten_steps_of_pytorch(rng):
    torch = pytest.importorskip("torch")
    start = rng.standard_normal(1000).astype(np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.AdamW([weight], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    ours = [start.copy(), np.zeros_like(start), np.zeros_like(start)]
    exact = [array.astype(np.float64) for array in ours]
    for step in range(1, 11):
        grad = (rng.standard_normal(1000) * 10.0 ** rng.integers(-6, 2, 1000)).astype(np.float32)
        weight.grad = torch.from_numpy(grad.copy())
        theirs.step()
        ops.adamw_step(ours[0], grad, ours[1], ours[2], **SETTINGS, step=step)
        wide = grad.astype(np.float64)
        exact = list(reference.adamw(exact[0], wide, *exact[1:], *SETTINGS.values(), step))
        state = theirs.state[weight]
        for got, same, want in zip(
            ours, (weight.detach(), state["exp_avg"], state["exp_avg_sq"]), exact, strict=True
        ):
            allowed = 2 * np.abs(same.numpy() - want).max() + 2.0**-24 * np.abs(want).max()
            assert np.abs(got - want).max() <= allowed


def test_elements_depend_on_neither_threads_nor_neighbours(rng, threads):
    param, grad, m, v = arrays(rng, 200_003)
    results, norms = [], []
    for count in (1, 2, 3, 8):
        threads(count)
        got = [param.copy(), m.copy(), v.copy()]
        ops.adamw_step(got[0], grad, got[1], got[2], **SETTINGS, step=2)
        results.append([array.tobytes() for array in got])
        norms.append(_core.square_sum(_core.as_tensor(grad)))
    assert all(result == results[0] for result in results)
    assert all(norm == norms[0] for norm in norms)
    alone = [array[150_001:150_002].copy() for array in (param, m, v)]
    ops.adamw_step(alone[0], grad[150_001:150_002], alone[1], alone[2], **SETTINGS, step=2)
    assert np.frombuffer(results[0][0], np.float32)[150_001] == alone[0][0]


def test_adamw_takes_tensors_and_any_shape(rng):
    param, grad, m, v = arrays(rng, (3, 4, 5))
    tensors = [llmcore.tensor(array) for array in (param, m, v)]
    ops.adamw_step(tensors[0], grad, tensors[1], tensors[2], **SETTINGS, step=1)
    ops.adamw_step(param, grad, m, v, **SETTINGS, step=1)
    for tensor, array in zip(tensors, (param, m, v), strict=True):
        assert np.array_equal(tensor.numpy(), array)


def test_adamw_updates_pytorch_tensors(rng):
    torch = pytest.importorskip("torch")
    param, grad, m, v = (torch.from_numpy(array) for array in arrays(rng, 7))
    before = param.clone()
    ops.adamw_step(param, grad, m, v, **SETTINGS, step=1)
    assert not torch.equal(before, param)


def test_nothing_to_update():
    none = np.zeros(0, np.float32)
    ops.adamw_step(none, none, none, none, lr=0.1, step=1)
    assert ops.clip_grad_norm(none, 1.0) == 0.0
    assert ops.clip_grad_norm([], 1.0) == 0.0


@pytest.mark.parametrize("size", [1, 5, 64, 65, 65_536, 65_537, 1_000_003])
def test_square_sum_is_exact_to_double(rng, size):
    x = rng.standard_normal(size).astype(np.float32) * np.float32(1e20)  # squares overflow float32
    exact = math.fsum(float(value) ** 2 for value in x)
    assert abs(_core.square_sum(_core.as_tensor(x)) - exact) <= 1e-12 * exact


@pytest.mark.parametrize("given", [list, tuple, iter, lambda g: dict(enumerate(g)), lambda g: g])
def test_gradients_come_in_any_container(rng, given):
    grads = list(rng.standard_normal((3, 5), dtype=np.float32))
    norm = np.linalg.norm(grads)
    assert ops.clip_grad_norm(given(grads), 0.5) == pytest.approx(norm)
    assert np.linalg.norm(grads) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e9, math.inf])
def test_clip_grad_norm(rng, max_norm):
    grads = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (1,), (7, 2, 9))]
    clipped = [grad.copy() for grad in grads]
    expected, norm = reference.clip_grad_norm(grads, max_norm)
    assert ops.clip_grad_norm(clipped, max_norm) == pytest.approx(norm, rel=1e-12)
    for got, want, grad in zip(clipped, expected, grads, strict=True):
        assert np.abs(got - want).max() <= 2 * 2.0**-24 * np.abs(grad).max()
        assert np.array_equal(got, grad) == (max_norm > norm)
    assert ops.clip_grad_norm(clipped[0], 0.25) == pytest.approx(
        np.linalg.norm(expected[0].astype(np.float64)), rel=1e-6
    )


def test_clip_grad_norm_is_pytorchs(rng):
    torch = pytest.importorskip("torch")
    grads = [rng.standard_normal(size).astype(np.float32) for size in (100, 33)]
    theirs = [torch.nn.Parameter(torch.zeros(len(grad))) for grad in grads]
    for weight, grad in zip(theirs, grads, strict=True):
        weight.grad = torch.from_numpy(grad.copy())
    norm = torch.nn.utils.clip_grad_norm_(theirs, 1.5)
    assert ops.clip_grad_norm(grads, 1.5) == pytest.approx(norm.item(), rel=1e-6)
    for weight, grad in zip(theirs, grads, strict=True):
        np.testing.assert_allclose(grad, weight.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_is_told_and_changes_nothing(bad):
    grad = np.array([1, bad, 3], np.float32)
    before = grad.tobytes()
    assert not math.isfinite(ops.clip_grad_norm(grad, 1.0))
    assert grad.tobytes() == before


def read_only(array):
    array.flags.writeable = False
    return array


F32 = np.float32


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("param", np.zeros((4, 4), F32)[:, 0], ValueError, ["in place", "contiguous"]),
        ("param", read_only(np.zeros(4, F32)), ValueError, ["in place", "read-only"]),
        ("m", [0.0] * 4, TypeError, ["in place", "NumPy array"]),
        ("v", np.zeros(4), TypeError, ["in place", "float64"]),
        ("m", np.zeros(4, ">f4"), ValueError, ["in place"]),
        ("v", np.zeros(3, F32), ValueError, ["[4]", "[3]"]),
        ("grad", np.zeros((2, 2), F32), ValueError, ["[4]", "[2, 2]"]),
        ("grad", np.zeros(4, np.int32), TypeError, ["float32", "int32"]),
        ("param", llmcore.zeros(4, "bfloat16"), TypeError, ["float32", "bfloat16"]),
        ("lr", -1.0, ValueError, ["-1"]),
        ("lr", math.nan, ValueError, ["nan"]),
        ("beta1", 1.0, ValueError, ["[0, 1)"]),
        ("beta2", -0.1, ValueError, ["-0.1"]),
        ("eps", -1e-8, ValueError, ["-1e-08"]),
        ("weight_decay", -0.5, ValueError, ["-0.5"]),
        ("step", 0, ValueError, ["from 1", "0"]),
    ],
)
def test_bad_adamw_arguments_are_named(name, value, error, words):
    args = {each: np.ones(4, F32) for each in ("param", "grad", "m", "v")}
    args |= {"lr": 0.1, "step": 1, name: value}
    with pytest.raises(error) as raised:
        ops.adamw_step(**args)
    assert all(word in str(raised.value) for word in [name, *words]), raised.value
    for each in {"param", "m", "v"} - {name}:
        assert (args[each] == 1).all()  # nothing was written


@pytest.mark.parametrize(
    ("grads", "max_norm", "error", "words"),
    [
        ([np.ones(3, F32), np.ones(6, F32)[::2]], 1.0, ValueError, ["grads[1]", "contiguous"]),
        (np.ones(3), 1.0, TypeError, ["grads", "float32"]),
        (np.ones(3, F32), -1.0, ValueError, ["max_norm", "-1"]),
        (np.ones(3, F32), math.nan, ValueError, ["max_norm", "nan"]),
    ],
)
def test_bad_clip_arguments_are_named(grads, max_norm, error, words):
    with pytest.raises(error) as raised:
        ops.clip_grad_norm(grads, max_norm)
    assert all(word in str(raised.value) for word in words), raised.value
