"""The folder of a run: one configuration, and what came of it.

It holds `config.json`, `metrics.jsonl` (one evaluation a line), `summary.json` (once
the run is complete), `checkpoints/`, TensorBoard's event files, and `lock` while a
process uses it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from bn_jax.errors import UserError

FORMAT_VERSION = 2


def check_workdir(
    workdir: Path, config: Mapping[str, Any], *, may_differ: Sequence[str] = ()
) -> None:
    """Makes sure that the folder is free, or holds a run of this configuration.

    Args:
        workdir: The folder; it need not exist.
        config: The configuration, JSON-ready.
        may_differ: Settings, or groups of them, that are of no importance to a run
            that goes on, such as "log_every" and "parallel".

    Raises:
        UserError: If the folder holds a run of another configuration, or cannot be
            read.
    """
    path = workdir / "config.json"
    if _exists(path):
        _check_same(workdir, _read_object(path), _content(config), may_differ)
    elif _exists(workdir / "metrics.jsonl"):
        raise UserError(
            f"workdir {workdir}: it holds a run without its config.json. Choose "
            "another --workdir."
        )


def differences(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    *,
    places: tuple[str, str] = ("there", "here"),
    may_differ: Sequence[str] = (),
) -> list[str]:
    """What two configurations differ in, each setting in words.

    Args:
        first: The one, JSON-ready.
        second: The other.
        places: Where each is.
        may_differ: Settings, or groups of them, that are left out.

    >>> differences({"norm": {"name": None}}, {"norm": {"name": "batch_norm"}})
    ["norm.name is None there and 'batch_norm' here"]
    """
    # Through JSON, because it turns tuples into lists.
    old, new = (_flat(json.loads(json.dumps(values))) for values in (first, second))
    return [
        f"{key} is {old.get(key, 'missing')!r} {places[0]} and "
        f"{new.get(key, 'missing')!r} {places[1]}"
        for key in sorted(old.keys() | new.keys())
        if not _names_one_of(may_differ, key)
        and old.get(key, "missing") != new.get(key, "missing")
    ]


def claim_workdir(workdir: Path, config: Mapping[str, Any]) -> None:
    """Makes the folder this configuration's, once `check_workdir` has passed.

    Args:
        workdir: The folder; made if it is not there.
        config: The configuration, JSON-ready.

    Raises:
        UserError: If the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        content = json.dumps(_content(config), indent=2) + "\n"
        _replace(workdir / "config.json", content)
    except OSError as error:
        raise unusable(workdir, error) from error


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration of the run in a folder, as JSON has it.

    Args:
        workdir: The run's folder.

    Raises:
        UserError: If it holds no run, or one of another format.
    """
    path = workdir / "config.json"
    if not _exists(path):
        raise UserError(
            f"workdir {workdir}: it holds no run (there is no config.json)."
        )
    config = _read_object(path)
    version = config.pop("format_version")
    if version != FORMAT_VERSION:
        age = "a newer" if version > FORMAT_VERSION else "an older"
        raise UserError(
            f"workdir {workdir}: it has format {version}, and this version of bn_jax "
            f"reads format {FORMAT_VERSION}; {age} one reads it."
        )
    return config


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """What a complete run came to; None before that.

    Args:
        workdir: The run's folder.

    Raises:
        UserError: If what it holds is damaged.
    """
    path = workdir / "summary.json"
    if not path.exists():
        return None
    return _read_object(
        path,
        advice="Remove it, and train this run again: that goes on from its last "
        "checkpoint, and writes it anew",
    )


def write_summary(workdir: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `summary.json`, never half of it, and returns what it holds.

    Args:
        workdir: The run's folder.
        summary: JSON-ready.
    """
    content = _content(summary)
    _replace(workdir / "summary.json", json.dumps(content, indent=2) + "\n")
    return content


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """What each evaluation measured, in the order of steps; none before the first.

    A last line that a crash has cut off is left out.

    Args:
        workdir: The run's folder.

    Raises:
        UserError: If another line is damaged.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        metrics = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(m, dict) and type(m.get("step")) is int for m in metrics):
            raise ValueError("a line is no evaluation")
        steps = [m["step"] for m in metrics]
        if any(second <= first for first, second in pairwise(steps)):
            raise ValueError("its steps do not rise from line to line")
    except ValueError as error:
        raise _damaged(path, error) from error
    return metrics


def check_metrics(workdir: Path, steps: Iterable[int]) -> None:
    """Makes sure that `metrics.jsonl` has the lines of these evaluations.

    Args:
        workdir: The run's folder.
        steps: Steps that were taken before each.

    Raises:
        UserError: If it lacks one, or a line is damaged.
    """
    there = {line["step"] for line in read_metrics(workdir)}
    missing = sorted(set(steps) - there)
    if missing:
        shown = ", ".join(map(str, missing[:5])) + (", ..." if missing[5:] else "")
        raise UserError(
            f"{workdir / 'metrics.jsonl'}: it must hold a line of every evaluation, and"
            f" lacks those of the steps {shown}. Bring it back from a copy, or choose "
            "another --workdir."
        )


def drop_metrics_after(workdir: Path, step: int) -> None:
    """Leaves those lines of `metrics.jsonl` that belong to the first steps.

    Args:
        workdir: The run's folder.
        step: Last step whose line is kept; with 0 the file is empty, or made.
    """
    kept = [line for line in read_metrics(workdir) if line["step"] <= step]
    lines = "".join(json.dumps(line) + "\n" for line in kept)
    _replace(workdir / "metrics.jsonl", lines)


def unusable(workdir: Path, error: Exception) -> UserError:
    """The error of a folder that the system refuses.

    Args:
        workdir: The folder.
        error: What the system says.
    """
    return UserError(
        f"workdir {workdir}: it cannot be used ({error}). Choose a --workdir that can "
        "be written."
    )


def _content(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **values}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise unusable(path.parent, error) from error


def _read_object(path: Path, *, advice: str | None = None) -> dict[str, Any]:
    """What a file holds that was written with `_content`."""
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
        if not isinstance(content.get("format_version"), int):
            raise ValueError("it has no format_version")
    except OSError as error:
        raise unusable(path.parent, error) from error
    except ValueError as error:
        raise _damaged(path, error, advice=advice) from error
    return content


def _replace(path: Path, text: str) -> None:
    """Writes a file whole: whoever reads it meanwhile sees the old one."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _damaged(path: Path, error: Exception, *, advice: str | None = None) -> UserError:
    advice = advice or "Bring it back from a copy, or choose another --workdir"
    return UserError(f"{path}: it is damaged ({error}). {advice}.")


def _check_same(
    workdir: Path,
    old: Mapping[str, Any],
    new: Mapping[str, Any],
    may_differ: Sequence[str],
) -> None:
    differing = differences(old, new, may_differ=may_differ)
    if differing:
        advice = ""
        if any("'missing'" in difference for difference in differing):
            advice = (
                " A setting that is missing may be newer than the run: the version of "
                "bn_jax that began it goes on with it."
            )
        raise UserError(
            f"workdir {workdir}: it holds a run of another configuration: "
            f"{'; '.join(differing)}. Choose another --workdir.{advice}"
        )


def _names_one_of(names: Sequence[str], key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
