"""Metrics of stretches, written once the device has computed them."""

import time
from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jaxtyping import Array

from bn_jax.errors import DivergedError
from bn_jax.training.distributed.processes import is_primary
from bn_jax.training.logs.profile import Profile
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.run import EvaluationResults
from bn_jax.training.step.metrics import mean_metrics
from bn_jax.training.step.state import Tally


class Pace:
    """Clock that measures steps per second from the end of the first stretch on.

    The first stretch waits for compilation, so it counts only if it is the only one.
    """

    def __init__(self, first_step: int, *, started: float | None = None) -> None:
        """Starts the clock.

        Args:
            first_step: Steps taken before the clock starts.
            started: Time at which the program started, in seconds of `time.monotonic`;
                now by default.
        """
        self._started = time.monotonic() if started is None else started
        self._marks = [(first_step, time.monotonic())]

    def advance(self, step: int) -> None:
        """Records the end of a stretch.

        Args:
            step: Steps taken; a stretch of no steps is ignored.
        """
        if step == self._marks[-1][0]:
            return
        if len(self._marks) == 1 and is_primary():
            logging.info(
                "The first %d steps were complete after %.1f s, compilation included.",
                step - self._marks[0][0],
                time.monotonic() - self._started,
            )
        # The start, the end of the first stretch and the end of the latest one.
        self._marks = [*self._marks[:2], (step, time.monotonic())]

    @property
    def steps_per_second(self) -> float:
        """Steps per second so far; 0 before the end of the first stretch."""
        if len(self._marks) < 2:
            return 0.0
        (step, seconds), (last_step, last_seconds) = self._marks[-2:]
        return (last_step - step) / (last_seconds - seconds)

    @property
    def settled_rate(self) -> float:
        """Steps per second, for estimates during the run; 0 until it is known.

        The first second counts for nothing: stretches that the device took while Python
        compiled the evaluation are reported in it, one right after the other.
        """
        is_settled = len(self._marks) == 3 and self._marks[2][1] - self._marks[1][1] > 1
        return self.steps_per_second if is_settled else 0.0


class TooManyNonfiniteStepsError(Exception):
    """Error for too many non-finite steps in a row."""


class _Report(NamedTuple):
    step: int
    tally: Tally
    measured: EvaluationResults | None
    stop_flag: Array


class Reports:
    """Queue of dispatched stretches whose metrics are not written yet."""

    def __init__(self, writer: MetricsWriter, pace: Pace, profile: Profile) -> None:
        """Starts with an empty queue.

        Args:
            writer: Receives all metrics.
            pace: Receives the end of each stretch.
            profile: Receives the end of each stretch.
        """
        self._writer = writer
        self._pace = pace
        self._profile = profile
        self._waiting: deque[_Report] = deque()

    def add(
        self,
        step: int,
        tally: Tally,
        measured: EvaluationResults | None,
        *,
        stop_flag: Array,
    ) -> None:
        """Adds the results of a stretch, which the device may still be computing.

        Args:
            step: Steps taken, with the stretch.
            tally: Tally after the stretch.
            measured: Results of the evaluation after the stretch; None without one.
            stop_flag: Number of a signal that any process has received, or 0.
        """
        self._waiting.append(_Report(step, tally, measured, stop_flag))

    def write(self, *, all_but: int = 0) -> int:
        """Waits for the device, and writes the metrics of stretches, oldest first.

        Args:
            all_but: Number of the newest stretches to leave in the queue.

        Returns:
            Number of a signal that any process has received, or 0.

        Raises:
            DivergedError: If a metric is not finite.
            TooManyNonfiniteStepsError: If too many steps in a row were not finite.
        """
        stop_signal = 0
        while len(self._waiting) > all_but:
            stop_signal = max(stop_signal, self._write(self._waiting.popleft()))
        return stop_signal

    def _write(self, report: _Report) -> int:
        step, tally = report.step, jax.tree.map(np.asarray, report.tally)
        if tally.is_over:
            raise TooManyNonfiniteStepsError
        # The loss is None if every step since the last evaluation was skipped.
        loss = float(tally.loss_sum / tally.num_losses) if tally.num_losses else None
        if report.measured is not None:
            self._writer.write(step, _values(step, loss, tally, report.measured))
        self._pace.advance(step)
        self._writer.advance(step, loss, steps_per_second=self._pace.settled_rate)
        self._profile.complete(step)
        return int(report.stop_flag)


def _values(
    step: int, train_loss: float | None, tally: Tally, measured: EvaluationResults
) -> dict[str, Any]:
    values: dict[str, Any] = {"train_loss": train_loss}
    for prefix, sums in measured.sums.items():
        means = mean_metrics(sums, split=measured.split)
        values |= {f"{prefix}{name}": mean for name, mean in means.items()}
    values |= {k: np.asarray(v).tolist() for k, v in measured.probed.items()}
    for name, value in values.items():
        if value is not None and not np.all(np.isfinite(value)):
            raise DivergedError(
                f"{name} is {value} after step {step}. A lower learning rate may keep "
                "it finite; train from the beginning in another --workdir.",
                step,
            )
    if tally.num_skipped:
        values["skipped_steps"] = int(tally.num_skipped)
    return values
