"""Learning-rate schedules against the formulas of their papers, and their boundary values."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcore.errors import ConfigError
from llmcore.training.schedule import Schedule

DECAYING = ["cosine", "linear", "wsd"]
KINDS = [*DECAYING, "constant", "inverse_sqrt"]


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_is_linear_and_reaches_the_peak_at_its_last_step(kind: str) -> None:
    schedule = Schedule(kind=kind, lr=0.3, warmup_steps=7, total_steps=50)
    for step in range(1, 8):
        assert schedule(step) == pytest.approx(0.3 * step / 7, rel=1e-15)
    assert schedule(7) == 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_without_warmup_the_first_update_is_near_the_peak(kind: str) -> None:
    schedule = Schedule(kind=kind, lr=0.3, total_steps=1000)
    assert schedule(1) == pytest.approx(0.3, rel=2e-3)


@pytest.mark.parametrize("kind", DECAYING)
def test_decay_ends_at_the_floor_and_stays_there(kind: str) -> None:
    schedule = Schedule(kind=kind, lr=0.3, min_lr=0.03, warmup_steps=7, total_steps=50)
    assert schedule(49) > 0.03
    assert [schedule(50), schedule(51), schedule(500)] == [0.03] * 3


def test_cosine_is_the_formula_of_sgdr() -> None:
    schedule = Schedule(kind="cosine", lr=2.0, min_lr=0.5, warmup_steps=10, total_steps=110)
    for step in range(10, 111):
        expected = 0.5 + 0.5 * (2.0 - 0.5) * (1 + math.cos((step - 10) / 100 * math.pi))
        assert schedule(step) == pytest.approx(expected, rel=1e-14)
    assert schedule(60) == pytest.approx(1.25, rel=1e-14)


def test_linear_is_a_straight_line() -> None:
    schedule = Schedule(kind="linear", lr=1.0, min_lr=0.2, warmup_steps=5, total_steps=25)
    assert [schedule(step) for step in (5, 15, 25)] == pytest.approx([1.0, 0.6, 0.2])


def test_inverse_sqrt_is_the_formula_of_vaswani() -> None:
    width, warmup = 512, 40
    peak = width**-0.5 * warmup**-0.5
    schedule = Schedule(kind="inverse_sqrt", lr=peak, warmup_steps=warmup)
    for step in range(1, 400):
        expected = width**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert schedule(step) == pytest.approx(expected, rel=1e-12)


def test_inverse_sqrt_stops_at_the_floor() -> None:
    schedule = Schedule(kind="inverse_sqrt", lr=1.0, min_lr=0.5)
    assert [schedule(4), schedule(5)] == [0.5, 0.5]


def test_constant_never_ends() -> None:
    assert Schedule(kind="constant", lr=0.1, total_steps=3)(1000) == 0.1


def test_wsd_is_stable_then_decays() -> None:
    schedule = Schedule(
        kind="wsd", lr=1.0, min_lr=0.5, warmup_steps=10, total_steps=100, decay_steps=20
    )
    assert {schedule(step) for step in range(10, 81)} == {1.0}
    assert [schedule(90), schedule(100)] == pytest.approx([0.75, 0.5])


def test_wsd_decays_over_the_last_tenth_unless_told() -> None:
    assert Schedule(kind="wsd", lr=1.0, total_steps=200).decay_steps == 20
    assert Schedule(kind="wsd", lr=1.0, warmup_steps=195, total_steps=200).decay_steps == 5
    assert Schedule(kind="wsd", lr=1.0, total_steps=1).decay_steps == 1


def test_wsd_without_decay_is_constant_to_the_end() -> None:
    schedule = Schedule(kind="wsd", lr=1.0, total_steps=10, decay_steps=0)
    assert schedule(10) == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_all_warmup_ends_at_the_peak(kind: str) -> None:
    assert Schedule(kind=kind, lr=0.3, warmup_steps=4, total_steps=4)(4) == 0.3


@given(
    kind=st.sampled_from(KINDS),
    warmup=st.integers(0, 30),
    rest=st.integers(1, 60),
    floor=st.floats(0, 1),
)
def test_rises_then_never_rises_again_between_floor_and_peak(
    kind: str, warmup: int, rest: int, floor: float
) -> None:
    schedule = Schedule(
        kind=kind, lr=1.0, min_lr=floor, warmup_steps=warmup, total_steps=warmup + rest
    )
    rates = [schedule(step) for step in range(1, warmup + rest + 5)]
    top = max(warmup, 1) - 1
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    tail = rates[top:]
    assert all(a >= b - 1e-15 for a, b in itertools.pairwise(tail))
    assert all(floor - 1e-15 <= rate <= 1.0 for rate in tail)


def test_every_problem_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Schedule(kind="cosin", lr=-1.0, warmup_steps=-2, total_steps=0, decay_steps=3)
    text = str(caught.value)
    for word in ("did you mean 'cosine'", "lr:", "warmup_steps:", "total_steps:", "decay_steps:"):
        assert word in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosine"}, "total_steps: 'cosine' needs the length of the run"),
        ({"kind": "wsd"}, "total_steps: 'wsd' needs"),
        ({"kind": "constant", "lr": math.nan}, "lr: expected a positive number, got nan"),
        ({"kind": "constant", "lr": 0.1, "min_lr": 0.2}, "min_lr: expected between 0 and lr = 0.1"),
        ({"warmup_steps": 11, "total_steps": 10}, "at most total_steps = 10, got 11"),
        ({"total_steps": 10, "decay_steps": 5}, "only 'wsd' has a decay of its own"),
        (
            {"kind": "wsd", "warmup_steps": 6, "total_steps": 10, "decay_steps": 5},
            "decay_steps: expected at most total_steps - warmup_steps = 4, got 5",
        ),
    ],
)
def test_a_wrong_field_is_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule(**settings)  # type: ignore[arg-type]


def test_steps_count_from_one() -> None:
    with pytest.raises(ConfigError, match="counts from 1"):
        Schedule(kind="constant", lr=1.0)(0)
