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
    """Clock that measures steps per second, without the time of compilation.

    XLA compiles in the first stretch of each kind, which has a new number of steps or
    the first evaluation. These stretches do not count.
    """

    def __init__(self, first_step: int, *, started: float | None = None) -> None:
        """Starts the clock.

        Args:
            first_step: Steps taken before the clock starts.
            started: Time at which the program started, in seconds of `time.monotonic`;
                now by default.
        """
        self._last = (first_step, time.monotonic())
        self._started = self._last[1] if started is None else started
        self._kinds: set[tuple[int, bool]] = set()
        self._num_stretches = self._num_steps = 0
        self._seconds = 0.0

    def is_first(self, num_steps: int, *, is_evaluated: bool) -> bool:
        """Returns True if no earlier stretch was of this kind.

        Args:
            num_steps: Steps of the stretch; 0 for an evaluation alone.
            is_evaluated: True if an evaluation follows the steps.
        """
        return (num_steps, is_evaluated) not in self._kinds

    def advance(self, step: int, *, is_evaluated: bool) -> None:
        """Records the end of a stretch.

        Args:
            step: Steps taken.
            is_evaluated: True if an evaluation followed the steps.
        """
        now = time.monotonic()
        first_step, before = self._last
        self._last, num_steps = (step, now), step - first_step
        if self.is_first(num_steps, is_evaluated=is_evaluated):
            if num_steps and not any(size for size, _ in self._kinds) and is_primary():
                logging.info(
                    "Steps %d to %d were complete after %.1f s, compilation included.",
                    first_step + 1,
                    step,
                    now - self._started,
                )
            self._kinds.add((num_steps, is_evaluated))
            return
        self._num_stretches += 1
        self._num_steps += num_steps
        self._seconds += now - before

    @property
    def steps_per_second(self) -> float | None:
        """Steps per second; None before two stretches and two seconds are measured."""
        if self._num_stretches < 2 or self._seconds < 2:
            return None
        return self._num_steps / self._seconds


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

    def begin(self, num_steps: int, *, is_evaluated: bool) -> bool:
        """Prepares for a stretch, which is not dispatched yet.

        Args:
            num_steps: Steps of the stretch.
            is_evaluated: True if an evaluation follows the steps.

        Returns:
            True if the stretch is the first of its kind. All earlier ones are written
            then. If this one is written before the next is dispatched, no other
            stretch is taken for one that waited for compilation.
        """
        is_first = self._pace.is_first(num_steps, is_evaluated=is_evaluated)
        if is_first:
            self.write()
        return is_first

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
        self._pace.advance(step, is_evaluated=report.measured is not None)
        self._writer.advance(step, loss, steps_per_second=self._pace.steps_per_second)
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
