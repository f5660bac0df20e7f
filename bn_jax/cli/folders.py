"""Workdirs on the command line of `bn-jax`: as plain words, or after `--workdir`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bn_jax.errors import UserError

# Verbs that take workdirs, with the words that follow the verb in an example.
FOLDERS = {
    "figure1": "DIR",
    "figure2": "DIR",
    "evaluate": "DIR",
    "inspect": "DIR",
    "ensemble": "DIR DIR",
}


def add_folders(parser: argparse.ArgumentParser, verb: str, *, meaning: str) -> None:
    """Describes the folders of a verb in its help, and adds the option `--workdir`.

    Args:
        parser: Parser of the verb.
        verb: One of `FOLDERS`.
        meaning: Words for a folder.
    """
    # No positional argument: one that may be missing would have to stand before all
    # options. The parser leaves the plain words to the caller.
    parser.usage = f"bn-jax {verb} {FOLDERS[verb]} [options]"
    parser.description = f"DIR is the {meaning}; --workdir=DIR is accepted as well."
    parser.add_argument(
        "--workdir", type=Path, action="append", default=[], help=argparse.SUPPRESS
    )


def choose_folders(
    verb: str, words: Sequence[str], named: Sequence[Path]
) -> list[Path]:
    """Returns the folders that a command line gives to a verb.

    Args:
        verb: One of `FOLDERS`.
        words: Words of the command line that are not options.
        named: Values of `--workdir`.

    Raises:
        UserError: If there is no folder, or the verb takes one and got several.
    """
    folders = [*map(Path, words), *named]
    if not folders:
        raise UserError(f"a workdir is missing: bn-jax {verb} {FOLDERS[verb]}")
    if FOLDERS[verb] != "DIR":
        return folders
    different = {folder.resolve(): folder for folder in folders}
    if len(different) > 1:
        raise UserError(
            f"takes one workdir, but got {' and '.join(map(str, different.values()))}. "
            f"Give one: bn-jax {verb} DIR"
        )
    return folders[:1]
