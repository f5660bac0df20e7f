"""Stop signals: the first SIGTERM or SIGINT saves the state, the second exits."""

import os
import signal
import socket
import threading
from types import FrameType, TracebackType
from typing import Any

from absl import logging

_STOPPING = (signal.SIGTERM, signal.SIGINT)


class StoppedBySignalError(SystemExit):
    """Exit of a program after a signal has stopped its run and the state is saved.

    The exit code is 128 plus the signal's number: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, number: int) -> None:
        """Sets the exit code.

        Args:
            number: Number of the signal.
        """
        super().__init__(128 + number)


class StopSignals:
    """Context that records signals.

    Outside the main thread it records none, because Python allows no handlers there.

    Attributes:
        received: Number of the first signal; 0 before any.
        has_something_to_save: True if the caller reads `received`, saves its state and
            ends. While it is False, the first signal ends the process at once.
    """

    def __init__(self) -> None:
        """Starts without a signal."""
        self.received = 0
        self.has_something_to_save = False
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> "StopSignals":
        """Starts to record signals."""
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                self._before[number] = signal.signal(number, self._record)
            # Python runs no handler while XLA compiles or while a computation waits
            # for a process that has ended. The interpreter's own handler writes each
            # signal's number to this socket at once.
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._wakeup_before = signal.set_wakeup_fd(
                self._writer.fileno(), warn_on_full_buffer=False
            )
            self._watcher = threading.Thread(
                target=self._watch, args=[self._reader], daemon=True
            )
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restores the handlers from before the context."""
        if self._before:
            signal.set_wakeup_fd(self._wakeup_before)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            # The thread ends when it reads the end of the stream.
            self._writer.close()
            self._watcher.join()

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _watch(self, reader: socket.socket) -> None:
        """Ends the process at the second signal, or at the first with nothing to save.

        Runs in a thread of its own, because the main thread may be busy.
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
                    logging.info("%s: ends at once, with nothing to save.", name)
                    os._exit(128 + numbers[0])
                logging.info(
                    "%s: the state will be saved after the steps that are being "
                    "computed. A second signal ends this process at once.",
                    name,
                )
