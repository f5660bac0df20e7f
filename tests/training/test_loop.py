"""Whole runs: what they write, what they compute, and how they end before time."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from training import numpy_mlp
from training.tiny_runs import EVALUATED, final_state, initial_state, tiny_config

from bn_jax.data.batching import batch_indices
from bn_jax.data.idx import load_idx_folder
from bn_jax.errors import UserError
from bn_jax.experiments.configs import load_config
from bn_jax.training import loop
from bn_jax.training.checkpoint import Checkpoints
from bn_jax.training.loop import train
from bn_jax.training.writer import MetricsWriter
from bn_jax.workdir import read_metrics


class Complete(NamedTuple):
    """A run from its first step to its last, without a stop."""

    config: ConfigDict
    workdir: Path
    summary: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        lines = read_metrics(self.workdir)
        return {name: np.array([line[name] for line in lines]) for name in lines[0]}


class PowerFailureError(Exception):
    """Ends a run where a test wants it to."""


def complete_run(workdir: Path, idx_dir: Path, arm: str) -> Complete:
    config = tiny_config(idx_dir, arm=arm)
    return Complete(config, workdir, train(config, workdir, show_progress=False))


@pytest.fixture(scope="module")
def bn(tmp_path_factory: pytest.TempPathFactory, idx_dir: Path) -> Complete:
    return complete_run(tmp_path_factory.mktemp("runs") / "bn", idx_dir, "bn")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory, idx_dir: Path) -> Complete:
    workdir = tmp_path_factory.mktemp("runs") / "baseline"
    return complete_run(workdir, idx_dir, "baseline")


def fail_at(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, step: int
) -> None:
    """Makes the method fail, before it does anything, once the run is at that step."""
    original = getattr(where, method)

    def failing(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if step in (*arguments, *keywords.values()):
            raise PowerFailureError
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(where, method, failing)


def assert_same_result(config: ConfigDict, workdir: Path, expected: Complete) -> None:
    """The same bits in the figures and in the last checkpoint."""
    lines = (workdir / "metrics.jsonl").read_bytes()
    assert lines == (expected.workdir / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(
        final_state(config, workdir), final_state(expected.config, expected.workdir)
    )


def test_a_run_leaves_these_files(bn: Complete) -> None:
    names = {path.name.split(".tfevents")[0] for path in bn.workdir.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints", "events.out")
    }


def test_config_json_holds_every_setting(bn: Complete) -> None:
    config = json.loads((bn.workdir / "config.json").read_text())
    expected = json.loads(bn.config.to_json())
    assert config == {"format_version": 1, **expected}


def test_every_evaluation_and_every_checkpoint_is_a_line(bn: Complete) -> None:
    assert [line["step"] for line in read_metrics(bn.workdir)] == EVALUATED


def test_a_line_has_these_values(bn: Complete) -> None:
    for line in read_metrics(bn.workdir):
        assert {name: type(value) for name, value in line.items()} == {
            "step": int,
            "train_loss": float,
            "test_loss": float,
            "test_accuracy": float,
            "percentiles": list,
        }
        assert [type(value) for value in line["percentiles"]] == [float] * 3


def test_the_summary_has_these_values(bn: Complete) -> None:
    summary = json.loads((bn.workdir / "summary.json").read_text())
    assert {name: type(value) for name, value in summary.items()} == {
        "format_version": int,
        "final_test_accuracy": float,
        "steps_to_90_percent": int,
        "steps_per_second": float,
        "wall_seconds": float,
        "device": str,
        "versions": dict,
    }
    assert set(summary["versions"]) == {"jax", "flax", "bn_jax"}
    assert min(summary["steps_per_second"], summary["wall_seconds"]) > 0


def test_the_summary_is_what_train_returns(bn: Complete) -> None:
    assert json.loads((bn.workdir / "summary.json").read_text()) == bn.summary


def test_the_summary_agrees_with_the_metrics(bn: Complete) -> None:
    accuracy = bn.metrics["test_accuracy"]
    assert bn.summary["final_test_accuracy"] == accuracy[-1]
    first = bn.metrics["step"][accuracy >= 0.9][0]
    assert bn.summary["steps_to_90_percent"] == first


def test_a_run_that_stays_below_90_percent_never_reached_them(
    baseline: Complete,
) -> None:
    assert baseline.metrics["test_accuracy"].max() < 0.9
    assert baseline.summary["steps_to_90_percent"] is None


@pytest.mark.parametrize("arm", ["bn", "baseline"])
def test_a_run_is_that_of_float64_numpy(
    arm: str, idx_dir: Path, request: pytest.FixtureRequest
) -> None:
    run: Complete = request.getfixturevalue(arm)
    expected = numpy_run(run.config, load_idx_folder(idx_dir))
    for name, values in expected.items():
        # 60 steps of rounding errors in float32, each made larger by the next.
        np.testing.assert_allclose(
            run.metrics[name], values, rtol=2e-4, atol=2e-4, err_msg=name
        )


def numpy_run(config: ConfigDict, data: Any) -> dict[str, np.ndarray]:
    """All metrics of a run, in float64 from the same initial weights."""
    train_images, test_images = data.train_images > 127, data.test_images > 127
    state = jax.tree.map(lambda x: np.asarray(x, np.float64), initial_state(config))
    params, stats, unit = state.params, state.batch_stats, None
    losses: list[float] = []
    lines = []

    def indices(first_step: int, num_steps: int) -> np.ndarray:
        return batch_indices(
            210, 25, seed=config.seed, first_step=first_step, num_steps=num_steps
        )

    for step in range(config.num_steps + 1):
        if step in (0, *EVALUATED):
            ahead = [train_images[chosen] for chosen in indices(step, 4)]
            population = numpy_mlp.population_statistics(params, ahead) if stats else {}
            inputs, logits = numpy_mlp.predict(params, population, test_images)
            percentiles = np.percentile(inputs[:50], (15, 50, 85), axis=0)
            if unit is None:
                spread = percentiles[2] - percentiles[0]
                unit = np.argsort(spread)[(len(spread) - 1) // 2]
        if step in EVALUATED:
            lines.append(
                {
                    "step": step,
                    "train_loss": np.mean(losses),
                    "test_loss": numpy_mlp.cross_entropy(logits, data.test_labels),
                    "test_accuracy": np.mean(logits.argmax(-1) == data.test_labels),
                    "percentiles": percentiles[:, unit],
                }
            )
            losses = []
        (chosen,) = indices(step, 1)
        loss, params, stats = numpy_mlp.sgd_step(
            params,
            stats,
            train_images[chosen],
            data.train_labels[chosen],
            learning_rate=config.optimizer.learning_rate,
            momentum=config.norm.momentum,
        )
        losses.append(loss)
    return {name: np.array([line[name] for line in lines]) for name in lines[0]}


def test_the_last_checkpoint_is_of_the_last_step(bn: Complete) -> None:
    assert int(final_state(bn.config, bn.workdir).step) == 60
    folder = bn.workdir / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["60"]


def test_the_same_configuration_gives_the_same_bits(
    bn: Complete, tmp_path: Path
) -> None:
    train(bn.config, tmp_path / "again", show_progress=False)
    assert_same_result(bn.config, tmp_path / "again", bn)


def test_another_seed_gives_other_numbers(
    bn: Complete, tmp_path: Path, idx_dir: Path
) -> None:
    config = tiny_config(idx_dir, seed=1, num_steps=10)
    train(config, tmp_path, show_progress=False)
    (line,) = read_metrics(tmp_path)
    assert line["train_loss"] != bn.metrics["train_loss"][0]


def test_the_batch_size_of_evaluations_has_no_influence(
    bn: Complete, tmp_path: Path, idx_dir: Path
) -> None:
    config = tiny_config(idx_dir, evaluation__batch_size=1000)
    train(config, tmp_path, show_progress=False)
    first, second = bn.metrics, bn._replace(workdir=tmp_path).metrics
    np.testing.assert_array_equal(first["test_accuracy"], second["test_accuracy"])
    np.testing.assert_array_equal(first["train_loss"], second["train_loss"])
    np.testing.assert_allclose(first["test_loss"], second["test_loss"], rtol=1e-5)


def test_a_complete_run_is_not_trained_again(
    bn: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_dataset", None)
    before = {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")}
    assert train(bn.config, str(bn.workdir)) == bn.summary
    assert {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")} == before


@pytest.mark.parametrize(
    ("where", "method", "step"),
    [
        pytest.param(MetricsWriter, "write", 20, id="before_the_first_checkpoint"),
        pytest.param(Checkpoints, "save", 25, id="with_metrics_but_no_checkpoint"),
        pytest.param(MetricsWriter, "write", 40, id="between_two_checkpoints"),
        pytest.param(MetricsWriter, "write", 60, id="at_the_last_evaluation"),
        pytest.param(Checkpoints, "save", 60, id="before_the_last_checkpoint"),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    bn: Complete,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: type,
    method: str,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, where, method, step)
        with pytest.raises(PowerFailureError):
            train(bn.config, tmp_path, show_progress=False)
    assert not (tmp_path / "summary.json").exists()
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(bn.config, tmp_path, bn)


def test_a_run_without_statistics_goes_on_to_the_same_bits(
    baseline: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, MetricsWriter, "write", 40)
        with pytest.raises(PowerFailureError):
            train(baseline.config, tmp_path, show_progress=False)
    train(baseline.config, tmp_path, show_progress=False)
    assert_same_result(baseline.config, tmp_path, baseline)


def test_a_run_that_was_stopped_before_its_summary_still_gets_one(
    bn: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.delattr(loop, "write_summary")
        with pytest.raises(NameError):
            train(bn.config, tmp_path, show_progress=False)
    summary = train(bn.config, tmp_path, show_progress=False)
    assert summary["final_test_accuracy"] == bn.summary["final_test_accuracy"]
    assert_same_result(bn.config, tmp_path, bn)


def test_going_on_is_logged_with_the_step(
    bn: Complete,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, MetricsWriter, "write", 40)
        with pytest.raises(PowerFailureError):
            train(bn.config, tmp_path, show_progress=False)
    caplog.set_level(logging.INFO, logger="absl")
    train(bn.config, tmp_path, show_progress=False)
    assert f"{tmp_path}: goes on after step 25." in caplog.messages


@pytest.mark.slow
def test_a_killed_process_leaves_a_run_that_goes_on_to_the_same_bits(
    bn: Complete, tmp_path: Path, idx_dir: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from training.tiny_runs import tiny_config
from bn_jax.training.loop import train
from bn_jax.training.writer import MetricsWriter
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
    assert [line["step"] for line in read_metrics(tmp_path)] == EVALUATED[:4]
    train(bn.config, tmp_path, show_progress=False)
    assert_same_result(bn.config, tmp_path, bn)


def test_a_folder_of_another_run_is_refused_with_the_differences(
    bn: Complete, idx_dir: Path
) -> None:
    other = tiny_config(idx_dir, seed=3, optimizer__learning_rate=0.5)
    expected = (
        r"another configuration: optimizer\.learning_rate is 2\.0 there and 0\.5 here; "
        r"seed is 0 there and 3 here\."
    )
    with pytest.raises(UserError, match=expected):
        train(other, bn.workdir)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_steps": 0}, r"config\.num_steps must be at least 1, and is 0"),
        ({"batch_size": 0}, r"config\.batch_size must be at least 1"),
        ({"batch_size": 211}, r"211 examples a step are more than the 210 that digits"),
        ({"max_steps_per_dispatch": 0}, r"config\.max_steps_per_dispatch must be"),
        ({"evaluation__batch_size": 0}, r"config\.evaluation\.batch_size must be"),
        ({"evaluation__population_batches": 0}, r"population_batches must be at least"),
        ({"evaluation__probe_examples": -1}, r"probe_examples must be .* and is -1"),
        ({"evaluation__schedule__every_steps": 0}, r"schedule\.every_steps must be"),
        ({"evaluation__schedule__early_every_steps": 0}, r"early_every_steps must be"),
        ({"checkpoint__every_steps": 0}, r"config\.checkpoint\.every_steps must be"),
        ({"checkpoint__keep": 0}, r"config\.checkpoint\.keep must be at least 1"),
        ({"seed": -1}, r"config\.seed must not be negative, and is -1"),
        ({"binarize_threshold": -1}, r"must lie in 0 to 254, .* and is -1"),
        ({"binarize_threshold": 255}, r"must lie in 0 to 254, .* and is 255"),
        ({"dataset__data_dir": "elsewhere"}, r"give idx_dir or data_dir, not both"),
        ({"model__name": "mpl"}, r"unknown name 'mpl'; did you mean 'mlp'"),
        ({"model__nonlinearity": "sigmod"}, r"nonlinearity 'sigmod'; did .* 'sigmoid'"),
        ({"norm__name": "batchnorm"}, r"'batchnorm'; did you mean 'batch_norm'"),
        ({"optimizer__name": "sdg"}, r"optax has no optimizer 'sdg'"),
        ({"probes": ("median",)}, r"unknown probe 'median'"),
        ({"norm__momentum": 1.5}, r"momentum must lie in \[0, 1\), and is 1\.5"),
        ({"norm__epsilon": -1.0}, r"epsilon must not be negative; it is -1\.0"),
        ({"model__hidden_features": ()}, r"hidden_features"),
        ({"model__hidden_features": (8, 0)}, r"hidden_features"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(
    tmp_path: Path, idx_dir: Path, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        train(tiny_config(idx_dir, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_workdir_below_a_file_is_refused(tmp_path: Path, idx_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*/file/run: it cannot be used"):
        train(tiny_config(idx_dir), tmp_path / "file" / "run")


def test_a_workdir_that_is_a_file_is_refused(tmp_path: Path, idx_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"workdir .*/file: it cannot be used"):
        train(tiny_config(idx_dir), tmp_path / "file")


@pytest.mark.parametrize("arm", ["bn", "baseline"])
def test_a_loss_that_stops_being_finite_ends_the_run(
    tmp_path: Path, idx_dir: Path, arm: str
) -> None:
    config = tiny_config(idx_dir, arm=arm, optimizer__learning_rate=3e38)
    expected = "train_loss is (nan|inf) after step 10; a lower learning"
    with pytest.raises(UserError, match=expected):
        train(config, tmp_path, show_progress=False)
    assert read_metrics(tmp_path) == []


def test_a_test_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path, idx_dir: Path
) -> None:
    # The loss before the first step is finite, and nothing after it is.
    config = tiny_config(idx_dir, optimizer__learning_rate=3e38, num_steps=1)
    with pytest.raises(UserError, match=r"loss is (nan|inf) .* 1; a lower learning"):
        train(config, tmp_path, show_progress=False)


@pytest.mark.slow
def test_mnist_takes_fewer_steps_to_90_percent_with_batch_norm(tmp_path: Path) -> None:
    steps = {}
    for arm in ("bn", "baseline"):
        config = load_config("mnist_mlp.py", arm, overrides={"num_steps": "1500"})
        summary = train(config, tmp_path / arm, show_progress=False)
        steps[arm] = summary["steps_to_90_percent"]
    assert steps["bn"] <= 1000
    assert steps["baseline"] is None
