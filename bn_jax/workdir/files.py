"""Files of a workdir, the folder of one run.

A workdir holds `config.json`, `metrics.jsonl` (one line per evaluation), `summary.json`
(once the run is complete), `checkpoints/`, TensorBoard's event files, and at times
`profile/` (a trace), `damaged/` (checkpoints) and `lock` (while a process uses it).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bn_jax.errors import UserError, shorten
from bn_jax.workdir.differences import differences

FORMAT_VERSION = 2


def holds_run(workdir: Path) -> bool:
    """Returns True if the workdir holds a run, and False if it is free for one.

    Args:
        workdir: Path of the workdir, which need not exist.

    Raises:
        UserError: If the configuration of the run is missing, if other runs lie
            directly below the workdir, or if it cannot be read.
    """
    if _exists(workdir / "config.json"):
        return True
    if _exists(workdir / "metrics.jsonl"):
        raise UserError(
            f"workdir {workdir}: holds a run, but its config.json is missing. Choose "
            "another --workdir."
        )
    if runs := [*filter(_holds_version, workdir.glob("*/config.json"))]:
        raise UserError(
            f"workdir {workdir}: must be the folder of one run, but holds others, such "
            f"as {min(runs).parent.name}. Choose a new one: --workdir={workdir}/new."
        )
    return False


def check_same_config(
    workdir: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    *,
    may_differ: Sequence[str] = (),
) -> None:
    """Checks that a command has the configuration of the run in the workdir.

    Args:
        workdir: Path of the workdir.
        old: The configuration of the run, JSON-ready.
        new: The configuration of the command, JSON-ready.
        may_differ: Settings, or groups of settings, that a resumed run may change,
            such as "log_every" and "parallel".

    Raises:
        UserError: If another setting differs.
    """
    places = ("in the workdir", "in this command")
    differing = differences(old, new, places=places, may_differ=may_differ)
    if differing:
        advice = ""
        if any("'missing'" in difference for difference in differing):
            advice = (
                " A missing setting may be newer than the run; in that case resume "
                "the run with the version of bn_jax that started it."
            )
        raise UserError(
            f"workdir {workdir}: holds a run with another configuration: "
            f"{'; '.join(differing)}. Choose another --workdir.{advice}"
        )


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Creates the workdir and writes the configuration into it.

    Call `check_same_config` first: the configuration replaces one that is there.

    Args:
        workdir: Path of the workdir.
        config: The configuration, JSON-ready.

    Raises:
        UserError: If the workdir cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        content = json.dumps(_with_version(config), indent=2) + "\n"
        _write_atomically(workdir / "config.json", content)
    except OSError as error:
        raise unusable_workdir_error(workdir, error) from error


def read_config(workdir: Path) -> dict[str, Any]:
    """Returns the configuration of the run in a workdir, as JSON values.

    Args:
        workdir: Path of the workdir.

    Raises:
        UserError: If the workdir holds no run, or a run of another format version.
    """
    path = workdir / "config.json"
    if not _exists(path):
        raise UserError(
            f"workdir {workdir}: holds no run (config.json is missing). "
            "Choose the --workdir of a run."
        )
    config = _read_object(path)
    version = config.pop("format_version")
    if version != FORMAT_VERSION:
        age = "a newer" if version > FORMAT_VERSION else "an older"
        raise UserError(
            f"workdir {workdir}: has format {version}, but this version of bn_jax "
            f"reads format {FORMAT_VERSION}. Use {age} version of bn_jax."
        )
    return config


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """Returns the content of `summary.json`; None if the run is not complete.

    Args:
        workdir: Path of the workdir.

    Raises:
        UserError: If the file is damaged.
    """
    path = workdir / "summary.json"
    if not path.exists():
        return None
    return _read_object(
        path,
        advice="Remove the file and repeat the training command: the run resumes "
        "from its last checkpoint and writes a new summary",
    )


def write_summary(workdir: Path, summary: Mapping[str, Any]) -> None:
    """Writes `summary.json` atomically.

    Args:
        workdir: Path of the workdir.
        summary: Values to write, JSON-ready.
    """
    content = json.dumps(_with_version(summary), indent=2) + "\n"
    _write_atomically(workdir / "summary.json", content)


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Returns the metrics of each evaluation, in the order of steps.

    The list is empty before the first evaluation. The function ignores an incomplete
    last line, which a crash can leave.

    Args:
        workdir: Path of the workdir.

    Raises:
        UserError: If any other line is damaged.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        metrics = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(m, dict) and type(m.get("step")) is int for m in metrics):
            raise ValueError("a line is not an evaluation")
        steps = [m["step"] for m in metrics]
        if any(second <= first for first, second in pairwise(steps)):
            raise ValueError("the steps do not increase from line to line")
    except ValueError as error:
        raise _damaged_file_error(path, error) from error
    return metrics


def check_metrics(workdir: Path, steps: Iterable[int]) -> None:
    """Checks that `metrics.jsonl` has a line for each of these evaluations.

    Args:
        workdir: Path of the workdir.
        steps: The step of each evaluation.

    Raises:
        UserError: If a line is missing or damaged.
    """
    evaluated = {line["step"] for line in read_metrics(workdir)}
    missing = sorted(set(steps) - evaluated)
    if missing:
        raise UserError(
            f"{workdir / 'metrics.jsonl'}: must have a line for every evaluation, but "
            f"has none for the steps {shorten(missing)}. Restore the file from a "
            "copy, or choose another --workdir."
        )


def drop_metrics_after(workdir: Path, step: int) -> None:
    """Removes the lines of later steps from `metrics.jsonl`.

    The function creates the file if it does not exist.

    Args:
        workdir: Path of the workdir.
        step: Last step whose line stays; 0 removes all lines.
    """
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    _write_atomically(workdir / "metrics.jsonl", lines)


def unusable_workdir_error(workdir: Path, error: Exception) -> UserError:
    """Returns the error for a workdir that the operating system cannot use.

    Args:
        workdir: Path of the workdir.
        error: The error from the operating system.
    """
    return UserError(
        f"workdir {workdir}: cannot be used ({error}). Choose a --workdir that can be "
        "written to."
    )


def _with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **values}


def _holds_version(path: Path) -> bool:
    return '"format_version"' in path.read_text()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise unusable_workdir_error(path.parent, error) from error


def _read_object(path: Path, *, advice: str | None = None) -> dict[str, Any]:
    """Returns the JSON object in a file, which must have a format version."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("the file does not hold a JSON object")
        if not isinstance(content.get("format_version"), int):
            raise ValueError("format_version is missing")
    except OSError as error:
        raise unusable_workdir_error(path.parent, error) from error
    except ValueError as error:
        raise _damaged_file_error(path, error, advice=advice) from error
    return content


def _write_atomically(path: Path, text: str) -> None:
    """Writes a file; until it is complete, other processes read the old content."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _damaged_file_error(
    path: Path, error: Exception, *, advice: str | None = None
) -> UserError:
    advice = advice or "Restore the file from a copy, or choose another --workdir"
    return UserError(f"{path}: the file is damaged ({error}). {advice}.")
