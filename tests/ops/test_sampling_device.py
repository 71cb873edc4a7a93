"""Choosing tokens on a GPU, or its emulation: against NumPy, and beside the CPU's choices."""

from __future__ import annotations

import numpy as np
import pytest

import llmcore
from llmcore import DeviceError, ShapeError, _core
from reference import sampling as reference

needs_cuda = pytest.mark.skipif(
    not llmcore.cuda_available(), reason=llmcore.device_info()["cuda"]["reason"]
)
SIZES = [1, 2, 33, 1000, 2049, 50257]
FINE, NOT_FINITE, NOTHING_LEFT = range(3)
PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def there(logits):
    return _core.as_tensor(np.ascontiguousarray(logits, np.float32)).to(device="cuda")


def best(logits, count):
    """(ids, log-probabilities, failures), each [N, count]."""
    found = _core.best_tokens(logits=there(logits), count=count)
    return tuple(np.array(each).reshape(len(logits), count) for each in found)


def sample(logits, uniforms, rows=None, **values):
    """The same, [n]: with one row of settings for each of `uniforms`."""
    rows = np.zeros(len(uniforms), int) if rows is None else rows
    how = (PLAIN | values).values()
    settings = [(int(row), *how, float(u)) for row, u in zip(rows, uniforms, strict=True)]
    return tuple(map(np.array, _core.sample_tokens(logits=there(logits), settings=settings)))


def log_softmax(logits):
    z = np.asarray(logits, np.float64)
    highest = z.max(-1, keepdims=True)
    return z - highest - np.log(np.exp(z - highest).sum(-1, keepdims=True))


def weights_of(row, temperature=1.0, **values):
    """The probabilities of what may be sampled, unnormalised."""
    with np.errstate(over="ignore"):
        z = (row.astype(np.float32) / np.float32(temperature)).astype(np.float64)
    values["top_p"] = max(values.get("top_p", 1.0), 1e-300)
    return np.where(reference.kept(z, **values), np.exp(z - z.max()), 0)


def rows_of_all_kinds(rng, classes):
    """Wide and narrow, of one sign and of both, with ties, without most of their tokens."""
    normal = rng.standard_normal((8, classes))
    logits = normal * np.array([[3], [0.01], [30], [1], [2], [1], [0], [5]])
    logits[3] -= 80
    logits[4] = np.round(logits[4])
    logits[5, rng.random(classes) < 0.5] = -np.inf
    logits[7, rng.random(classes) < 0.3] = np.finfo(np.float32).min
    logits[[5, 7], classes // 2] = 1
    most = 8 if classes < 10000 else 3  # for the emulation's sake
    return logits[rng.permutation(8)[:most]].astype(np.float32)


# ---------------------------------------------------------------------------- the best tokens


@needs_cuda
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("count", [1, 2, 7, 300, 2048])
def test_best_tokens_are_those_of_sorting(rng, classes, count):
    logits = rows_of_all_kinds(rng, classes)
    count = min(count, classes)
    ids, log_probabilities, failures = best(logits, count)
    order = np.lexsort((np.broadcast_to(np.arange(classes), logits.shape), -logits))[:, :count]
    assert np.array_equal(ids, order)
    assert not failures.any()
    want = np.take_along_axis(log_softmax(logits), order, 1)
    np.testing.assert_allclose(log_probabilities, want, rtol=1e-6, atol=1e-5)


@needs_cuda
def test_more_equal_tokens_than_are_gathered():
    """A tie goes to the lower ids, also where more tie than a block holds."""
    logits = np.zeros((2, 50257), np.float32)
    logits[0, 40000:40010] = 1
    logits[1, ::2] = -0.0
    logits[1, -1] = 1
    ids, _, _ = best(logits, 100)
    assert ids[0].tolist() == [*range(40000, 40010), *range(90)]
    assert ids[1].tolist() == [50256, *range(99)]


@needs_cuda
def test_a_row_without_any_token_has_none_that_is_likely():
    logits = np.full((2, 40), -np.inf, np.float32)
    logits[1, 13] = 2
    ids, log_probabilities, failures = best(logits, 3)
    assert ids.tolist() == [[0, 1, 2], [13, 0, 1]]
    assert log_probabilities.tolist() == [[-np.inf] * 3, [0, -np.inf, -np.inf]]
    assert not failures.any()


@needs_cuda
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("place", [0, 1023, 4999])
def test_damaged_rows_are_told(rng, bad, count, place):
    logits = rng.standard_normal((3, 5000)).astype(np.float32)
    logits[1, place] = bad
    _, log_probabilities, failures = best(logits, count)
    assert (failures == np.array([[FINE], [NOT_FINITE], [FINE]])).all()
    assert (np.isnan(log_probabilities) == (failures == NOT_FINITE)).all()
    _, log_probabilities, failures = sample(logits, [0.5] * 3, rows=range(3), top_k=count)
    assert failures.tolist() == [FINE, NOT_FINITE, FINE]
    assert (np.isnan(log_probabilities) == (failures == NOT_FINITE)).all()


# ---------------------------------------------------------------------------- sampling

RESTRICTIONS = [
    {}, {"top_k": 1}, {"top_k": 5}, {"top_k": 3000}, {"top_k": 10**6}, {"top_p": 0.0},
    {"top_p": 0.3}, {"top_p": 0.9}, {"top_p": 0.9999}, {"min_p": 0.1}, {"min_p": 1.0},
    {"top_k": 50, "top_p": 0.95}, {"top_k": 4000, "top_p": 0.9}, {"temperature": 0.3},
    {"temperature": 0.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 3.0, "top_p": 0.5},
]  # fmt: skip


@needs_cuda
@pytest.mark.parametrize("classes", SIZES)
@pytest.mark.parametrize("values", RESTRICTIONS, ids=str)
def test_samples_are_where_the_distribution_says(rng, classes, values):
    """The id that `uniform` falls to, unless it is within rounding of a border."""
    logits = rows_of_all_kinds(rng, classes)
    rows = rng.permutation(len(logits))
    uniforms = rng.random(rows.size)
    ids, log_probabilities, failures = sample(logits, uniforms, rows, **values)
    assert not failures.any()
    np.testing.assert_allclose(
        log_probabilities, log_softmax(logits)[rows, ids], rtol=1e-6, atol=1e-5
    )
    for row, u, token in zip(rows, uniforms, ids, strict=True):
        weights = weights_of(logits[row], **values)
        ends = np.cumsum(weights) / weights.sum()
        assert weights[token] > 0
        assert ends[token] - weights[token] / weights.sum() - 1e-5 <= u <= ends[token] + 1e-5


@needs_cuda
@pytest.mark.parametrize("top_p", [0.0, 0.2, 0.5, 0.51, 0.99])
def test_ties_of_top_p_go_to_the_lower_ids(top_p):
    """Of 5000 equal tokens the first, as many as their probabilities reach top_p."""
    logits = np.zeros((1, 5003), np.float32)
    logits[0, [0, 77, 5002]] = -30  # e^-30 is less than all roundings
    kept = max(1, int(np.ceil(top_p * 5000)))
    ids = [i for i in range(5003) if i not in (0, 77, 5002)][:kept]
    drawn, _, _ = sample(logits, [0.0, 0.5, 1 - 2.0**-53], top_p=top_p)
    assert drawn.tolist() == [ids[0], ids[int(0.5 * kept)], ids[-1]]


@needs_cuda
def test_ties_of_top_k_all_stay():
    logits = np.zeros((1, 300), np.float32)
    logits[0, 200] = 1e-3
    drawn, _, _ = sample(logits, [0.0, 1 - 2.0**-53], top_k=2)
    assert drawn.tolist() == [0, 299]


@needs_cuda
@pytest.mark.parametrize(
    "values", [{}, {"top_k": 6}, {"top_p": 0.8}, {"temperature": 2.0}], ids=str
)
def test_frequencies_are_the_probabilities(rng, values):
    """Of evenly spaced numbers an id gets its share, to one."""
    logits = rng.standard_normal((1, 33)).astype(np.float32)
    weights = weights_of(logits[0], **values)
    draws = 150
    ids, _, _ = sample(logits, (np.arange(draws) + 0.5) / draws, **values)
    counts = np.bincount(ids, minlength=33)
    assert not counts[weights == 0].any()
    assert np.abs(counts - draws * weights / weights.sum()).max() < 1.001


@needs_cuda
def test_temperatures_that_leave_nothing():
    """What division makes of logits decides, as on the CPU."""
    logits = np.array([[1e38, 0.0], [-1e38, -2e38], [-np.inf, -np.inf]], np.float32)
    _, _, failures = sample(logits, [0.5] * 3, rows=range(3), temperature=0.01)
    assert failures.tolist() == [NOT_FINITE, NOTHING_LEFT, NOT_FINITE]


@needs_cuda
def test_a_row_does_not_know_its_batch(rng):
    logits = rows_of_all_kinds(rng, 5000)
    together = sample(logits, [0.7] * 8, rows=range(8), top_p=0.9)
    for row in range(8):
        alone = sample(logits[row : row + 1], [0.7], top_p=0.9)
        assert [each[row] for each in together] == [each[0] for each in alone]


@needs_cuda
def test_more_rows_than_a_kernel_takes(rng):
    logits = rng.standard_normal((3, 2100))
    logits[1, 2099] = logits[2, 70] = 5
    rows = np.arange(40) % 3
    ids, log_probability, failures = sample(logits, [0.5] * 40, rows=rows, top_p=0.0)
    assert np.array_equal(ids, logits.argmax(1)[rows])
    assert log_probability == pytest.approx(log_softmax(logits).max(1)[rows], abs=1e-5)
    assert not failures.any()


# ---------------------------------------------------------------------------- generation


def options(**values):
    made = _core.GenerationOptions()
    for name, value in values.items():
        setattr(made, name, value)
    return made


CHOICES = [
    {}, {"do_sample": True}, {"do_sample": True, "top_k": 40, "top_p": 0.9, "seed": 5},
    {"do_sample": True, "min_p": 0.1, "temperature": 0.7}, {"banned_ids": [3]},
    {"repetition_penalty": 1.3, "do_sample": True}, {"min_new_tokens": 5, "stop_ids": [0, 4]},
    {"no_repeat_ngram_size": 3}, {"forced_ids": [7, 8, 9]},
    {"max_new_tokens": 4, "forced_eos_id": 2},
]  # fmt: skip


@needs_cuda
@pytest.mark.parametrize("values", CHOICES, ids=str)
def test_choices_are_the_cpus(rng, values):
    """Texts of different lengths: an option may be in force in some of them alone."""
    logits = rng.standard_normal((9, 997)).astype(np.float32)
    texts = [rng.integers(0, 997, 2 + b).tolist() for b in range(9)]
    known = {"ids": texts, "prompt_lengths": [2] * 9, "sequences": list(range(9))}
    here = _core.in_place_tensor(logits)
    got = _core.choose_tokens(options=options(**values), logits=there(logits), **known)
    want = _core.choose_tokens(options=options(**values), logits=here, **known)
    assert got[0] == want[0]
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6, atol=1e-5)


BEAMS = [
    {"num_beams": 4}, {"num_beams": 3, "stop_ids": [1, 2], "num_return_sequences": 3},
    {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5},
    {"num_beams": 4, "min_new_tokens": 2, "stop_ids": [5]}, {"num_beams": 2, "banned_ids": [3]},
]  # fmt: skip


@needs_cuda
@pytest.mark.parametrize("values", BEAMS, ids=str)
def test_beams_are_the_cpus(rng, values):
    """Row i of each step's logits is what the model says of beam i, whatever it holds."""
    steps = rng.standard_normal((4, 6, 501)).astype(np.float32)
    steps[1, 0] = -np.inf  # a beam that dies

    def search(place):
        beams = _core.BeamSearch(
            options=options(max_new_tokens=4, **values), prompt=[7], vocab_size=501,
            most_new_tokens=4,
        )  # fmt: skip
        for step in steps:
            if not beams.done:
                _core.advance_beams(searches=[beams], logits=place(step[: beams.beams]))
        return beams.best()

    for got, want in zip(search(there), search(_core.in_place_tensor), strict=True):
        assert got.ids == want.ids
        assert got.total == pytest.approx(want.total, rel=1e-6)
        np.testing.assert_allclose(got.log_probabilities, want.log_probabilities, rtol=1e-5)


# ---------------------------------------------------------------------------- arguments


@needs_cuda
def test_counts_out_of_range():
    logits = np.zeros((1, 5), np.float32)
    for count in (0, 6):
        with pytest.raises(ShapeError, match=f"count must be from 1 to 5, got {count}"):
            best(logits, count)
    with pytest.raises(ShapeError, match="count must be from 1 to 2048, got 2049"):
        best(np.zeros((1, 5000)), 2049)
    with pytest.raises(ShapeError, match="from 1 to 1048576 columns, got 0"):
        sample(np.zeros((1, 0)), [0.5])


def test_the_cpu_chooses_elsewhere():
    logits = _core.in_place_tensor(np.zeros((1, 5), np.float32))
    with pytest.raises(DeviceError, match="logits must be on a GPU"):
        _core.best_tokens(logits=logits, count=1)
    with pytest.raises(DeviceError, match="logits must be on a GPU"):
        _core.sample_tokens(logits=logits, settings=[])
