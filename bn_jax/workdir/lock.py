"""The lock of a run's folder: one run at a time, and who it is."""

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
from bn_jax.workdir.files import unusable

_LOCK = "lock"


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """A context in which no other run can use the folder.

    The system itself drops the lock when the process ends, in whatever way. It lies on
    a file, `lock`, because network file systems share no locks of folders. A folder
    that was made for a run that wrote nothing is removed again.

    Args:
        workdir: The folder; made if it is not there.

    Raises:
        UserError: If another run is using it, it cannot be made, or it is an address
            and no folder.
    """
    if re.match(r"\w+:/", str(workdir)):
        raise UserError(
            f"workdir {workdir}: it must be a folder, and is an address. Mount the "
            "bucket, and give --workdir its folder."
        )
    try:
        is_new = not workdir.exists()
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = _open_lock(workdir)
    except OSError as error:
        raise unusable(workdir, error) from error
    try:
        yield
    finally:
        # While it is locked: whoever opened the file meanwhile sees that it is gone.
        with suppress(OSError):
            (workdir / _LOCK).unlink()
            if is_new:
                # It fails where the run has written anything.
                workdir.rmdir()
        os.close(descriptor)


def _open_lock(workdir: Path) -> int:
    """The descriptor of the folder's lock, once it is held."""
    while True:
        descriptor = os.open(workdir / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UserError(
                f"workdir {workdir}: another run is using it at this moment "
                f"({read_owner(workdir)}). Wait for it, or choose another --workdir."
            ) from error
        except OSError as error:
            # Some network file systems have no locks.
            logging.warning("%s: not locked (%s); use it for one run.", workdir, error)
        # The run that held it may just have removed it.
        if os.fstat(descriptor).st_nlink:
            # Of no other run: a copy of the folder has another one's.
            owner = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4()}"
            os.truncate(descriptor, 0)
            os.write(descriptor, owner.encode())
            os.fsync(descriptor)
            return descriptor
        os.close(descriptor)


def read_owner(workdir: Path) -> str:
    """Who locks the folder, or did last; empty where that cannot be seen.

    Args:
        workdir: The folder.
    """
    try:
        return (workdir / _LOCK).read_text()
    except OSError:
        return ""
