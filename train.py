"""Trains what a configuration describes, in one process or as one of several.

Usage:
    python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/bn

Any setting may be changed: `--config.num_steps=2000`.

Exit codes: 0 complete; 1 something to mend, said in one line; 3 another process ended,
or one of several failed; 143 and 130 stopped by SIGTERM and SIGINT, the state saved.
"""

import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from logging import INFO

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from bn_jax.errors import DivergedError, UserError
from bn_jax.training.compilation import keep_compiled_code
from bn_jax.training.loop import train
from bn_jax.training.processes import (
    LostProcessError,
    join_processes,
    leave_processes,
)

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File that describes the run, `file.py` or `file.py:argument`."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run, and of no other.", required=True
)
flags.register_validator("workdir", bool, "the name of a folder is needed.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; found by itself on clusters."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
_PROFILE = flags.DEFINE_string(
    "profile_steps", None, "a:b writes a trace of steps a to b to workdir/profile."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache",
    None,
    "Folder that keeps compiled programs between runs; by default bn_jax/compiled in "
    "the user's cache, empty for none.",
)

# An end that the same command may mend: another process is gone, or was too slow.
_FAILED_TOGETHER = 3

# How JAX's runtime begins what it says, which is a ValueError where it happens while a
# step is handed to the devices.
_STATUS = re.compile(
    "(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|"
    "UNKNOWN): "
)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    """Absl's parser; what is wrong with a setting is said in a line."""
    try:
        words = flags.FLAGS(list(arguments))
    except flags.Error as error:
        # An error in a configuration file comes with its traceback.
        lines = [line for line in str(error).splitlines() if line.strip()]
        sys.exit(f"train.py: {lines[-1].strip()}")
    except (AttributeError, KeyError) as error:
        cause: object = error
        while isinstance(cause, BaseException):
            cause = cause.args[0]
        hint = str(cause).replace("\n", " ")
        sys.exit(f"train.py: there is no such setting in the configuration: {hint}")
    if len(words) > 1:
        sys.exit(f"train.py: {words[1]!r} is no flag; settings are --config.NAME=VALUE")
    return words


def main(_: Sequence[str]) -> None:
    """Runs `bn_jax.training.loop.train`."""
    # Orbax tells every detail of a checkpoint at the level of our few lines, and each
    # of its errors many times before it raises it.
    handler = logging.get_absl_handler()
    handler.addFilter(
        lambda r: (
            "bn_jax" in r.pathname or (r.levelno > INFO and "orbax" not in r.pathname)
        )
    )
    if logging.get_verbosity() == logging.WARNING:
        logging.set_verbosity(logging.INFO)
    # Until there is something to save, Ctrl-C ends the process where it is: Python
    # would wait for the others first, and show a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        keep_compiled_code(_CACHE.value)
        train(_CONFIG.value, _WORKDIR.value, profile_steps=_profile_steps())
    except DivergedError as error:
        # All processes have found the same.
        _say(f"train.py: {error}")
        leave_processes()
        _end(code=1)
    except UserError as error:
        _end(f"train.py: {error}", code=1)
    except (
        ConnectionError,
        TimeoutError,
        ValueError,
        jax.errors.JaxRuntimeError,
    ) as error:
        # What does not fit into memory now will not do so the next time.
        if "RESOURCE_EXHAUSTED" in str(error):
            _end(f"train.py: a device is out of memory: {error}", code=1)
        if not jax.distributed.is_initialized():
            raise
        if isinstance(error, ValueError) and not _STATUS.match(str(error)):
            _end_by_mistake()
        _end_with_the_others(error)
    except LostProcessError as error:
        _end_with_the_others(error)
    except OSError as error:
        # It need not name a file: a full disk does not.
        message = (
            f"train.py: workdir {_WORKDIR.value}: the run has ended early: {error}"
        )
        _end(message, code=1)
    except Exception:
        if not jax.distributed.is_initialized():
            raise
        _end_by_mistake()


def _profile_steps() -> tuple[int, int] | None:
    if _PROFILE.value is None:
        return None
    first, colon, last = _PROFILE.value.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise UserError(f"--profile_steps must be a:b, and is {_PROFILE.value!r}.")
    return int(first), int(last)


def _end_with_the_others(error: Exception) -> None:
    _end(f"train.py: another process has ended, or: {error}", code=_FAILED_TOGETHER)


def _end_by_mistake() -> None:
    # Whatever the error is, and be it a mistake in the program: JAX would wait for the
    # others when this process ends, and they wait for it.
    traceback.print_exc()
    _end("train.py: one process of several has failed.", code=_FAILED_TOGETHER)


def _end(message: str = "", *, code: int) -> None:
    """Ends this process now, with the message as its last line.

    JAX would wait for processes that are gone, and Orbax's threads and TensorBoard's
    writer would show with tracebacks what they cannot complete.
    """
    sys.stdout.flush()
    if message:
        _say(message)
    os._exit(code)


def _say(message: str) -> None:
    # In one piece: other threads may be writing their last words beside it.
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
