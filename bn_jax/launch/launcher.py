"""Several local processes of one program, which find each other and end together."""

import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bn_jax.errors import UserError
from bn_jax.launch.output import handle_events, relay_output
from bn_jax.launch.supervisor import SECONDS_TO_DIE, Supervisor, kill

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
    SIGKILL; after a signal they have `SECONDS_TO_SAVE`, as `supervisor` says.
    On Linux they die with the launcher; elsewhere they outlive its SIGKILL.

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
        run = Supervisor(processes, received)
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
                relay_output(processes[-1], f"[{len(processes) - 1}] ", selector)
            while run.is_going_on():
                handle_events(selector, run.seconds_left())
            # What has left a process's session may keep its output open for ever.
            deadline = time.monotonic() + SECONDS_TO_DIE
            while len(selector.get_map()) > 1 and time.monotonic() < deadline:
                handle_events(selector, deadline - time.monotonic())
        finally:
            kill(processes)
    return run.exit_code


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
