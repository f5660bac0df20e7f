"""Steps per second, on a clock that the test turns."""

import time

import pytest

from bn_jax.training.logs.reports import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which only the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def advance(pace: Pace, clock: list[float], *, seconds: float, step: int) -> None:
    clock[0] += seconds
    pace.advance(step)


def test_the_first_stretch_waits_for_compilation_and_does_not_count(
    clock: list[float],
) -> None:
    pace = Pace(0)
    advance(pace, clock, seconds=30.0, step=50)
    advance(pace, clock, seconds=1.0, step=100)
    advance(pace, clock, seconds=3.0, step=250)
    assert pace.steps_per_second == 200 / 4.0


def test_a_single_stretch_counts_for_want_of_another(clock: list[float]) -> None:
    pace = Pace(0)
    advance(pace, clock, seconds=4.0, step=50)
    assert pace.steps_per_second == 12.5


def test_steps_taken_before_do_not_count(clock: list[float]) -> None:
    pace = Pace(1000)
    advance(pace, clock, seconds=10.0, step=1010)
    advance(pace, clock, seconds=2.0, step=1030)
    assert pace.steps_per_second == 10.0


def test_before_any_step_the_pace_is_zero(clock: list[float]) -> None:
    assert Pace(5).steps_per_second == 0


def test_the_rate_for_estimates_waits_for_a_second_after_compilation(
    clock: list[float],
) -> None:
    pace = Pace(0)
    advance(pace, clock, seconds=30.0, step=50)
    assert pace.settled_rate == 0
    advance(pace, clock, seconds=0.01, step=100)
    assert pace.settled_rate == 0
    advance(pace, clock, seconds=1.99, step=150)
    assert pace.settled_rate == 50
