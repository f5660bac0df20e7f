"""A folder belongs to one configuration, and what it holds can be read back."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from bn_jax.errors import UserError
from bn_jax.workdir.files import (
    FORMAT_VERSION,
    check_metrics,
    check_same_config,
    claim_workdir,
    holds_run,
    read_config,
    read_metrics,
    read_summary,
    write_summary,
)

CONFIG = {
    "seed": 0,
    "probes": ("percentiles",),
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
}


@pytest.fixture
def claimed(tmp_path: Path) -> Path:
    workdir = tmp_path / "runs" / "first"
    claim_workdir(workdir, CONFIG)
    return workdir


def refuse(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_claiming_makes_the_folder_and_writes_the_configuration(claimed: Path) -> None:
    config = json.loads((claimed / "config.json").read_text())
    assert config == {
        "format_version": FORMAT_VERSION,
        **CONFIG,
        "probes": ["percentiles"],
    }


def test_the_same_configuration_may_come_back(claimed: Path) -> None:
    assert holds_run(claimed)
    check_same_config(claimed, read_config(claimed), CONFIG)


def test_a_folder_that_does_not_exist_is_free_and_not_made(tmp_path: Path) -> None:
    assert not holds_run(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_folder_is_free(tmp_path: Path) -> None:
    assert not holds_run(tmp_path)


def test_another_configuration_is_refused_with_every_difference(claimed: Path) -> None:
    other = {**CONFIG, "seed": 1, "optimizer": {"name": "sgd", "learning_rate": 1.0}}
    expected = (
        "holds a run with another configuration: optimizer.learning_rate is 0.1 in the "
        "workdir and 1.0 in this command; seed is 0 in the workdir and 1 in this "
        "command. Choose another --workdir"
    )
    with pytest.raises(UserError, match=expected):
        check_same_config(claimed, CONFIG, other)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {**CONFIG, "batch_size": 60},
            "batch_size is 'missing' in the workdir and 60 in this command",
        ),
        (
            {"optimizer": CONFIG["optimizer"]},
            "seed is 0 in the workdir and 'missing' in this command",
        ),
    ],
)
def test_a_setting_that_only_one_of_them_has_is_a_difference(
    claimed: Path, config: dict[str, Any], expected: str
) -> None:
    advice = "the version of bn_jax that started it"
    with pytest.raises(UserError, match=rf"{expected}\..* {advice}"):
        check_same_config(claimed, CONFIG, config)


def test_a_run_without_its_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(
        UserError, match=r"holds a run, but its config\.json is missing"
    ):
        holds_run(tmp_path)


def test_the_folder_of_other_runs_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "another_program"
    foreign.mkdir()
    (foreign / "config.json").write_text("{}")
    assert not holds_run(tmp_path)
    claim_workdir(tmp_path / "run", CONFIG)
    expected = f"{tmp_path}: must be .* such as run. .* --workdir={tmp_path}/new"
    with pytest.raises(UserError, match=expected):
        holds_run(tmp_path)


def test_settings_that_may_differ_are_no_difference(claimed: Path) -> None:
    other = {**CONFIG, "optimizer": {"name": "adam"}}
    check_same_config(claimed, CONFIG, other, may_differ=["optimizer"])
    only_one = {**CONFIG, "optimizer": {**CONFIG["optimizer"], "name": "adam"}}
    check_same_config(claimed, CONFIG, only_one, may_differ=["optimizer.name"])
    with pytest.raises(UserError, match=r"and 1 in this command\. Choose"):
        check_same_config(
            claimed, CONFIG, {**other, "seed": 1}, may_differ=["optimizer"]
        )


@pytest.mark.parametrize("damaged", ["{", "[1]", "{}", '{"format_version": "x"}'])
def test_a_configuration_that_is_damaged_is_refused(
    claimed: Path, damaged: str
) -> None:
    path = claimed / "config.json"
    path.write_text(damaged)
    with pytest.raises(UserError, match=f"{path}: the file is damaged .* from a copy"):
        read_config(claimed)


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be used \(.*Not a directory"):
        claim_workdir(tmp_path / "file" / "run", CONFIG)


@pytest.mark.parametrize("method", ["mkdir", "write_text"])
def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError, match=r"Read-only .* that can be written to"):
        claim_workdir(tmp_path / "run", CONFIG)


def test_a_summary_comes_back_with_its_format(claimed: Path) -> None:
    write_summary(claimed, {"steps_to_accuracy": {}})
    expected = {"format_version": FORMAT_VERSION, "steps_to_accuracy": {}}
    assert read_summary(claimed) == expected


def test_an_incomplete_run_has_no_summary(claimed: Path) -> None:
    assert read_summary(claimed) is None


def test_half_a_summary_is_never_one(
    claimed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match="Read-only"):
        write_summary(claimed, {"final_test_accuracy": 0.9})
    assert read_summary(claimed) is None


def test_metrics_come_back_in_their_order(claimed: Path) -> None:
    (claimed / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20}\n')
    assert read_metrics(claimed) == [{"step": 10}, {"step": 20}]


def test_before_the_first_evaluation_there_are_no_metrics(claimed: Path) -> None:
    assert read_metrics(claimed) == []


@pytest.mark.parametrize("cut", ['{"step": 2', '{"step": 20}'])
def test_a_last_line_that_is_not_complete_is_left_out(claimed: Path, cut: str) -> None:
    (claimed / "metrics.jsonl").write_text('{"step": 10}\n' + cut)
    assert read_metrics(claimed) == [{"step": 10}]


@pytest.mark.parametrize(
    "damaged",
    [b"{", b"", b"\xff", b"[1]", b"{}", b'{"step": "x"}', b'{"step": 10}'],
)
def test_another_line_that_is_damaged_is_refused(claimed: Path, damaged: bytes) -> None:
    path = claimed / "metrics.jsonl"
    path.write_bytes(damaged + b'\n{"step": 10}\n')
    with pytest.raises(UserError, match=f"{path}: the file is damaged .* from a copy"):
        read_metrics(claimed)


@pytest.mark.parametrize("damaged", [b"{", b"", b"\xff", b"[1]"])
def test_a_summary_that_is_damaged_is_refused_with_the_way_out(
    claimed: Path, damaged: bytes
) -> None:
    path = claimed / "summary.json"
    path.write_bytes(damaged)
    with pytest.raises(
        UserError, match=f"{path}: the file is damaged .* Remove the file and"
    ):
        read_summary(claimed)


def test_evaluations_that_are_missing_are_named(claimed: Path) -> None:
    path = claimed / "metrics.jsonl"
    path.write_text('{"step": 10}\n{"step": 30}\n')
    check_metrics(claimed, [30, 10])
    with pytest.raises(UserError, match=f"{path}: .* for the steps 20, 40. Restore"):
        check_metrics(claimed, [10, 20, 30, 40])
    path.unlink()
    with pytest.raises(UserError, match=r"for the steps 0, 1, 2, 3, 4 and \d+ more\."):
        check_metrics(claimed, range(9))
