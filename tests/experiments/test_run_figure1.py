"""From one command to the figure: runs, picture, record and table."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from reporting.runs import synthetic_run, write_run
from training.tiny_runs import SHORT

from bn_jax.errors import UserError
from bn_jax.experiments import run_figure1 as module
from bn_jax.experiments.run_figure1 import figure1
from bn_jax.experiments.runs import Job
from bn_jax.reporting.load import load_run
from bn_jax.workdir.lock import locked


@pytest.fixture
def drawn_jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a figure asks for; each is complete at once."""
    asked: list[Job] = []

    def complete(jobs: Sequence[Job]) -> None:
        for job in jobs:
            asked.append(job)
            accuracies = [0.9, 0.96] if job.config.norm.name else [0.5, 0.9]
            write_run(job.workdir, synthetic_run(accuracies, seed=job.config.seed))

    monkeypatch.setattr(module, "run_jobs", complete)
    return asked


@pytest.fixture
def jobs(drawn_jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that a figure asks for, where its picture does not matter."""
    monkeypatch.setattr(module, "draw_figure1", lambda *_: None)
    return drawn_jobs


@pytest.mark.parametrize("seeds", [0, -1])
def test_a_figure_without_seeds_is_refused(
    tmp_path: Path, jobs: list[Job], seeds: int
) -> None:
    with pytest.raises(UserError, match=f"--seeds must be at least 1, but is {seeds}"):
        figure1(tmp_path, seeds=seeds)
    assert jobs == []


def test_both_arms_are_trained_with_every_seed(tmp_path: Path, jobs: list[Job]) -> None:
    figure1(tmp_path, seeds=2)
    assert {(job.config.norm.name, job.config.seed, job.workdir) for job in jobs} == {
        (None, 0, tmp_path / "baseline" / "seed0"),
        (None, 1, tmp_path / "baseline" / "seed1"),
        ("batch_norm", 0, tmp_path / "bn" / "seed0"),
        ("batch_norm", 1, tmp_path / "bn" / "seed1"),
    }


def test_changed_settings_reach_both_arms(tmp_path: Path, jobs: list[Job]) -> None:
    figure1(tmp_path, seeds=1, overrides={"optimizer.learning_rate": "0.5"})
    assert [job.config.optimizer.learning_rate for job in jobs] == [0.5, 0.5]


def test_an_unknown_setting_is_refused_before_anything_is_trained(
    tmp_path: Path, jobs: list[Job]
) -> None:
    with pytest.raises(UserError, match=r"num_stps: the configuration has no such"):
        figure1(tmp_path, seeds=1, overrides={"num_stps": "5"})
    assert jobs == []


def test_the_table_and_the_place_of_the_picture_are_returned(
    tmp_path: Path, drawn_jobs: list[Job]
) -> None:
    text = figure1(tmp_path, seeds=2)
    assert "Without BN it takes 2.0 times the steps to 90 %." in text
    assert text.splitlines()[-1] == f"The figure: {tmp_path / 'figure1.png'}"


def test_the_record_says_what_machine_it_was_made_on(
    tmp_path: Path, jobs: list[Job]
) -> None:
    figure1(tmp_path, seeds=1)
    record = json.loads((tmp_path / "figure1.json").read_text())
    assert record["machine"].keys() == {"cpu", "cores", "python"}
    assert record["steps_to_90_percent_baseline_over_bn"] == 2.0


def test_a_folder_that_another_command_is_using_is_refused_before_any_run(
    tmp_path: Path, jobs: list[Job]
) -> None:
    expected = f"workdir {tmp_path}: another run is using it"
    with locked(tmp_path), pytest.raises(UserError, match=expected):
        figure1(tmp_path, seeds=1)
    assert jobs == []


def test_the_folder_is_locked_until_the_figure_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    is_locked = []

    def draw(arms: Any, paths: Sequence[Path]) -> None:
        is_locked.append((tmp_path / "lock").exists())

    monkeypatch.setattr(module, "draw_figure1", draw)
    figure1(tmp_path, seeds=1)
    assert is_locked == [True]
    assert not (tmp_path / "lock").exists()


@pytest.mark.slow
def test_the_command_trains_both_arms_and_draws(tmp_path: Path, idx_dir: Path) -> None:
    settings = {**SHORT, "dataset.idx_dir": str(idx_dir)}
    command = [
        *(sys.executable, "-m", "bn_jax.cli", "figure1", "--seeds=1"),
        f"--workdir={tmp_path}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(f"The figure: {tmp_path / 'figure1.png'}\n")
    record = json.loads((tmp_path / "figure1.json").read_text())
    for arm in ("bn", "baseline"):
        run = load_run(tmp_path / arm / "seed0")
        curves = record["arms"][arm]["curves"]
        assert curves["step"] == [5, 10]
        assert curves["test_accuracy"] == [run.metrics["test_accuracy"].tolist()]
    assert (tmp_path / "figure1.png").exists()
    assert (tmp_path / "figure1.svg").exists()
