"""Lock of a workdir: one run at a time can use it."""

import fcntl
import os
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from absl import logging

from bn_jax.errors import UserError
from bn_jax.workdir.files import unusable_workdir_error

_LOCK = "lock"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a workdir while the context is open.

    The operating system releases the lock when the process ends for any reason. The
    lock is on a file, `lock`, because network file systems do not share locks on
    folders. If the function created the workdir and the run wrote nothing, the function
    removes the workdir at the end.

    Args:
        workdir: Path of the workdir, which is created if it does not exist.

    Raises:
        UserError: If another run uses the workdir, it cannot be created, or the path is
            an address such as `gs://bucket/run`.
    """
    if re.match(r"\w+:/", str(workdir)):
        raise UserError(
            f"workdir {workdir}: must be a folder, but is an address. Mount the bucket "
            "and pass the mounted folder as --workdir."
        )
    try:
        is_new = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire_lock(workdir)
    except OSError as error:
        raise unusable_workdir_error(workdir, error) from error
    try:
        yield
    finally:
        # Remove the file before the lock is released. A run that has opened the file
        # meanwhile notices that it was removed, and opens a new one.
        with suppress(OSError):
            (workdir / _LOCK).unlink()
            if is_new:
                # This raises OSError if the run has written anything.
                workdir.rmdir()
        os.close(descriptor)


def _acquire_lock(workdir: Path) -> int:
    """Locks the workdir and returns the descriptor of the lock file."""
    while True:
        descriptor = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"workdir {workdir}: another run is using it now "
                f"({read_owner(workdir)}). Wait until that run ends, or choose another "
                "--workdir."
            ) from error
        except OSError as error:
            # Some network file systems do not support locks.
            logging.warning(
                "workdir %s: cannot be locked (%s). Use it for one run at a time.",
                workdir,
                error,
            )
        # The run that held the lock may have removed the file after this process opened
        # it. Then another run could create and lock a new file, so try again.
        if os.fstat(descriptor).st_nlink:
            # The UUID makes the owner unique: processes of one run compare owners to
            # check that they see the same workdir, not a copy of it.
            owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4()}"
            os.truncate(descriptor, 0)
            os.write(descriptor, owner.encode())
            os.fsync(descriptor)
            return descriptor
        os.close(descriptor)


def read_owner(workdir: Path) -> str:
    """Returns the run that holds the lock, or held it last.

    Args:
        workdir: Path of the workdir.

    Returns:
        Host, process id and a UUID; empty if the lock file cannot be read.
    """
    try:
        return (workdir / _LOCK).read_text()
    except OSError:
        return ""
