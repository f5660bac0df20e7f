"""Supervisor that ends all local processes after a failure or a signal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from bn_jax.launch.output import write

# After one process has failed, the remaining ones notice within seconds. They then need
# time to write their own output.
SECONDS_TO_END = 30.0
# After a signal all processes need time to save a checkpoint.
SECONDS_TO_SAVE = 120.0
# Time from SIGTERM, or from a second signal, to SIGKILL.
SECONDS_TO_DIE = 5.0


class Supervisor:
    """Supervisor of several processes.

    After a failure or a signal all processes must end before a deadline. The supervisor
    sends SIGTERM or SIGKILL to those that do not.

    Attributes:
        exit_code: Exit code for the launcher. The first failure or signal sets it; 0
            before that.
    """

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], received: Sequence[int]
    ) -> None:
        """Stores the processes and signals that `poll` then handles.

        Args:
            processes: Processes, each in its own session. The caller may add more.
            received: Numbers of the signals to forward. The caller may add more.
        """
        self.exit_code = 0
        self._processes = processes
        self._received = received
        self._num_forwarded = 0
        self._ended: set[int] = set()
        # The next signal for late processes, and the time at which to send it.
        self._next_signal = signal.SIGTERM
        self._deadline: float | None = None

    def poll(self) -> bool:
        """Forwards signals, polls the processes, and ends those past the deadline.

        Returns:
            True while at least one process is running.
        """
        self._forward_signals()
        for index, process in enumerate(self._processes):
            if index not in self._ended and process.poll() is not None:
                self._ended.add(index)
                # Kill the programs that this process has started.
                _send(process, signal.SIGKILL, to_group=True)
                self._record_end(index, process.returncode)
        if self.seconds_left() == 0:
            self._signal_late_processes()
        return len(self._ended) < len(self._processes)

    def seconds_left(self) -> float | None:
        """Returns the seconds until the deadline; None if there is no deadline."""
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())

    def _forward_signals(self) -> None:
        while self._num_forwarded < len(self._received):
            number = self._received[self._num_forwarded]
            self._num_forwarded += 1
            for process in self._running():
                _send(process, number)
            if self.exit_code == 0:
                self.exit_code = 128 + number
                self._report(f"forwarding {_signal_name(number)} to all processes.")
                self._set_deadline(SECONDS_TO_SAVE)
            else:
                # A second signal means that the user does not want to wait. After a
                # failure the remaining processes cannot save a checkpoint.
                self._next_signal = signal.SIGKILL
                self._set_deadline(SECONDS_TO_DIE)

    def _record_end(self, index: int, returncode: int) -> None:
        code = returncode if returncode >= 0 else 128 - returncode
        if returncode >= 0:
            how = f"ended with code {code}"
        else:
            how = f"was killed by {_signal_name(-returncode)} (code {code})"
        if self.exit_code == 0 and code != 0:
            self.exit_code = code
            self._report(f"process {index} {how}.")
            self._set_deadline(SECONDS_TO_END)
        elif self._received and code not in (0, self.exit_code):
            self._report(f"process {index} {how}.")

    def _signal_late_processes(self) -> None:
        number = self._next_signal
        for index, process in enumerate(self._processes):
            if index not in self._ended:
                name = _signal_name(number)
                self._report(f"process {index} is still running; sending {name}.")
                _send(process, number, to_group=number == signal.SIGKILL)
        self._next_signal = signal.SIGKILL
        self._set_deadline(SECONDS_TO_DIE)

    def _set_deadline(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _running(self) -> list[subprocess.Popen[bytes]]:
        return [p for i, p in enumerate(self._processes) if i not in self._ended]

    def _report(self, message: str) -> None:
        write(sys.stderr, f"[launch] {message}\n".encode())


def kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kills the processes that still run, and closes all pipes.

    Args:
        processes: Processes, each in its own session, whose standard output and error
            are pipes.
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
    # The process may have ended meanwhile. For that, macOS raises PermissionError.
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if to_group else os.kill)(process.pid, number)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
