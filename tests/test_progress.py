"""Log lines of bn_jax, and those of other packages between them."""

import logging
import sys

import pytest
from absl import logging as absl_logging

from bn_jax.progress import lines_above_bars, our_log_lines


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
