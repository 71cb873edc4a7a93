"""Losses against float64 and PyTorch."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import llmcore
from llmcore import ops
from reference import cross_entropy as reference
from tolerance import assert_matches

SHAPES = [(1, 1), (3, 5), (2, 9, 16), (33, 65), (5, 4099)]
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"weighted": True, "reduction": "sum"},
    {"weighted": True, "label_smoothing": 0.3, "ignore_index": 2},
    {"reduction": "none", "label_smoothing": 1.0, "ignore_index": -1},
]


def case(rng, shape, options, scale=3.0):
    """Logits, targets of which some are ignored, keyword arguments, gradient of the loss."""
    options = dict(options)
    logits = (rng.standard_normal(shape) * scale).astype(np.float32)
    targets = rng.integers(0, shape[-1], shape[:-1])
    targets.flat[1::3] = options.get("ignore_index", -100)
    if options.pop("weighted", False):
        options["weight"] = rng.random(shape[-1]).astype(np.float32) + np.float32(0.5)
    leading = shape[:-1] if options.get("reduction") == "none" else ()
    dloss = np.asarray(rng.standard_normal(leading), np.float32)
    return logits, targets, options, dloss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_cross_entropy(rng, shape, options):
    logits, targets, options, dloss = case(rng, shape, options)
    assert_matches(
        ops.cross_entropy(logits, targets, **options),
        reference.cross_entropy, logits, targets, **options,
    )  # fmt: skip
    assert_matches(
        ops.cross_entropy_backward(dloss, logits, targets, **options),
        reference.cross_entropy_backward, dloss, logits, targets, **options,
    )  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_torch(rng, options):
    torch = pytest.importorskip("torch")
    logits, targets, options, dloss = case(rng, (7, 50), options)
    leaf = torch.tensor(logits, requires_grad=True)
    theirs = dict(options)
    if "weight" in theirs:
        theirs["weight"] = torch.tensor(theirs["weight"])
    loss = torch.nn.functional.cross_entropy(leaf, torch.tensor(targets), **theirs)
    loss.backward(torch.tensor(dloss))
    ours = ops.cross_entropy(logits, targets, **options).numpy()
    assert ours == pytest.approx(loss.detach().numpy(), rel=2e-6, abs=2e-6)
    gradient = ops.cross_entropy_backward(dloss, logits, targets, **options).numpy()
    assert gradient == pytest.approx(leaf.grad.numpy(), abs=1e-6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_large_logits_are_stable(rng, options):
    logits, targets, options, dloss = case(rng, (9, 33), options, scale=1e4)
    loss = ops.cross_entropy(logits, targets, **options)
    assert_matches(loss, reference.cross_entropy, logits, targets, **options)
    dlogits = ops.cross_entropy_backward(dloss, logits, targets, **options)
    assert np.isfinite(dlogits.numpy()).all()


def test_certain_and_hopeless_targets():
    logits = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert ops.cross_entropy(logits, [0]).numpy() == 0.0
    assert ops.cross_entropy(logits, [1]).numpy() == 2e4
    impossible = np.array([[0.0, -np.inf]], np.float32)
    assert ops.cross_entropy(impossible, [1]).numpy() == np.inf
    assert np.array_equal(ops.cross_entropy_backward(1.0, impossible, [1]).numpy(), [[1, -1]])


def test_nothing_that_counts_gives_zero(rng):
    logits = rng.standard_normal((4, 6)).astype(np.float32)
    targets = np.full(4, -100)
    assert ops.cross_entropy(logits, targets).numpy() == 0.0
    assert not ops.cross_entropy_backward(1.0, logits, targets).numpy().any()
    dhidden, dweight, _ = ops.linear_cross_entropy_backward(1.0, logits, logits, targets)
    assert not dhidden.numpy().any()
    assert not dweight.numpy().any()
    empty = np.zeros((0, 6), np.float32)
    assert ops.cross_entropy(empty, np.zeros(0, int)).numpy() == 0.0


def test_ignored_targets_may_be_any_number(rng):
    logits = rng.standard_normal((3, 6)).astype(np.float32)
    for ignored in (-(2**40), -1, 0, 5, 6, 2**40):
        loss = ops.cross_entropy(logits, [ignored, 3, ignored], ignore_index=ignored)
        assert loss.numpy() == ops.cross_entropy(logits[1:2], [3]).numpy()


# The last case is cut into chunks of 256, 256 and 88 rows.
LINEAR = [((1, 1), 1), ((3, 5), 7), ((2, 9, 16), 65), ((600, 8), 16_500)]


def linear_case(rng, shape, classes):
    hidden = rng.standard_normal(shape).astype(np.float32)
    weight = rng.standard_normal((classes, shape[-1])).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    targets = rng.integers(0, classes, shape[:-1])
    targets.flat[2::5] = -100
    return hidden, weight, bias, targets


@pytest.mark.parametrize(("shape", "classes"), LINEAR)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_linear_cross_entropy(rng, shape, classes, smoothing):
    hidden, weight, bias, targets = linear_case(rng, shape, classes)
    for b in (None, bias):
        assert_matches(
            ops.linear_cross_entropy(hidden, weight, targets, bias=b, label_smoothing=smoothing),
            reference.linear_cross_entropy,
            hidden, weight, targets, bias=b, label_smoothing=smoothing,
        )  # fmt: skip
    dloss = np.float32(1.7)
    assert_matches(
        ops.linear_cross_entropy_backward(
            dloss, hidden, weight, targets, bias=bias, label_smoothing=smoothing
        ),
        reference.linear_cross_entropy_backward,
        np.asarray(dloss), hidden, weight, targets, bias=bias, label_smoothing=smoothing,
    )  # fmt: skip


@pytest.mark.cpu("its memory")
def test_logits_are_never_held_whole(rng):
    hidden, weight, _, targets = linear_case(rng, (2048, 4), 16_500)
    results = []

    def run():  # a thread has scratch of its own, which starts empty
        results.extend(ops.linear_cross_entropy_backward(1.0, hidden, weight, targets))

    llmcore._core.reset_peak_memory()
    before = llmcore.memory_stats()["current_bytes"]
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    grown = llmcore.memory_stats()["peak_bytes"] - before
    whole = 2048 * 16_500 * 4
    assert 0 < grown < whole // 2, f"{grown >> 20} MiB for logits of {whole >> 20} MiB"
    assert len(results) == 3


def test_gradients_accumulate_into_parameters_and_may_replace_hidden(rng):
    hidden, weight, bias, targets = linear_case(rng, (6, 5), 11)
    dhidden, dweight, dbias = ops.linear_cross_entropy_backward(
        1.0, hidden, weight, targets, bias=bias
    )
    in_place = llmcore.tensor(hidden)
    twice, bias_twice = llmcore.tensor(dweight), llmcore.tensor(dbias)
    llmcore._core.linear_cross_entropy(
        hidden=in_place, weight=llmcore.tensor(weight), bias=llmcore.tensor(bias),
        targets=llmcore.tensor(np.where(targets < 0, -1, targets).astype(np.int32)),
        label_smoothing=0.0, losses=llmcore.zeros(6),
        row_scale=llmcore.tensor(np.full(6, 1 / (targets >= 0).sum(), np.float32)),
        dhidden=in_place, dweight=twice, dbias=bias_twice,
    )  # fmt: skip
    assert np.array_equal(in_place.numpy(), dhidden.numpy())
    assert twice.numpy() == pytest.approx(2 * dweight.numpy(), rel=1e-6)
    assert bias_twice.numpy() == pytest.approx(2 * dbias.numpy(), rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_logit_scale(rng, scale):
    hidden, weight, bias, targets = linear_case(rng, (6, 5), 11)
    losses, dhidden, dweight = llmcore.zeros(6), llmcore.zeros([6, 5]), llmcore.zeros([11, 5])
    llmcore._core.linear_cross_entropy(
        hidden=llmcore.tensor(hidden), weight=llmcore.tensor(weight), bias=llmcore.tensor(bias),
        targets=llmcore.tensor(np.where(targets < 0, -1, targets).astype(np.int32)),
        label_smoothing=0.1, logit_scale=scale, losses=losses, row_scale=llmcore.tensor([1.0] * 6),
        dhidden=dhidden, dweight=dweight,
    )  # fmt: skip
    options = {"label_smoothing": 0.1, "reduction": "sum"}
    scaled = [hidden * np.float32(scale), weight, targets]
    one = np.ones((), np.float32)
    want = reference.linear_cross_entropy_backward(one, *scaled, bias=bias * scale, **options)
    total = reference.linear_cross_entropy(*scaled, bias=bias * scale, **options)
    assert losses.numpy().sum() == pytest.approx(total, rel=1e-5)
    assert dhidden.numpy() == pytest.approx(want[0] * scale, abs=1e-5)
    assert dweight.numpy() == pytest.approx(want[1], abs=1e-5)


@pytest.mark.cpu("bits that only it promises")
def test_results_do_not_depend_on_threads_or_neighbours(rng, threads):
    hidden, weight, bias, targets = linear_case(rng, (300, 24), 16_500)
    logits = (rng.standard_normal((50, 999)) * 3).astype(np.float32)
    classes = rng.integers(0, 999, 50)
    results = []
    for count in (1, 2, 3, 8):
        threads(count)
        tensors = [
            ops.cross_entropy(logits, classes, label_smoothing=0.1),
            ops.cross_entropy_backward(1.0, logits, classes, label_smoothing=0.1),
            ops.linear_cross_entropy(hidden, weight, targets, bias=bias),
            *ops.linear_cross_entropy_backward(1.0, hidden, weight, targets, bias=bias),
        ]
        results.append([t.numpy().tobytes() for t in tensors])
    assert all(result == results[0] for result in results)
    together = ops.cross_entropy(logits, classes, reduction="none").numpy()
    assert together[17] == ops.cross_entropy(logits[17], classes[17], reduction="none").numpy()
    counted = float((targets >= 0).sum())
    whole = ops.linear_cross_entropy_backward(counted, hidden, weight, targets)[0].numpy()
    alone = ops.linear_cross_entropy_backward(1.0, hidden[270], weight, targets[270])[0].numpy()
    assert np.array_equal(whole[270], alone)


# Of the classes, a GPU pads 33 and 129 to whole lines, not 128.
@pytest.mark.parametrize("classes", [33, 128, 129])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "biased": True}], ids=str)
def test_bfloat16_hidden_states(rng, classes, options):
    options = dict(options)
    hidden, weight, bias, targets = linear_case(rng, (21, 16), classes)
    hidden, weight, bias = (llmcore.tensor(x, "bfloat16") for x in (hidden, weight, bias))
    if biased := options.pop("biased", False):
        options["bias"] = bias
    loss = ops.linear_cross_entropy(hidden, weight, targets, **options)
    assert loss.dtype == "float32"
    gradients = ops.linear_cross_entropy_backward(1.0, hidden, weight, targets, **options)
    assert [None if x is None else x.dtype for x in gradients] == ["bfloat16"] * 2 + [
        "bfloat16" if biased else None
    ]
    plain, one = (hidden.numpy(), weight.numpy(), targets), np.ones((), np.float32)
    if biased:
        options["bias"] = bias.numpy()
    if hidden.device != "cpu":  # logits are bfloat16 too there: 2 ** -8 of each is what they err
        want = (
            reference.linear_cross_entropy(*plain, **options),
            *reference.linear_cross_entropy_backward(one, *plain, **options),
        )
        for got, exact in zip((loss, *gradients), want, strict=True):
            if got is None:
                continue
            error = np.linalg.norm(got.numpy() - exact)
            assert error <= 1e-2 * np.linalg.norm(exact)
        return
    assert_matches(loss, reference.linear_cross_entropy, *plain, **options)
    assert_matches(
        gradients, reference.linear_cross_entropy_backward, one, *plain, **options, dtype="bfloat16"
    )


LOGITS, WEIGHT = np.zeros((2, 4), np.float32), np.zeros((5, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: ops.cross_entropy(LOGITS, [1, 4]), IndexError, ["targets[1]", "[0, 4)", "got 4"]),
        (lambda: ops.cross_entropy(LOGITS, [-1, 0]), IndexError, ["targets[0]", "-100", "got -1"]),
        (lambda: ops.cross_entropy(LOGITS, [0]), ValueError, ["targets", "[2]", "[1]"]),
        (lambda: ops.cross_entropy(LOGITS, [0.0, 1.0]), TypeError, ["targets", "int64", "float32"]),
        (lambda: ops.cross_entropy(LOGITS, [0, 1], weight=[1.0]), ValueError, ["weight", "[4]"]),
        (lambda: ops.cross_entropy(LOGITS, [0, 1], reduction="avg"), ValueError, ["avg", "mean"]),
        (
            lambda: ops.cross_entropy(LOGITS, [0, 1], label_smoothing=1.5),
            ValueError,
            ["label_smoothing", "[0, 1]", "1.5"],
        ),
        (
            lambda: ops.cross_entropy_backward([1.0], LOGITS, [0, 1]),
            ValueError,
            ["cross_entropy_backward", "dloss", "[]", "[1]"],
        ),
        (
            lambda: ops.linear_cross_entropy(LOGITS, WEIGHT[:, :3], [0, 1]),
            ValueError,
            ["linear_cross_entropy", "weight", "[5, 4]", "[5, 3]"],
        ),
        (
            lambda: ops.linear_cross_entropy(LOGITS, WEIGHT, [0, 5]),
            IndexError,
            ["linear_cross_entropy", "targets[1]", "[0, 5)", "got 5"],
        ),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
