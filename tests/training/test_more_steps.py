"""Runs that get more steps than they began with."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from training.tiny_runs import (
    Complete,
    assert_same_result,
    complete_run,
    interrupt,
    tiny_config,
)

from bn_jax.errors import UserError
from bn_jax.training.config_files import load_config
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_config, read_metrics, read_summary


# The schedule of evaluations has the steps 10, 20, 30, 40 and 60.
@pytest.mark.parametrize(
    "steps", [35, pytest.param(40, marks=pytest.mark.slow)], ids=["between", "at_one"]
)
def test_a_complete_run_continues_to_the_bits_of_a_longer_one(
    bn: Complete, tmp_path: Path, idx_dir: Path, steps: int
) -> None:
    short = tiny_config(idx_dir, num_steps=steps)
    complete_run(short, tmp_path)
    assert read_metrics(tmp_path)[-1]["step"] == steps
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, bn)
    assert read_config(tmp_path)["num_steps"] == 60
    summary = read_summary(tmp_path)
    assert summary is not None
    assert summary["steps_to_accuracy"] == bn.summary["steps_to_accuracy"]
    with pytest.raises(UserError, match=f"num_steps is 60 in .* and {steps} in this"):
        train(short, tmp_path)


def test_a_complete_run_stays_as_it_is_if_it_cannot_continue(
    bn: Complete, tmp_path: Path
) -> None:
    workdir = shutil.copytree(bn.workdir, tmp_path / "run")
    for damaged in (workdir / "checkpoints").glob("*/manifest.json"):
        damaged.write_text("damaged")
    before = contents(workdir)
    config = bn.config.copy_and_resolve_references()
    config.num_steps = 90
    with pytest.raises(UserError, match="all checkpoints are damaged"):
        train(config, workdir, show_progress=False)
    assert contents(workdir) == before
    assert train(bn.config, workdir, show_progress=False) == bn.summary


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_interrupted_run_gets_more_steps_too(
    bn: Complete, tmp_path: Path, idx_dir: Path
) -> None:
    interrupt(tiny_config(idx_dir, num_steps=45), tmp_path)
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, bn)


@pytest.fixture
def cosine(bn: Complete, tmp_path: Path) -> tuple[ConfigDict, Path]:
    """A run of which only the files are there, whose rate falls to its end."""
    workdir = shutil.copytree(bn.workdir, tmp_path / "run")
    text = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text.replace('"constant"', '"cosine"'))
    config = bn.config.copy_and_resolve_references()
    config.schedule.name = "cosine"
    return config, workdir


def test_a_cosine_leaves_no_room_for_more_steps(
    cosine: tuple[ConfigDict, Path],
) -> None:
    config, workdir = cosine
    config.num_steps = 90
    expected = r"num_steps=90: .* has 60 steps and cannot get more.*'cosine' ends at"
    with pytest.raises(UserError, match=expected):
        train(config, workdir)
    assert read_summary(workdir) is not None


def test_another_schedule_is_another_configuration(bn: Complete) -> None:
    config: Any = bn.config.copy_and_resolve_references()
    config.num_steps, config.schedule.name = 90, "cosine"
    expected = r"another configuration: .*schedule\.name is 'constant' in the workdir"
    with pytest.raises(UserError, match=expected):
        train(config, bn.workdir)


def test_a_decay_that_is_computed_from_the_steps_is_named(tmp_path: Path) -> None:
    config: Any = load_config("inception_small:bn_x5")
    (tmp_path / "config.json").write_text(
        config.to_json().replace("{", '{"format_version": 2, ', 1)
    )
    config.num_steps = 640
    expected = r"schedule\.decay_every_steps is 53 in the workdir and 106 in this com"
    with pytest.raises(UserError, match=expected):
        train(config, tmp_path)
