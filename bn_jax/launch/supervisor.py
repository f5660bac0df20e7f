"""What becomes of local processes: all end when one has failed, or on a signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from bn_jax.launch.output import write

# A process that loses another one notices in seconds, and has its own output to write.
SECONDS_TO_END = 30.0
# After a signal all processes save a checkpoint.
SECONDS_TO_SAVE = 120.0
# From SIGTERM, or a second signal, to SIGKILL.
SECONDS_TO_DIE = 5.0


class Supervisor:
    """What becomes of the processes, and what is done about it when.

    Attributes:
        exit_code: 0 until one has failed or a signal has come, whichever is first.
    """

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], received: Sequence[int]
    ) -> None:
        """Begins with what runs.

        Args:
            processes: Each in a session of its own; more may be added.
            received: Signals that are to be passed on; more may be added.
        """
        self.exit_code = 0
        self._processes = processes
        self._received = received
        self._num_passed_on = 0
        self._ended: set[int] = set()
        # The next signal that the launcher sends by itself, and when.
        self._next_signal = signal.SIGTERM
        self._deadline: float | None = None

    def is_going_on(self) -> bool:
        """Passes signals on, looks who has ended, and ends who is late."""
        self._pass_signals_on()
        for index, process in enumerate(self._processes):
            if index not in self._ended and process.poll() is not None:
                self._ended.add(index)
                # Whatever it has started ends with it.
                _send(process, signal.SIGKILL, to_group=True)
                self._judge(index, process.returncode)
        if self.seconds_left() == 0:
            self._end_who_is_late()
        return len(self._ended) < len(self._processes)

    def seconds_left(self) -> float | None:
        """Seconds until something is due; None if nothing is."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def _pass_signals_on(self) -> None:
        while self._num_passed_on < len(self._received):
            number = self._received[self._num_passed_on]
            self._num_passed_on += 1
            for process in self._running():
                _send(process, number)
            if self.exit_code == 0:
                self.exit_code = 128 + number
                self._say(f"{_name(number)} is passed on to all processes.")
                self._wait_for(SECONDS_TO_SAVE)
            else:
                # The second signal, or nothing left to save: one has failed.
                self._next_signal = signal.SIGKILL
                self._wait_for(SECONDS_TO_DIE)

    def _judge(self, index: int, returncode: int) -> None:
        code = returncode if returncode >= 0 else 128 - returncode
        if returncode >= 0:
            how = f"ended with code {code}"
        else:
            how = f"was killed by {_name(-returncode)} (code {code})"
        if self.exit_code == 0 and code != 0:
            self.exit_code = code
            self._say(f"process {index} {how}.")
            self._wait_for(SECONDS_TO_END)
        elif self._received and code not in (0, self.exit_code):
            self._say(f"process {index} {how}.")

    def _end_who_is_late(self) -> None:
        number = self._next_signal
        for index, process in enumerate(self._processes):
            if index not in self._ended:
                self._say(f"process {index} is still running: {_name(number)}.")
                _send(process, number, to_group=number == signal.SIGKILL)
        self._next_signal = signal.SIGKILL
        self._wait_for(SECONDS_TO_DIE)

    def _wait_for(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [p for i, p in enumerate(self._processes) if i not in self._ended]

    def _say(self, what: str) -> None:
        write(sys.stderr, f"[launch] {what}\n".encode())


def kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leaves no process behind, nor its pipes.

    Args:
        processes: Each in a session of its own, its output and errors pipes.
    """
    for process in processes:
        if process.returncode is None:
            _send(process, signal.SIGKILL, to_group=True)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def _send(
    process: subprocess.Popen[bytes], number: int, *, to_group: bool = False
) -> None:
    # It may have ended since; macOS refuses signals to who has.
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if to_group else os.kill)(process.pid, number)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
