"""Rows of compiled programs are kept, replaced and dated as they are compiled."""

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.aot_record import commit_of, name_of, rows_to_keep, with_row

_HEADER = {"device": "TPU v5 lite", "versions": {"jax": "0.10.2"}}
_NAMES = ["modern-bfloat16-bn_jax", "modern-bfloat16-flax", "bn_x30-float32-flax"]


def row_of(name: str, **more: object) -> dict[str, object]:
    arm, dtype, norm = name.split("-")
    return {"arm": arm, "dtype": dtype, "norm": norm, **more}


def test_a_row_is_called_by_what_was_compiled() -> None:
    assert [name_of(row_of(name)) for name in _NAMES] == _NAMES


def test_the_committed_record_begins_a_run_of_some_programs() -> None:
    path = Path(__file__).parents[2] / "results" / "aot.json"
    record = json.loads(path.read_text())
    header = {key: value for key, value in record.items() if key != "programs"}
    rows = rows_to_keep(record, header, is_whole=False)
    names = [name_of(row) for row in rows]
    assert len(set(names)) == 6
    assert with_row(rows, rows[2], names) == record["programs"]


def test_a_row_takes_the_place_of_that_of_its_program() -> None:
    rows = [row_of(name, commit="1234567") for name in _NAMES]
    new = row_of(_NAMES[1], commit="89abcde")
    assert with_row(rows, new, _NAMES) == [rows[0], new, rows[2]]


def test_rows_that_are_compiled_in_any_order_are_written_in_theirs() -> None:
    rows: list[dict[str, object]] = []
    for name in reversed(_NAMES):
        rows = with_row(rows, row_of(name), _NAMES)
    assert rows == [row_of(name) for name in _NAMES]


def test_a_row_of_a_program_that_is_no_more_is_left_out() -> None:
    rows = [row_of("former-float32-flax")]
    assert with_row(rows, row_of(_NAMES[0]), _NAMES) == [row_of(_NAMES[0])]


def test_no_record_has_no_rows_to_keep() -> None:
    assert rows_to_keep({}, _HEADER, is_whole=False) == []


def test_rows_of_another_compiler_are_not_kept_beside_new_ones() -> None:
    record = {**_HEADER, "programs": [row_of(_NAMES[0])]}
    header = {**_HEADER, "versions": {"jax": "0.12.0"}}
    assert rows_to_keep(record, header, is_whole=True) == []
    with pytest.raises(
        ValueError, match=r"must have .*0\.12\.0.*but have .*0\.10\.2.*all"
    ):
        rows_to_keep(record, header, is_whole=False)


def test_a_commit_is_dirty_where_a_file_beside_the_results_differs(
    tmp_path: Path,
) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath="]
        command = ["git", "-C", str(tmp_path), *who, *words]
        subprocess.run(command, check=True, capture_output=True, timeout=20)

    (tmp_path / "results").mkdir()
    code, result = tmp_path / "code.py", tmp_path / "results" / "aot.json"
    for path in (code, result):
        path.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    commit = commit_of(tmp_path)
    result.write_text("2")
    assert commit_of(tmp_path) == commit
    code.write_text("2")
    assert commit_of(tmp_path) == f"{commit}-dirty"
