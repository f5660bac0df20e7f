"""SIGTERM and SIGINT: the first asks the loop to end, the second ends the process."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

from absl import logging

_STOPPING = (signal.SIGTERM, signal.SIGINT)


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

    Attributes:
        received: The number of the first signal; 0 before any.
        has_something_to_save: Whether the first signal is to be answered by whoever
            entered the context; it ends the process at once before that.
    """

    def __init__(self) -> None:
        """Has noted none so far."""
        self.received = 0
        self.has_something_to_save = False
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> "StopSignals":
        """Begins to note signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._before[number] = signal.signal(number, self._note)
            # Python's handlers wait while XLA compiles, or for a process that is gone;
            # the system writes here at once.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(
                self._writer.fileno(), warn_on_full_buffer=False
            )
            self._counting = threading.Thread(
                target=self._count, args=[self._reader], daemon=True
            )
            self._counting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Gives signals back to whom they belonged."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            # The thread reads the end of the file, and ends.
            self._writer.close()
            self._counting.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _count(self, reader: socket.socket) -> None:
        """Ends this process at the second signal, or answers the first.

        It does so whatever the process is doing.
        """
        num_received = 0
        with reader:
            while numbers := reader.recv(1):
                if numbers[0] not in _STOPPING:
                    continue
                num_received += 1
                name = signal.Signals(numbers[0]).name
                if num_received == 2:
                    os._exit(128 + numbers[0])
                if not self.has_something_to_save:
                    logging.info("%s: ended before there was anything to save.", name)
                    os._exit(128 + numbers[0])
                logging.info(
                    "%s: the state will be saved after the steps that are being "
                    "computed. A second signal ends this process at once.",
                    name,
                )
