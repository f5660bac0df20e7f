"""What stretches of steps measured, written once the device is through with them."""

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Array

from bn_jax.errors import DivergedError
from bn_jax.training.logs.profile import Profile
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.metrics import mean_metrics
from bn_jax.training.run import Measured
from bn_jax.training.state import Tally


class Pace:
    """Steps per second from the end of the first stretch on.

    The first stretch waits for compilation; it counts only when it is all there is.
    """

    def __init__(self, first_step: int, *, started: float | None = None) -> None:
        """Starts the clock.

        Args:
            first_step: Steps that were taken before.
            started: When the run was, in seconds of `time.monotonic`; now by default.
        """
        self._started = time.monotonic() if started is None else started
        self._marks = [(first_step, time.monotonic())]

    def advance(self, step: int) -> None:
        """Notes that a stretch is complete.

        Args:
            step: Steps taken; one without any is passed over.
        """
        if step == self._marks[-1][0]:
            return
        if len(self._marks) == 1:
            logging.info(
                "The first %d steps were complete after %.1f s, compilation included.",
                step - self._marks[0][0],
                time.monotonic() - self._started,
            )
        # The start, the end of the first stretch, and the end of the last one.
        self._marks = [*self._marks[:2], (step, time.monotonic())]

    @property
    def steps_per_second(self) -> float:
        """Steps per second so far; 0 before any."""
        if len(self._marks) < 2:
            return 0.0
        (step, seconds), (last_step, last_seconds) = self._marks[-2:]
        return (last_step - step) / (last_seconds - seconds)


class GivenUpError(Exception):
    """Too many steps in a row had something that was not finite."""


class _Report(NamedTuple):
    step: int
    tally: Tally
    measured: Measured | None
    stop_flag: Array


class Reports:
    """Reports of stretches that were dispatched, the oldest first."""

    def __init__(self, writer: MetricsWriter, pace: Pace, profile: Profile) -> None:
        """Has none.

        Args:
            writer: Is told every figure.
            pace: Is told of every stretch that is complete.
            profile: Likewise.
        """
        self._writer = writer
        self._pace = pace
        self._profile = profile
        self._waiting: deque[_Report] = deque()

    def add(
        self, step: int, tally: Tally, measured: Measured | None, *, stop_flag: Array
    ) -> None:
        """Takes what a stretch gives when the device comes to it.

        Args:
            step: Steps taken, with the stretch.
            tally: After them.
            measured: By the evaluation after them, if there was one.
            stop_flag: The signal that any process has received, or 0.
        """
        self._waiting.append(_Report(step, tally, measured, stop_flag))

    def write(self, *, all_but: int = 0) -> int:
        """Waits for the device, and writes.

        Args:
            all_but: How many of the newest need not be waited for.

        Returns:
            The number of the signal that any process had received, or 0.

        Raises:
            DivergedError: If what was measured is not finite.
            GivenUpError: If too many steps in a row were not.
        """
        stop_signal = 0
        while len(self._waiting) > all_but:
            stop_signal = max(stop_signal, self._write(self._waiting.popleft()))
        return stop_signal

    def _write(self, report: _Report) -> int:
        step, tally = report.step, jax.tree.map(np.asarray, report.tally)
        if tally.is_over:
            raise GivenUpError
        # There is no loss where every step since the last evaluation was undone.
        loss = float(tally.loss_sum / tally.num_losses) if tally.num_losses else None
        if report.measured is not None:
            self._writer.write(step, _values(step, loss, tally, report.measured))
        self._writer.advance(step, loss)
        self._pace.advance(step)
        self._profile.complete(step)
        return int(report.stop_flag)


def _values(
    step: int, train_loss: float | None, tally: Tally, measured: Measured
) -> dict[str, Any]:
    values: dict[str, Any] = {"train_loss": train_loss}
    for prefix, sums in measured.sums.items():
        values |= {f"{prefix}{k}": v for k, v in mean_metrics(sums).items()}
    values |= {k: np.asarray(v).tolist() for k, v in measured.probed.items()}
    for name, value in values.items():
        if value is not None and not np.all(np.isfinite(value)):
            raise DivergedError(
                f"{name} is {value} after step {step}. A lower learning rate may keep "
                "it finite, from the beginning and in another --workdir.",
                step,
            )
    if tally.num_skipped:
        values["skipped_steps"] = int(tally.num_skipped)
    return values
