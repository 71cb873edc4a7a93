"""Kernels of rows on a GPU, or its emulation, beside the CPU's: odd sizes, both types, in place."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import _core

pytestmark = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
SHAPES = [
    (70, 1), (3, 3), (2, 31), (7, 32), (70, 33), (5, 100), (9, 264), (7, 768), (3, 1000),
    (2, 5120), (2, 9001), (2, 17_000), (1500, 9),
]  # fmt: skip
ROUNDING = {"float32": 0.0, "bfloat16": 2.0**-8}


class Place:
    """A device: NumPy arrays become tensors there, activations of them bfloat16 on a GPU."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def parameter(self, array):
        return None if array is None else llmcore.tensor(array, device=self.device)

    def activation(self, array):
        narrow = llmcore.tensor(array, self.dtype, device=self.device)
        if self.device == "cuda":
            return narrow
        return llmcore.tensor(narrow.numpy(), device="cpu")  # the same numbers


def assert_same(dtype, compute, scale=3e-6):
    """`compute(place)` gives activations and float32 results: as on the CPU, but for rounding."""
    want, got = (compute(Place(device, dtype)) for device in ("cpu", "cuda"))
    for expected, tensor in zip(want, got, strict=True):
        exact, actual = expected.numpy().astype(np.float64), tensor.numpy()
        assert np.array_equal(np.isnan(exact), np.isnan(actual))
        allowed = scale * np.nanmax(np.abs(exact)) + ROUNDING[tensor.dtype] * np.abs(exact)
        assert not (np.abs(exact - actual) > allowed).any()


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rms", [False, True])
def test_norm(rng, shape, rms, in_place, dtype):
    rows, width = shape
    x, dy = normal(rng, rows, width, scale=3) + np.float32(1), normal(rng, rows, width)
    weight, bias = normal(rng, width), None if rms else normal(rng, width)
    if width == 1 and not rms:
        pytest.skip("all of it would be rounding")

    def compute(place):
        there, gradient = place.activation(x), place.activation(dy)
        mean, rstd = (place.parameter(np.zeros(rows, np.float32)) for _ in range(2))
        mean = None if rms else mean
        sums = [place.parameter(each) for each in (weight, bias)]  # to which gradients are added
        y, dx = (there, gradient) if in_place else (place.activation(dy), place.activation(x))
        _core.norm_forward(
            rms=rms, eps=1e-5, x=there, weight=place.parameter(weight),
            bias=place.parameter(bias), y=y, mean=mean, rstd=rstd,
        )  # fmt: skip
        _core.norm_backward(
            rms=rms, dy=gradient, x=place.activation(x), weight=place.parameter(weight),
            mean=mean, rstd=rstd, dx=dx, dweight=sums[0], dbias=sums[1],
        )  # fmt: skip
        return [each for each in (y, mean, rstd, dx, *sums) if each is not None]

    assert_same(dtype, compute)


# More rows than blocks, of one pack a thread, of two, of four, and too wide for registers; not all
# of them whole packs.
MANY_ROWS = [(500, 2048), (430, 2050), (300, 4104), (270, 6147), (260, 7176), (261, 9000)]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", MANY_ROWS, ids=str)
@pytest.mark.parametrize("accumulate", [False, True])
def test_norm_backward_of_many_rows(rng, shape, accumulate, dtype):
    rows, width = shape
    x, dy, before = (normal(rng, rows, width) for _ in range(3))
    mean, rstd = x.mean(axis=1), 1 / x.std(axis=1)
    weight, bias = normal(rng, width), normal(rng, width)

    def compute(place):
        dx = place.activation(before)
        sums = [place.parameter(each) for each in (weight, bias)]
        _core.norm_backward(
            rms=False, dy=place.activation(dy), x=place.activation(x),
            weight=place.parameter(weight), mean=place.parameter(mean),
            rstd=place.parameter(rstd), dx=dx, dweight=sums[0], dbias=sums[1],
            accumulate=accumulate,
        )  # fmt: skip
        return [dx, *sums]

    assert_same(dtype, compute)


@pytest.mark.parametrize("width", [24, 100, 768, 1600])
def test_a_row_does_not_depend_on_how_many_there_are(rng, width):
    place = Place("cuda", "bfloat16")
    x, weight = normal(rng, 1100, width), place.parameter(normal(rng, width))

    def normed(rows):
        y = place.activation(rows)
        _core.norm_forward(rms=False, eps=1e-5, x=place.activation(rows), weight=weight, y=y)
        return y.numpy()

    assert np.array_equal(normed(x)[5:7], normed(x[5:7]))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", SHAPES[:8], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", ["none", "relu", "gelu", "gelu_tanh", "silu"])
def test_activations(rng, shape, name, in_place, dtype):
    rows, width = shape
    x, dy = normal(rng, rows, 2 * width, scale=5), normal(rng, rows, 2 * width)
    x.reshape(-1)[:2] = [-50, 50]

    def compute(place):
        there, gradient = place.activation(x), place.activation(dy)
        y = there if in_place else place.activation(dy)
        dx = gradient if in_place else place.activation(x)
        _core.activation_backward(activation=name, dy=gradient, x=there, dx=dx)
        _core.activation_forward(activation=name, x=there, y=y)
        gate, up = place.activation(x[:, :width].copy()), place.activation(x[:, width:].copy())
        gated, small = place.activation(x[:, :width].copy()), place.activation(dy[:, :width].copy())
        dgate, dup = (gate, up) if in_place else map(place.activation, np.split(dy, 2, axis=1))
        _core.gated_forward(activation=name, gate=gate, up=up, y=gated)
        _core.gated_backward(activation=name, dy=small, gate=gate, up=up, dgate=dgate, dup=dup)
        return [y, dx, gated, dgate, dup]

    assert_same(dtype, compute)


# The widest rows are more than a block keeps of them in shared memory.
@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("classes", [1, 33, 264, 4099, 50_000, 50_257])
@pytest.mark.parametrize("options", ["plain", "smoothed", "weighted", "both"])
@pytest.mark.parametrize("in_place", [False, True])
def test_cross_entropy(rng, classes, options, in_place, dtype):
    targets = np.array([0, classes - 1, -1, classes // 2, classes // 3], np.int32)
    logits, scale = normal(rng, len(targets), classes, scale=3), normal(rng, len(targets))
    weight = rng.random(classes).astype(np.float32) if options in ("weighted", "both") else None

    def compute(place):
        there = place.activation(logits)
        losses, dlogits = place.parameter(scale), there if in_place else place.activation(logits)
        _core.cross_entropy(
            logits=there, targets=place.parameter(targets), losses=losses, dlogits=dlogits,
            label_smoothing=0.1 if options in ("smoothed", "both") else 0.0,
            class_weight=place.parameter(weight), row_scale=place.parameter(scale),
        )  # fmt: skip
        return [losses, dlogits]

    assert_same(dtype, compute)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 3, 64), (2, 1, 4, 80), (1, 3, 2, 66)])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("part", [0.5, 1.0])
def test_rope(rng, shape, interleaved, in_place, part, dtype):
    half = int(shape[-1] * part) // 2
    x, other, cos, sin = (normal(rng, *s) for s in (shape, shape, (11, half), (11, half)))
    positions = rng.integers(0, 11, (shape[0], shape[2]), np.int32)

    def compute(place):
        there = place.activation(x)
        y = there if in_place else place.activation(other)
        _core.rope(
            x=there, y=y, cos=place.parameter(cos), sin=place.parameter(sin),
            positions=place.parameter(positions), interleaved=interleaved, inverse=False,
        )  # fmt: skip
        return [y]

    assert_same(dtype, compute, scale=3e-7)


@pytest.mark.parametrize("size", [1, 3, 4, 1027, 65_537])
def test_adamw(rng, size):
    param, grad, m, v = (normal(rng, size) for _ in range(4))

    def compute(place):
        tensors = [place.parameter(each) for each in (param, m, v * v)]
        _core.adamw(
            param=tensors[0], grad=place.parameter(grad), m=tensors[1], v=tensors[2], lr=3e-3,
            beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, step=3, grad_scale=0.5,
        )  # fmt: skip
        return tensors

    assert_same("float32", compute, scale=1e-6)
