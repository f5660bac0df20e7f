"""The command line of train.py and of `bn-jax train`.

Exit codes: 0 the run is complete; 1 an error that the user can fix, in one line; 3 one
of several processes failed or ended; 143 and 130 stopped by SIGTERM and SIGINT, with
the state saved.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging

from bn_jax.errors import UserError
from bn_jax.progress import is_of_interest
from bn_jax.setting_words import take_settings
from bn_jax.train_flags import FLAGS, exit_if_help_is_asked_for
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.compilation import cache_compiled_programs
from bn_jax.training.distributed.processes import join_processes
from bn_jax.training.loop import train
from bn_jax.training.shutdown.exit_codes import exiting_with_message

_REQUIRED = {
    "config": "the file of a configuration, or the name of one that bn_jax ships",
    "workdir": "the folder of this run",
}


def main(words: Sequence[str] | None = None, *, program: str = "train.py") -> None:
    """Parses the flags, trains, and ends the program.

    Args:
        words: Words of the command line after the program's name; by default those of
            the process.
        program: Name of the program in messages.
    """
    words = sys.argv[1:] if words is None else words
    exit_if_help_is_asked_for(words, program=program)
    words, settings = take_settings(words)
    config = flags.DEFINE_string("config", None, FLAGS["config"])
    workdir = flags.DEFINE_string("workdir", None, FLAGS["workdir"])
    coordinator = flags.DEFINE_string(
        "coordinator_address", None, FLAGS["coordinator_address"]
    )
    num_processes = flags.DEFINE_integer("num_processes", None, FLAGS["num_processes"])
    process_id = flags.DEFINE_integer("process_id", None, FLAGS["process_id"])
    profile_steps = flags.DEFINE_string("profile_steps", None, FLAGS["profile_steps"])
    cache = flags.DEFINE_string("compilation_cache", None, FLAGS["compilation_cache"])

    def run(_: Sequence[str]) -> None:
        logging.get_absl_handler().addFilter(is_of_interest)
        # Lines for people to read: --showprefixforinfo adds time and place to each.
        flags.FLAGS.set_default("showprefixforinfo", False)
        with exiting_with_message(program, workdir=str(workdir.value)):
            loaded = load_config(str(config.value), overrides=settings)
            join_processes(coordinator.value, num_processes.value, process_id.value)
            cache_compiled_programs(cache.value)
            train(
                loaded,
                str(workdir.value),
                profile_steps=_parse_profile_steps(profile_steps.value),
            )

    app.run(
        run,
        argv=[program, *words],
        flags_parser=lambda arguments: _parse_flags(arguments, program=program),
    )


def _parse_flags(arguments: Sequence[str], *, program: str) -> list[str]:
    """Parses the flags, and ends the program with one line for each mistake."""
    try:
        words = flags.FLAGS(list(arguments))
    except flags.Error as error:
        sys.exit(f"{program}: {str(error).splitlines()[-1].strip()}")
    if len(words) > 1:
        sys.exit(
            f"{program}: {words[1]!r} is not a flag; write settings as "
            "--config.NAME=VALUE."
        )
    for name, advice in _REQUIRED.items():
        if not flags.FLAGS[name].value:
            sys.exit(f"{program}: --{name} is missing: give {advice}.")
    return words


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
