"""Launcher that runs one program as several connected processes on this machine."""

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

# Program that asks Linux to kill this process when the launcher dies, and then replaces
# itself with the command. If the launcher died before the request, the process has
# another parent by now and exits. `preexec_fn` would be unsafe because threads may run.
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
    """Runs a program as several processes on this machine.

    Each process receives `--coordinator_address`, `--num_processes` and `--process_id`,
    as `jax.distributed` needs them. Each process has its own session, so that Ctrl-C
    reaches it exactly once, through the launcher. The launcher copies the output line
    by line and puts the process's number in front of each line. Call `launch` in the
    main thread: Python handles signals there only, and Linux kills a child when the
    thread that created it ends.

    The launcher forwards SIGINT and SIGTERM. When a process fails, the remaining ones
    have `SECONDS_TO_END` seconds to exit. After a signal all have `SECONDS_TO_SAVE`
    seconds. Then the launcher sends SIGTERM, and after `SECONDS_TO_DIE` more seconds
    SIGKILL. If the launcher itself is killed by SIGKILL, its processes die with it on
    Linux and continue to run on other systems.

    Args:
        command: The program and its arguments. The launcher sends signals to this
            program only, so it must not be a shell that starts the real one.
        num_processes: Number of processes, at least 1. With GPUs each process uses one,
            unless `JAX_LOCAL_DEVICE_IDS` is set.

    Returns:
        0 if all processes returned 0. Otherwise the first event decides: 128 + n if the
        launcher received signal n, or the code of the process that failed, which is
        128 + n if signal n killed it.

    Raises:
        UserError: If `num_processes` is below 1, the program does not exist, its
            arguments already identify a process, or the system is not POSIX.
    """
    path = _find_program(command, num_processes)
    processes: list[subprocess.Popen[bytes]] = []
    with selectors.DefaultSelector() as selector, _collect_signals() as signals:
        wakeup, received = signals
        supervisor = Supervisor(processes, received)
        selector.register(wakeup, selectors.EVENT_READ, lambda: bool(wakeup.recv(4096)))
        try:
            for words, environment in _commands(command, path, num_processes):
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
            while supervisor.poll():
                handle_events(selector, supervisor.seconds_left())
            # A program that left its process's session can keep the pipes open forever.
            deadline = time.monotonic() + SECONDS_TO_DIE
            while len(selector.get_map()) > 1 and time.monotonic() < deadline:
                handle_events(selector, deadline - time.monotonic())
        finally:
            kill(processes)
    return supervisor.exit_code


def _find_program(command: Sequence[str], num_processes: int) -> str:
    """Checks the arguments and returns the path of the program."""
    if os.name != "posix":
        raise UserError("launch: needs Linux or macOS. Start each process by hand.")
    if num_processes < 1:
        raise UserError(
            f"launch: --num_processes must be at least 1, but is {num_processes}."
        )
    if not command:
        raise UserError(
            "launch: the command to run is missing. Write it last, after --, as in "
            "-- bn-jax train --config=FILE --workdir=DIR."
        )
    for word in command:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("-") and name in _OWN_FLAGS:
            raise UserError(f"launch: leave {word} out; launch adds --{name} itself.")
    path = shutil.which(command[0])
    if path is None:
        raise UserError(
            f"launch: command not found: {command[0]!r}. The command is everything "
            "after --, such as -- bn-jax train --config=FILE."
        )
    return os.path.abspath(path)


def _commands(
    command: Sequence[str], path: str, num_processes: int
) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Yields the command line and the environment of each process."""
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
            # Otherwise each process would claim all GPUs.
            "JAX_LOCAL_DEVICE_IDS": str(index),
            # Otherwise a killed process would lose the output that Python buffers.
            "PYTHONUNBUFFERED": "1",
            **os.environ,
            # Otherwise JAX would accept connections from the whole network.
            "JAX_COORDINATOR_BIND_ADDRESS": address,
        }
        yield words, environment


@contextmanager
def _collect_signals() -> Iterator[tuple[socket.socket, list[int]]]:
    """Yields a socket that wakes the launcher, and a list of received signals.

    The list collects SIGINT and SIGTERM. SIGCHLD wakes the launcher too, so that it
    sees the first failing process before others fail as a consequence.
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
