"""SIGTERM and SIGINT: the first asks the loop to end, the second ends the process."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StoppedBySignalError(SystemExit):
    """Training has saved its state and stopped because of a signal.

    It ends a program with 128 plus the signal's number: 143 for SIGTERM and 130 for
    SIGINT.
    """

    def __init__(self, number: int) -> None:
        """Says which signal it was.

        Args:
            number: The signal's.
        """
        super().__init__(128 + number)


class StopSignals:
    """A context in which signals are noted.

    Outside the main thread, where Python allows no handlers, none are.
    """

    def __init__(self) -> None:
        """Has noted none so far."""
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        """Begins to note signals."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives signals back to whom they belonged."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
