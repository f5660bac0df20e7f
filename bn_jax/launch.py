"""Several local processes of one program, which find each other and end together."""

import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO

from bn_jax.errors import UserError

# A process that loses another one notices in seconds, and has its own output to write.
SECONDS_TO_END = 30.0
# After a signal all processes save a checkpoint.
SECONDS_TO_SAVE = 120.0
# From SIGTERM, or a second signal, to SIGKILL.
SECONDS_TO_DIE = 5.0

_OWN_FLAGS = ("coordinator_address", "num_processes", "process_id")

# Linux kills the process when the launcher dies, however that comes about; a launcher
# that died before this was asked for is no longer the parent. A program that replaces
# itself, and not `preexec_fn`, which is unsafe where threads run.
_DIE_WITH_THE_LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
try:
    os.execv(sys.argv[2], sys.argv[3:])
except OSError as error:
    sys.exit(f"{sys.argv[2]}: {error.strerror}")
"""


def launch(command: Sequence[str], *, num_processes: int) -> int:
    r"""The exit code of a program that ran as several processes of this machine.

    Each gets `--coordinator_address`, `--num_processes` and `--process_id`, as
    `jax.distributed` needs them, and a session of its own, so that Ctrl-C reaches it
    once, through the launcher. What it writes comes out line by line behind its
    number. Call it in the main thread: signals, and a child's tie to its parent, are
    the thread's that made it.

    SIGINT and SIGTERM are passed on. When a process fails, the others have
    `SECONDS_TO_END` to end by themselves, then SIGTERM, and `SECONDS_TO_DIE` later
    SIGKILL; after a signal they have `SECONDS_TO_SAVE`. On Linux they die with the
    launcher; elsewhere they outlive its SIGKILL.

    Args:
        command: The program and its arguments. What must receive the signals is the
            program itself, no shell around it.
        num_processes: How many, at least 1. With GPUs each process sees one, unless
            `JAX_LOCAL_DEVICE_IDS` says which.

    Returns:
        0 if all have returned 0; 128 + n after signal n; otherwise the code of the
        process that failed first, which is 128 + n if signal n killed it.

    Raises:
        UserError: If `num_processes` is below 1, there is no such program, its
            arguments name a process already, or the system is not POSIX.
    """
    path = _check(command, num_processes)
    processes: list[subprocess.Popen[bytes]] = []
    with selectors.DefaultSelector() as selector, _signals() as (wakeup, received):
        run = _Run(processes, received)
        selector.register(wakeup, selectors.EVENT_READ, lambda: bool(wakeup.recv(4096)))
        try:
            for words, environment in _children(command, path, num_processes):
                processes.append(
                    subprocess.Popen(
                        words,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        start_new_session=True,
                    )
                )
                _follow(processes[-1], f"[{len(processes) - 1}] ", selector)
            while run.is_going_on():
                _handle_events(selector, run.seconds_left())
            # What has left a process's session may keep its output open for ever.
            deadline = time.monotonic() + SECONDS_TO_DIE
            while len(selector.get_map()) > 1 and time.monotonic() < deadline:
                _handle_events(selector, deadline - time.monotonic())
        finally:
            _kill(processes)
    return run.exit_code


class _Run:
    """What becomes of the processes, and what is done about it when."""

    def __init__(
        self, processes: Sequence[subprocess.Popen[bytes]], received: list[int]
    ) -> None:
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
        _write(sys.stderr, f"[launch] {what}\n".encode())


def _check(command: Sequence[str], num_processes: int) -> str:
    """The file of the program, once nothing is wrong with the arguments."""
    if os.name != "posix":
        raise UserError("launch: it needs Linux or macOS; start each process by hand.")
    if num_processes < 1:
        raise UserError(
            f"launch: --num_processes must be at least 1, and is {num_processes}."
        )
    if not command:
        raise UserError(
            "launch: the command to run is missing; it comes last, behind --, as in "
            "-- python train.py --config=FILE --workdir=DIR."
        )
    for word in command:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in _OWN_FLAGS:
            raise UserError(f"launch: it adds --{name} itself; leave {word} out.")
    path = shutil.which(command[0])
    if path is None:
        raise UserError(
            f"launch: {command[0]!r} is no program that can be run; the command is "
            "everything behind --, such as -- python train.py --config=FILE."
        )
    return os.path.abspath(path)


def _children(
    command: Sequence[str], path: str, num_processes: int
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Command line and environment of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    for index in range(num_processes):
        values = (address, num_processes, index)
        flags = [f"--{n}={v}" for n, v in zip(_OWN_FLAGS, values, strict=True)]
        words = [*command, *flags]
        if sys.platform == "linux":
            parent = str(os.getpid())
            shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_THE_LAUNCHER, parent]
            words = [*shim, path, *words]
        environment = {
            # Each process would take all GPUs otherwise.
            "JAX_LOCAL_DEVICE_IDS": str(index),
            # What a process prints would be lost with it otherwise.
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            # JAX listens to the whole network otherwise.
            "JAX_COORDINATOR_BIND_ADDRESS": address,
        }
        yield words, environment


@contextmanager
def _signals() -> Iterator[tuple[socket.socket, list[int]]]:
    """A socket that wakes the launcher, and the SIGINTs and SIGTERMs it has got.

    SIGCHLD wakes it as well: whoever fails first is seen before those who follow.
    """
    received: list[int] = []
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    handlers = {
        signal.SIGCHLD: lambda *_: None,
        signal.SIGINT: lambda number, _: received.append(number),
        signal.SIGTERM: lambda number, _: received.append(number),
    }
    old_wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    old_handlers = {n: signal.signal(n, handler) for n, handler in handlers.items()}
    try:
        yield reader, received
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(old_wakeup)
        reader.close()
        writer.close()


def _handle_events(selector: selectors.BaseSelector, seconds: float | None) -> None:
    """Waits for events; one whose handler returns False is not waited for again."""
    for key, _ in selector.select(seconds):
        if not key.data():
            selector.unregister(key.fileobj)


def _follow(
    process: subprocess.Popen[bytes], prefix: str, selector: selectors.BaseSelector
) -> None:
    """Has the process's output written wherever the launcher's own goes."""
    assert process.stdout is not None
    assert process.stderr is not None
    for pipe, stream in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
        handler = _copier(pipe, stream, prefix.encode())
        selector.register(pipe, selectors.EVENT_READ, handler)


def _copier(pipe: IO[bytes], stream: IO[str], prefix: bytes) -> Callable[[], bool]:
    """A function that copies whole lines from a pipe, and says whether more may come.

    A carriage return ends a line as well: progress bars are drawn with them.
    """
    # A carriage return at the end may be half of a CRLF.
    end_of_line = re.compile(rb"(\r\n|\n|\r(?=.))", re.DOTALL)
    rest = b""

    def copy() -> bool:
        nonlocal rest
        new = os.read(pipe.fileno(), 1 << 16)
        rest += new
        if not new and rest:
            rest = rest.rstrip(b"\r") + b"\n"
        *parts, rest = end_of_line.split(rest)
        lines = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
        # A progress bar begins with a carriage return, before which is nothing.
        _write(stream, b"".join(prefix + line for line in lines if line != b"\r"))
        return bool(new)

    return copy


def _write(stream: IO[str], text: bytes) -> None:
    stream.flush()
    # Bytes, because what a process writes need not be text.
    stream.buffer.write(text)  # pyright: ignore[reportAttributeAccessIssue]
    stream.buffer.flush()  # pyright: ignore[reportAttributeAccessIssue]


def _send(
    process: subprocess.Popen[bytes], number: int, *, to_group: bool = False
) -> None:
    # It may have ended since; macOS refuses signals to who has.
    with suppress(ProcessLookupError, PermissionError):
        (os.killpg if to_group else os.kill)(process.pid, number)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Leaves no process behind, nor its pipes."""
    for process in processes:
        if process.returncode is None:
            _send(process, signal.SIGKILL, to_group=True)
            process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
