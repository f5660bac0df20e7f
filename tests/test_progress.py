"""Log lines of bn_jax and of other packages, and bars without a terminal."""

import logging
import sys

import pytest
from absl import logging as absl_logging

from bn_jax.progress import lines_above_bars, our_log_lines, progress_bar


def log_from(path: str, level: int) -> None:
    """Logs a line as a module in a file of that name would."""
    logger = absl_logging.get_absl_logger()
    logger.handle(logger.makeRecord("absl", level, path, 1, path, (), None))


def test_each_of_our_lines_is_shown_once_and_the_details_of_orbax_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with our_log_lines(), lines_above_bars():
        log_from("site/bn_jax/loop.py", logging.INFO)
        log_from("site/orbax/manager.py", logging.INFO)
        log_from("site/orbax/manager.py", logging.ERROR)
        log_from("site/flax/warner.py", logging.WARNING)
    assert capsys.readouterr().err == "site/bn_jax/loop.py\nsite/flax/warner.py\n"


@pytest.mark.parametrize(
    ("seconds_a_piece", "expected"),
    [
        (1, []),
        (25, ["3 of 7, 01:40 left", "6 of 7, 00:25 left", "7 of 7, 00:00 left"]),
    ],
)
def test_without_a_terminal_there_is_a_line_a_minute_in_place_of_a_bar(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds_a_piece: int,
    expected: list[str],
) -> None:
    now = [0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(total=7, desc="evaluated") as bar:
        for _ in range(7):
            now[0] += seconds_a_piece
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"evaluated: {line}" for line in expected]
