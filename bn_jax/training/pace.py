"""How many steps a run takes in a second."""

import time

from absl import logging


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
