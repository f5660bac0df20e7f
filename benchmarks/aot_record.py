"""Rows of `results/aot.json`, which are kept until their program is compiled again."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def name_of(row: Mapping[str, Any]) -> str:
    """Returns the name of a program on the command line.

    Args:
        row: Row of the program, of which arm, dtype and normalization are used.
    """
    return "{arm}-{dtype}-{norm}".format(**row)


def rows_to_keep(
    record: Mapping[str, Any], header: Mapping[str, Any], *, is_whole: bool
) -> list[Row]:
    """Returns the rows of an earlier benchmark that had the same header.

    Args:
        record: Content of the existing file; empty if there is none.
        header: Compiler, device and versions of this benchmark: everything that it
            writes except the rows.
        is_whole: True if this benchmark compiles all programs, so that it needs no
            rows with another header.

    Returns:
        The rows to keep; none if the header differs and `is_whole` is True.

    Raises:
        ValueError: If the header differs and `is_whole` is False.
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
        "benchmarks/aot.py: the rows to keep must have "
        f"{ {key: header[key] for key in differing} }, but have {differing}; leave out "
        "the names of programs to compile all of them."
    )


def with_row(rows: Sequence[Row], row: Row, names: Sequence[str]) -> list[Row]:
    """Adds a row, in place of an earlier row of the same program.

    Args:
        rows: Existing rows.
        row: The new row.
        names: Names of all programs, in the order of the record. Rows of other
            programs, which are no longer compiled, are dropped.
    """
    by_name = {name_of(one): one for one in (*rows, row)}
    return [by_name[name] for name in names if name in by_name]


def commit_of(root: Path) -> str:
    """Returns the commit of a checkout, with "-dirty" appended if tracked files differ.

    Args:
        root: Folder of the checkout.

    Raises:
        CalledProcessError: If the folder is not a Git checkout.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        output = subprocess.run(command, check=True, capture_output=True, text=True)
        return output.stdout.strip()

    # Without results/: the benchmark writes there itself, and compiles nothing of it.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!results")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
