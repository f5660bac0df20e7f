"""What stretches of steps measured, written once the device is through with them."""

from collections import deque
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from bn_jax.errors import DivergedError
from bn_jax.training.metrics import mean_metrics
from bn_jax.training.pace import Pace
from bn_jax.training.profile import Profile
from bn_jax.training.run import Measured
from bn_jax.training.state import Tally
from bn_jax.training.writer import MetricsWriter


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
