"""Runs that end early, and that resume with the same bits."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training.tiny_runs import (
    EVALUATED,
    Complete,
    assert_same_result,
    interrupt,
    tiny_config,
)

from bn_jax.training import loop
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics


@pytest.fixture(scope="module")
def interrupted(bn: Complete, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that ended between two checkpoints; to be copied."""
    workdir = tmp_path_factory.mktemp("interrupted") / "run"
    interrupt(bn.config, workdir)
    return workdir


@pytest.fixture
def workdir(interrupted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(interrupted, tmp_path / "run")


def test_a_run_that_ended_between_two_checkpoints_goes_on_to_the_same_bits(
    bn: Complete, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not (workdir / "summary.json").exists()
    caplog.set_level(logging.INFO, logger="absl")
    train(bn.config, workdir, show_progress=False)
    assert f"{workdir}: resumes after step 25." in caplog.messages
    assert_same_result(workdir, bn)


@pytest.mark.parametrize(
    ("where", "method", "step"),
    [
        pytest.param(MetricsWriter, "write", 20, id="before_the_first_checkpoint"),
        pytest.param(
            *(Checkpoints, "save", 25),
            id="with_metrics_but_no_checkpoint",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(MetricsWriter, "write", 60),
            id="at_the_last_evaluation",
            marks=pytest.mark.slow,
        ),
        pytest.param(Checkpoints, "save", 60, id="before_the_last_checkpoint"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    bn: Complete, tmp_path: Path, where: type, method: str, step: int
) -> None:
    interrupt(bn.config, tmp_path, where=where, method=method, step=step)
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, bn)


def test_a_run_without_statistics_goes_on_to_the_same_bits(
    baseline: Complete, tmp_path: Path
) -> None:
    interrupt(baseline.config, tmp_path)
    train(baseline.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, baseline)


def test_a_run_that_was_stopped_before_its_summary_still_gets_one(
    bn: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(loop, "summarize")
        with pytest.raises(NameError):
            train(bn.config, tmp_path, show_progress=False)
    summary = train(bn.config, tmp_path, show_progress=False)
    assert summary["final_test_accuracy"] == bn.summary["final_test_accuracy"]
    assert_same_result(tmp_path, bn)


def test_a_run_goes_on_with_other_checkpoints(
    bn: Complete, workdir: Path, idx_dir: Path
) -> None:
    config = tiny_config(idx_dir, checkpoint__every_steps=15, checkpoint__keep=9)
    train(config, workdir, show_progress=False)
    saved = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert saved == {25, 30, 45, 60}
    assert_same_result(workdir, bn)


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_bits(
    bn: Complete, tmp_path: Path, idx_dir: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from training.tiny_runs import tiny_config
from bn_jax.training.loop import train
from bn_jax.training.logs.writer import MetricsWriter
write = MetricsWriter.write
def write_or_die(self, step, values):
    if step == 40:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, step, values)
MetricsWriter.write = write_or_die
train(tiny_config(Path(sys.argv[1])), sys.argv[2])
"""
    tests = str(Path(__file__).parents[1])
    killed = subprocess.run(
        [sys.executable, "-c", program, str(idx_dir), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": tests, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr
    assert [line["step"] for line in read_metrics(tmp_path)] == EVALUATED[:3]
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(tmp_path, bn)
