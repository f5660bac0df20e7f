"""A trace of some training steps, for TensorBoard or Perfetto."""

from contextlib import AbstractContextManager
from pathlib import Path

import jax
from absl import logging

from bn_jax.errors import UserError


class Profile(AbstractContextManager):
    """A context that writes a trace of the stretches that hold the wanted steps.

    It begins and ends between two compiled calls, so that it changes no result.
    """

    def __init__(self, workdir: Path, steps: tuple[int, int] | None) -> None:
        """Knows what is wanted.

        Args:
            workdir: The run's folder; the trace goes to `profile/` in it.
            steps: First and last step, counted from 0; None for no trace.

        Raises:
            UserError: If the last step does not come after the first.
        """
        if steps is not None and not 0 <= steps[0] < steps[1]:
            raise UserError(
                f"--profile_steps=a:b needs 0 <= a < b, and is {steps[0]}:{steps[1]}."
            )
        self._folder = workdir / "profile"
        self._steps = steps
        self._is_running = False

    def __exit__(self, *_: object) -> None:
        """Writes what there is, and says if there is nothing."""
        if self._steps is not None and not self._is_running:
            logging.warning(
                "No trace: steps %d to %d were not taken here.", *self._steps
            )
        self._stop()

    def advance(self, first_step: int, last_step: int) -> None:
        """Begins the trace before a stretch that holds one of its steps.

        Args:
            first_step: Steps that have been dispatched.
            last_step: Steps that will have been, with the stretch.
        """
        if self._steps is None or self._is_running:
            return
        first, last = self._steps
        if first_step < last and first < last_step:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def complete(self, step: int) -> None:
        """Ends the trace when its last step is through.

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
            logging.info("The trace lies in %s.", self._folder)
