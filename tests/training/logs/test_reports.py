"""Steps per second, on a clock that the test turns."""

import logging
import time

import pytest

from bn_jax.training.logs.reports import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which only the test moves."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def advance(
    pace: Pace,
    clock: list[float],
    *,
    seconds: float,
    step: int,
    is_evaluated: bool = False,
) -> None:
    clock[0] += seconds
    pace.advance(step, is_evaluated=is_evaluated)


def test_the_first_stretch_of_each_kind_compiles_and_does_not_count(
    clock: list[float],
) -> None:
    pace = Pace(1000)
    advance(pace, clock, seconds=30.0, step=1050)
    advance(pace, clock, seconds=1.0, step=1100)
    advance(pace, clock, seconds=20.0, step=1150, is_evaluated=True)
    advance(pace, clock, seconds=1.0, step=1200)
    advance(pace, clock, seconds=2.0, step=1250, is_evaluated=True)
    advance(pace, clock, seconds=10.0, step=1280)
    assert pace.steps_per_second == 150 / 4.0


@pytest.mark.parametrize("seconds", [[], [9.0], [9.0, 9.0], [9.0, 0.9, 1.0]])
def test_two_stretches_and_two_seconds_are_needed(
    clock: list[float], seconds: list[float]
) -> None:
    pace = Pace(0)
    for i, duration in enumerate(seconds):
        advance(pace, clock, seconds=duration, step=10 * (i + 1))
    assert pace.steps_per_second is None


def test_the_first_steps_of_a_resumed_run_are_named(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="absl")
    pace = Pace(47)
    advance(pace, clock, seconds=0.5, step=47, is_evaluated=True)
    advance(pace, clock, seconds=3.0, step=67)
    advance(pace, clock, seconds=3.0, step=77)
    assert caplog.messages == [
        "Steps 48 to 67 were complete after 3.5 s, compilation included."
    ]
