"""Traces of training steps, for TensorBoard or Perfetto."""

from contextlib import AbstractContextManager
from pathlib import Path

import jax
from absl import logging

from bn_jax.errors import UserError


class Profile(AbstractContextManager):
    """Context that writes a trace of the stretches that hold the requested steps.

    The trace starts and ends between two calls of compiled programs, so that it changes
    no result.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None) -> None:
        """Checks and stores the requested steps.

        Args:
            workdir: The run's workdir; the trace goes to `profile/` in it.
            steps: Numbers of completed steps at which the trace starts and ends; None
                for no trace.

        Raises:
            UserError: If the start is negative or the end does not come after it.
        """
        if steps is not None and not 0 <= steps[0] < steps[1]:
            raise UserError(
                "--profile_steps=FIRST:LAST needs 0 <= FIRST < LAST, but is "
                f"{steps[0]}:{steps[1]}."
            )
        self._folder = workdir / "profile"
        self._steps = steps
        self._is_running = False

    def __exit__(self, *_: object) -> None:
        """Ends a running trace, and warns if a requested trace never started."""
        if self._steps is not None and not self._is_running:
            logging.warning(
                "--profile_steps=%d:%d: no trace is written, because this program took "
                "none of these steps.",
                *self._steps,
            )
        self._stop()

    def advance(self, first_step: int, last_step: int) -> None:
        """Starts the trace before a stretch that holds a requested step.

        Args:
            first_step: Steps dispatched before the stretch.
            last_step: Steps dispatched after it.
        """
        if self._steps is None or self._is_running:
            return
        first, last = self._steps
        if first_step < last and first < last_step:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def complete(self, step: int) -> None:
        """Ends the trace once the device has completed its last step.

        Args:
            step: Steps that the device has completed.
        """
        if self._is_running and self._steps is not None and step >= self._steps[1]:
            self._stop()
            self._steps = None

    def _stop(self) -> None:
        if self._is_running:
            jax.profiler.stop_trace()
            self._is_running = False
            logging.info("%s: the trace is written.", self._folder)
