"""Flags of train.py and of `bn-jax train`, and the help that explains them."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from bn_jax.extras import MissingExtraError, require_train_extra

FLAGS = {
    "config": "Configuration of the run: FILE, or the NAME of one that bn_jax ships, "
    "perhaps with :ARGUMENT. --config.NAME=VALUE changes a setting.",
    "workdir": "Folder of this run, and of no other.",
    "coordinator_address": "host:port of process 0; on clusters JAX finds it.",
    "num_processes": "Number of processes of the run.",
    "process_id": "Number of this process, from 0.",
    "profile_steps": "FIRST:LAST writes a trace of the steps after FIRST, up to LAST, "
    "to workdir/profile.",
    "compilation_cache": "Folder that keeps compiled programs between runs; by default "
    "bn_jax/compiled in the user's cache, empty for none.",
}


def exit_if_help_is_asked_for(words: Sequence[str], *, program: str) -> None:
    """Prints the help and ends the program, if a word of the command line asks for it.

    Args:
        words: Words of the command line after the program's name.
        program: Name of the program in messages.
    """
    if not {"-h", "--help"} & set(words):
        return
    parser = ArgumentParser(
        program,
        usage=f"{program} --config=NAME --workdir=DIR [flags]",
        description="Trains from a configuration, or resumes the run in a workdir.",
        epilog="example:\n"
        f"  {program} --config=mnist_cnn:bn --workdir=runs/cnn --config.seed=1\n"
        "--helpfull shows the flags of absl as well.",
        formatter_class=RawDescriptionHelpFormatter,
        add_help=False,
    )
    for name, meaning in FLAGS.items():
        parser.add_argument(f"--{name}", metavar="", help=meaning)
    print(parser.format_help(), end="")
    try:
        require_train_extra(program)
    except MissingExtraError as error:
        print(f"\n{error}")
    sys.exit()
