"""How a program ends whose run cannot go on: a line that says why, and a code."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from bn_jax.errors import DivergedError, UserError
from bn_jax.training.distributed.processes import LostProcessError, leave_processes

# Something to mend.
_MEND = 1
# The same command may mend it: another process is gone, or was too slow.
_FAILED_TOGETHER = 3

# How JAX's runtime begins what it says. It is a ValueError where it comes while a step
# is handed to the devices.
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|"
    "UNKNOWN): "
)


@contextmanager
def ending_in_words(program: str, *, workdir: str) -> Iterator[None]:
    """Ends the process for what is raised within, with the reason as its last line.

    JAX would wait for processes that are gone, and they for this one; Orbax's threads
    and TensorBoard's writer would show with tracebacks what they cannot complete. A
    mistake in the program keeps its traceback, and in one process alone it is raised.

    Args:
        program: What its lines begin with.
        workdir: Folder of the run, for errors that name no file.
    """
    try:
        yield
    except DivergedError as error:
        # All processes have found the same, and each says it.
        _say(f"{program}: {error}")
        leave_processes()
        _end(_MEND)
    except UserError as error:
        _end(_MEND, f"{program}: {error}")
    except Exception as error:
        # What does not fit into memory now will not do so the next time.
        if "RESOURCE_EXHAUSTED" in str(error):
            _end(_MEND, f"{program}: a device is out of memory: {error}")
        several = jax.distributed.is_initialized()
        is_lost = isinstance(error, LostProcessError)
        if is_lost or (several and _is_of_the_runtime(error)):
            reason = f"another process has ended, or: {error}"
            _end(_FAILED_TOGETHER, f"{program}: {reason}")
        if isinstance(error, OSError):
            # It need not name a file: a full disk does not.
            reason = f"workdir {workdir}: the run has ended early: {error}"
            _end(_MEND, f"{program}: {reason}")
        if not several:
            raise
        traceback.print_exc()
        _end(_FAILED_TOGETHER, f"{program}: one process of several has failed.")


def _is_of_the_runtime(error: Exception) -> bool:
    if isinstance(error, ValueError):
        return bool(_STATUS.match(str(error)))
    kinds = ConnectionError | TimeoutError | jax.errors.JaxRuntimeError
    return isinstance(error, kinds)


def _end(code: int, message: str = "") -> None:
    sys.stdout.flush()
    if message:
        _say(message)
    os._exit(code)


def _say(message: str) -> None:
    # In one piece: other threads may be writing their last words beside it.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
