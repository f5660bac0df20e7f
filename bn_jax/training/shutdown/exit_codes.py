"""Exit codes 1 and 3, and the last message, of a failed run.

The exit codes of signals are in `signals.py`.
"""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from bn_jax.errors import DivergedError, UserError
from bn_jax.training.distributed.processes import LostProcessError, leave_processes

# The user must change something first.
_FIX_FIRST = 1
# The same command may succeed: another process has ended or was too slow.
_TRY_AGAIN = 3
_START_AGAIN = (
    "Start all processes again; the run resumes from the last complete checkpoint."
)

# Start of the messages of JAX's runtime. While JAX dispatches a step, it raises them as
# ValueError.
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|"
    "UNKNOWN): "
)


@contextmanager
def exiting_with_message(program: str, *, workdir: str) -> Iterator[None]:
    """Ends the process if an error is raised within, with the reason as its last line.

    The process ends at once. Otherwise JAX would wait for processes that have ended,
    and other processes for this one; Orbax's threads and TensorBoard's writer would
    print tracebacks of work that they cannot complete. An error in the program itself
    keeps its traceback; in a process that runs alone it is raised again.

    Args:
        program: Name of the program, with which its messages start.
        workdir: The run's workdir, for errors that do not name a file.
    """
    try:
        yield
    except DivergedError as error:
        # All processes raise this error, and each prints it.
        _print_line(f"{program}: {error}")
        leave_processes()
        _exit(_FIX_FIRST)
    except UserError as error:
        _exit(_FIX_FIRST, f"{program}: {error}")
    except Exception as error:
        # JAX's runtime, Orbax and the file system raise errors of many classes. This
        # function decides by their messages, and raises or prints all the others.
        # Out of memory is not retryable: the next run needs as much memory.
        if "RESOURCE_EXHAUSTED" in str(error):
            _exit(_FIX_FIRST, f"{program}: a device is out of memory: {error}")
        is_one_of_several = jax.distributed.is_initialized()
        is_lost = isinstance(error, LostProcessError)
        if is_lost or (is_one_of_several and _is_from_the_runtime(error)):
            reason = f": {error}" if is_lost else f" ({error}). {_START_AGAIN}"
            _exit(_TRY_AGAIN, f"{program}: another process may have ended{reason}")
        if isinstance(error, OSError):
            # Not every error names a file: that of a full disk does not.
            reason = f"workdir {workdir}: the run has ended early: {error}"
            _exit(_FIX_FIRST, f"{program}: {reason}")
        if not is_one_of_several:
            raise
        traceback.print_exc()
        reason = f"one process of several has failed. {_START_AGAIN}"
        _exit(_TRY_AGAIN, f"{program}: {reason}")


def _is_from_the_runtime(error: Exception) -> bool:
    if isinstance(error, ValueError):
        return bool(_STATUS.match(str(error)))
    kinds = ConnectionError | TimeoutError | jax.errors.JaxRuntimeError
    return isinstance(error, kinds)


def _exit(code: int, message: str = "") -> None:
    sys.stdout.flush()
    if message:
        _print_line(message)
    os._exit(code)


def _print_line(message: str) -> None:
    # One write for the whole line, because other threads may write at the same time.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
