"""The rows of `results/aot.json`, each kept until its program is compiled anew."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def name_of(row: Mapping[str, Any]) -> str:
    """What a program is called on the command line.

    Args:
        row: Its arm, dtype and normalization, among others.
    """
    return "{arm}-{dtype}-{norm}".format(**row)


def rows_to_keep(
    record: Mapping[str, Any], header: Mapping[str, Any], *, is_whole: bool
) -> list[Row]:
    """The rows that a run begins with: those of the same compiler, device and versions.

    Args:
        record: What was written last; empty where nothing was.
        header: All but the rows, as this run will write it.
        is_whole: Whether the run compiles all programs.

    Raises:
        ValueError: If rows that the run does not compile are another compiler's.
    """
    before = {key: value for key, value in record.items() if key != "programs"}
    if not record or before == header:
        return list(record.get("programs", []))
    if is_whole:
        return []
    differing = {
        key: before.get(key) for key in header if header[key] != before.get(key)
    }
    raise ValueError(
        "benchmarks/aot.py: the rows that would be kept must be of "
        f"{ {key: header[key] for key in differing} }, and are of {differing}; compile "
        "all programs, by naming none."
    )


def with_row(rows: Sequence[Row], row: Row, names: Sequence[str]) -> list[Row]:
    """The rows with another one, in place of that of the same program.

    Args:
        rows: Those that there are.
        row: The new one.
        names: Names of all programs, in the record's order; rows of others, which are
            compiled no more, are left out.
    """
    by_name = {name_of(one): one for one in (*rows, row)}
    return [by_name[name] for name in names if name in by_name]


def commit_of(root: Path) -> str:
    """The commit of a checkout, with "-dirty" behind it where files differ from it.

    Args:
        root: The checkout's folder.

    Raises:
        CalledProcessError: If it is none.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        return output.stdout.strip()

    # What a run writes is no part of what it compiles.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
