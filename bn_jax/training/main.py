"""The command line of train.py: flags, processes, and the exit code.

Exit codes: 0 the run is complete; 1 an error that the user can fix, in one line; 3 one
of several processes failed or ended; 143 and 130 stopped by SIGTERM and SIGINT, with
the state saved.
"""

import signal
import sys
from collections.abc import Sequence
from logging import INFO

from absl import app, flags, logging
from ml_collections import config_flags

from bn_jax.errors import UserError
from bn_jax.training.distributed.compilation import cache_compiled_programs
from bn_jax.training.distributed.processes import join_processes
from bn_jax.training.loop import train
from bn_jax.training.shutdown.exit_codes import exiting_with_message


def main() -> None:
    """Parses the flags, trains, and ends the program."""
    # `--help` shows the flags of the program, which is train.py and not this file.
    flags.disclaim_key_flags()
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "File that describes the run, `file.py` or `file.py:argument`.",
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Folder of this run, and of no other.", required=True
    )
    flags.register_validator("workdir", bool, "must be the name of a folder.")
    coordinator = flags.DEFINE_string(
        "coordinator_address",
        None,
        "host:port of process 0; JAX finds it by itself on clusters.",
    )
    num_processes = flags.DEFINE_integer(
        "num_processes", None, "Number of processes of the run."
    )
    process_id = flags.DEFINE_integer(
        "process_id", None, "Number of this process, from 0."
    )
    profile_steps = flags.DEFINE_string(
        "profile_steps",
        None,
        "FIRST:LAST writes a trace of the steps after FIRST and up to LAST to "
        "workdir/profile.",
    )
    cache = flags.DEFINE_string(
        "compilation_cache",
        None,
        "Folder that keeps compiled programs between runs; by default "
        "bn_jax/compiled in the user's cache, empty for none.",
    )
    flags.mark_flag_as_required("config")

    def run(_: Sequence[str]) -> None:
        _show_our_log_lines()
        # Until there is something to save, Ctrl-C ends the process at once. Python's
        # own handler would wait for the other processes and print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with exiting_with_message("train.py", workdir=workdir.value):
            join_processes(coordinator.value, num_processes.value, process_id.value)
            cache_compiled_programs(cache.value)
            train(
                config.value,
                workdir.value,
                profile_steps=_parse_profile_steps(profile_steps.value),
            )

    app.run(run, flags_parser=_parse_flags)


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses the flags, and ends the program with one line for each mistake."""
    try:
        words = flags.FLAGS(list(arguments))
    except flags.Error as error:
        # The message holds a traceback if the configuration file has an error.
        lines = [line for line in str(error).splitlines() if line.strip()]
        sys.exit(f"train.py: {lines[-1].strip()}")
    except (AttributeError, KeyError) as error:
        cause: object = error
        while isinstance(cause, BaseException):
            cause = cause.args[0]
        hint = str(cause).replace("\n", " ")
        sys.exit(f"train.py: the configuration has no such setting ({hint})")
    if len(words) > 1:
        sys.exit(
            f"train.py: {words[1]!r} is not a flag; write settings as "
            "--config.NAME=VALUE."
        )
    return words


def _show_our_log_lines() -> None:
    # Orbax logs each detail of a checkpoint as INFO, and logs each error several times
    # before it raises it.
    logging.get_absl_handler().addFilter(
        lambda r: (
            "bn_jax" in r.pathname or (r.levelno > INFO and "orbax" not in r.pathname)
        )
    )
    if logging.get_verbosity() == logging.WARNING:
        logging.set_verbosity(logging.INFO)


def _parse_profile_steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal()):
        raise UserError(
            "--profile_steps must be two step numbers FIRST:LAST, such as 100:110, but "
            f"is {text!r}."
        )
    return int(first), int(last)
