"""Progress of a run: a bar on a terminal, lines elsewhere."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from training.logs.terminal import Terminal

from bn_jax.training.logs.display import Display

EVALUATED = {
    "train_loss": 0.25,
    "test_loss": 0.5,
    "test_accuracy": 0.875,
    "test_top5_accuracy": 0.96875,
    "percentiles": [-1.0, 0.0, 2.0],
}


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="absl")
    return caplog


def make_terminal(monkeypatch: pytest.MonkeyPatch, *, columns: int = 80) -> Terminal:
    """Turns stderr into a terminal; in a fixture, pytest would turn it back."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(
        "tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns, 9)
    )
    return stream


@contextmanager
def shown(
    first_step: int = 0, num_steps: int = 50_000, **changes: Any
) -> Iterator[Display]:
    settings = {"log_every": None, "show_progress": True, **changes}
    with Display(first_step, num_steps, **settings) as display:
        yield display


def bar_of(monkeypatch: pytest.MonkeyPatch, *, columns: int) -> str:
    """The bar in the middle of a run, in a terminal of that many columns."""
    terminal = make_terminal(monkeypatch, columns=columns)
    with shown() as display:
        display.advance(25_000, 0.25, evaluated=EVALUATED, steps_per_second=125.0)
    return terminal.bars[-1].rstrip()


@pytest.mark.parametrize(
    ("columns", "beside"),
    [
        (34, "25000/50000"),
        (50, "25000/50000, loss 0.2500"),
        (64, "25000/50000, loss 0.2500, accuracy 0.8750"),
        (76, "25000/50000, loss 0.2500, accuracy 0.8750, 125 steps/s"),
        (80, "25000/50000, loss 0.2500, accuracy 0.8750, 3 min 20 s left"),
        (103, "loss 0.2500, accuracy 0.8750, 3 min 20 s left, 125 steps/s"),
        (122, "test accuracy 0.8750, 3 min 20 s left, 125 steps/s, test loss 0.5000"),
    ],
)
def test_the_bar_keeps_its_width_and_drops_the_least_important(
    monkeypatch: pytest.MonkeyPatch, columns: int, beside: str
) -> None:
    line = bar_of(monkeypatch, columns=columns)
    assert beside in line
    assert len(line) <= columns
    assert len(line.split("|")[1]) >= 15
    assert "percentiles" not in line


def test_a_terminal_too_narrow_for_a_bar_shows_as_much_as_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 0 < len(bar_of(monkeypatch, columns=12)) <= 12


def test_the_bar_shows_the_newest_loss_and_the_latest_accuracy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = make_terminal(monkeypatch)
    with shown() as display:
        display.advance(50, 0.25, evaluated=EVALUATED, steps_per_second=None)
        display.advance(70, 0.125, evaluated=None, steps_per_second=None)
    assert "70/50000, train loss 0.1250, test accuracy 0.8750" in terminal.bars[-1]


def test_the_bar_goes_on_from_the_first_step_and_says_that_it_compiles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = make_terminal(monkeypatch)
    with shown(first_step=40, num_steps=100) as display:
        display.advance(100, 0.25, evaluated=None, steps_per_second=1.0)
    assert "40/100, compiling" in terminal.bars[0]
    assert "100/100" in terminal.bars[-1]
    assert terminal.getvalue().endswith("\n")


def test_log_lines_and_warnings_stand_above_the_bar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = make_terminal(monkeypatch)
    handler = logging.StreamHandler(terminal)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with shown():
        logging.getLogger("another_library").warning("a log line")
        # As Python shows a warning.
        sys.stderr.write("a warning\n")
    for words in ("a log line\n", "a warning\n"):
        # Alone in its line, between two carriage returns that erase the bar.
        assert words in terminal.bars
    assert handler.stream is terminal
    assert sys.stderr is terminal


def test_a_terminal_gets_no_log_line(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    make_terminal(monkeypatch)
    with shown(log_every=1) as display:
        display.advance(100, 0.25, evaluated=EVALUATED, steps_per_second=1.0)
    assert log.messages == []


def test_without_a_terminal_each_evaluation_is_a_line(
    log: pytest.LogCaptureFixture,
) -> None:
    with shown() as display:
        display.advance(10_000, 0.25, evaluated=EVALUATED, steps_per_second=200.0)
        display.advance(20_000, 0.125, evaluated=None, steps_per_second=200.0)
    assert log.messages == [
        "step 10000 of 50000, train loss 0.2500, test loss 0.5000, test accuracy "
        "0.8750, test top5 accuracy 0.9688, 200 steps/s, 3 min 20 s left"
    ]


@pytest.mark.parametrize(
    ("stretch", "expected"),
    [(1, [10, 20, 30, 40]), (4, [12, 20, 32, 40]), (25, [25])],
)
def test_lines_between_evaluations_are_steps_apart(
    log: pytest.LogCaptureFixture, stretch: int, expected: list[int]
) -> None:
    with shown(log_every=10) as display:
        for step in range(stretch, 50, stretch):
            display.advance(step, 0.25, evaluated=None, steps_per_second=1.0)
    assert [int(message.split()[1]) for message in log.messages] == expected


def test_a_line_between_evaluations_has_no_old_results(
    log: pytest.LogCaptureFixture,
) -> None:
    with shown(num_steps=80, log_every=10) as display:
        display.advance(20, 0.25, evaluated=EVALUATED, steps_per_second=2.0)
        display.advance(60, 1.0, evaluated=None, steps_per_second=2.0)
    expected = "step 60 of 80, train loss 1.0000, 2 steps/s, 10 s left"
    assert log.messages[1:] == [expected]


def test_skipped_steps_are_shown_and_a_missing_loss_is_not(
    log: pytest.LogCaptureFixture,
) -> None:
    evaluated = {"train_loss": None, "test_loss": 0.5, "skipped_steps": 3}
    with shown(num_steps=80) as display:
        display.advance(80, None, evaluated=evaluated, steps_per_second=2.0)
    expected = "step 80 of 80, test loss 0.5000, skipped steps 3, 2 steps/s"
    assert log.messages == [expected]


def test_nothing_is_shown_when_nothing_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    terminal = make_terminal(monkeypatch)
    with shown(show_progress=False, log_every=1) as display:
        display.advance(100, 0.25, evaluated=EVALUATED, steps_per_second=1.0)
    assert (terminal.getvalue(), log.messages) == ("", [])
