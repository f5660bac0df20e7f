"""Trains what a configuration describes, in one process or as one of several.

Usage:
    python train.py --config=configs/mnist_mlp.py:bn --workdir=runs/bn

Any setting may be changed: `--config.num_steps=2000`.

Exit codes: 0 complete; 1 something to mend, said in one line; 3 another process ended,
or one of several failed; 143 and 130 stopped by SIGTERM and SIGINT, the state saved.
"""

import signal
import sys
from collections.abc import Sequence
from logging import INFO

from absl import app, flags, logging
from ml_collections import config_flags

from bn_jax.errors import UserError
from bn_jax.training.distributed.compilation import keep_compiled_code
from bn_jax.training.distributed.processes import join_processes
from bn_jax.training.loop import train
from bn_jax.training.shutdown.exit_codes import ending_in_words

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
    with ending_in_words("train.py", workdir=_WORKDIR.value):
        join_processes(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        keep_compiled_code(_CACHE.value)
        train(_CONFIG.value, _WORKDIR.value, profile_steps=_profile_steps())


def _profile_steps() -> tuple[int, int] | None:
    if _PROFILE.value is None:
        return None
    first, colon, last = _PROFILE.value.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise UserError(f"--profile_steps must be a:b, and is {_PROFILE.value!r}.")
    return int(first), int(last)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    app.run(main, flags_parser=_parse_flags)
