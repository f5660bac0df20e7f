"""Progress bars, log lines above them, and durations, as a user reads them."""

import io
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from typing import Any, TextIO

from absl.logging import get_absl_handler
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

# Without a terminal.
_SECONDS_BETWEEN_LINES = 60


@contextmanager
def progress_bar(**options: Any) -> Iterator[Any]:
    """Context with a progress bar on the standard error stream.

    Without a terminal there is no bar, but one line after each minute.

    Args:
        **options: Arguments of `tqdm.tqdm`.
    """
    look: dict[str, Any] = {"dynamic_ncols": True}
    if not sys.stderr.isatty():
        look = {
            "file": _Lines(sys.stderr),
            "bar_format": "{desc}: {n_fmt} of {total_fmt}, {remaining} left",
            **dict.fromkeys(
                ("delay", "mininterval", "maxinterval"), _SECONDS_BETWEEN_LINES
            ),
        }
    with tqdm(**look, **options) as bar, lines_above_bars():
        yield bar


class _Lines(io.StringIO):
    """A stream that writes each state of a bar as a line of another stream."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        if text.strip():
            self._stream.write(f"{text.strip()}\n")
        return len(text)


@contextmanager
def lines_above_bars() -> Iterator[None]:
    """Context in which lines appear above the progress bars, and not inside them.

    The lines are those that Python writes to the standard error stream: warnings, and
    the records of log handlers. Open the bars before the context.
    """
    stream = sys.stderr
    above: Any = DummyTqdmFile(stream)
    handlers = (*logging.root.handlers, get_absl_handler().python_handler)
    with ExitStack() as undo:
        for handler in handlers:
            # A handler keeps the stream that was the standard one when it was made.
            if isinstance(handler, logging.StreamHandler) and handler.stream is stream:
                handler.setStream(above)
                undo.callback(handler.setStream, stream)
        undo.enter_context(redirect_stderr(above))
        yield


@contextmanager
def our_log_lines() -> Iterator[None]:
    """Context in which the log lines of bn_jax are shown, and those of Orbax are not.

    The program's own handlers show them. If it has none, absl calls
    `logging.basicConfig()` at the first line, for the standard error stream. The level
    of the logger is as before when the context ends.
    """
    logger = logging.getLogger("absl")
    with ExitStack() as undo:
        undo.callback(logger.setLevel, logger.level)
        if logger.getEffectiveLevel() == logging.WARNING:
            logger.setLevel(logging.INFO)
        logger.addFilter(is_of_interest)
        undo.callback(logger.removeFilter, is_of_interest)
        yield


def is_of_interest(record: logging.LogRecord) -> bool:
    """Returns True for lines of bn_jax, and for warnings of other packages than Orbax.

    Orbax logs each detail of a checkpoint as INFO, and logs each error several times
    before it raises it.

    Args:
        record: A line with its level and the file that has logged it.
    """
    return "bn_jax" in record.pathname or (
        record.levelno > logging.INFO and "orbax" not in record.pathname
    )


def format_duration(seconds: float) -> str:
    """Returns a duration in its two largest units.

    Args:
        seconds: The duration, at least 0.

    >>> [format_duration(s) for s in (4.2, 200, 7_500, 100_000)]
    ['4 s', '3 min 20 s', '2 h 5 min', '1 d 3 h']
    """
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {s} s" if minutes else f"{s} s"


def format_rate(rate: float) -> str:
    """Returns a rate with three digits, or with all digits before the point.

    >>> [format_rate(rate) for rate in (0.01234, 2, 62.34, 12_345.6)]
    ['0.0123', '2', '62.3', '12,346']
    """
    return f"{rate:.3g}" if rate < 100 else f"{rate:,.0f}"


def aligned(rows: Mapping[str, str], *, width: int = 0) -> list[str]:
    """Returns one line for each row, with all values in one column.

    Args:
        rows: Values by their labels.
        width: Smallest width of the labels, for rows that follow others.

    >>> aligned({"loss": "0.25", "accuracy": "0.9"})
    ['loss      0.25', 'accuracy  0.9']
    """
    width = max(width, *(len(label) for label in rows))
    return [f"{label:{width}}  {value}" for label, value in rows.items()]
