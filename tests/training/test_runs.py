"""Whole runs: the files that they leave, and the numbers that they compute."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from training import numpy_mlp
from training.tiny_runs import (
    EVALUATED,
    Complete,
    assert_same_result,
    complete_run,
    final_state,
    initial_state,
    interrupt,
    tiny_config,
)

from bn_jax.data.batching import batch_indices
from bn_jax.data.idx import load_idx_folder
from bn_jax.training import loop
from bn_jax.training.config_files import load_config
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_metrics


def test_a_run_leaves_these_files(bn: Complete) -> None:
    names = {path.name.split(".tfevents")[0] for path in bn.workdir.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints", "events.out")
    }


def test_config_json_holds_every_setting(bn: Complete) -> None:
    config = json.loads((bn.workdir / "config.json").read_text())
    expected = json.loads(bn.config.to_json())
    assert config == {"format_version": 2, **expected}


def test_every_evaluation_is_a_line_and_a_checkpoint_is_none(bn: Complete) -> None:
    assert [line["step"] for line in read_metrics(bn.workdir)] == EVALUATED


def test_a_line_has_these_values(bn: Complete) -> None:
    for line in read_metrics(bn.workdir):
        assert {name: type(value) for name, value in line.items()} == {
            "step": int,
            "train_loss": float,
            "test_loss": float,
            "test_accuracy": float,
            "test_top5_accuracy": float,
            "percentiles": list,
        }
        assert [type(value) for value in line["percentiles"]] == [float] * 3


def test_the_summary_has_these_values(bn: Complete) -> None:
    summary = json.loads((bn.workdir / "summary.json").read_text())
    assert {name: type(value) for name, value in summary.items()} == {
        "format_version": int,
        "final_test_accuracy": float,
        "steps_to_accuracy": dict,
        # A run this short has no rate.
        "steps_per_second": type(None),
        "wall_seconds": float,
        "device": str,
        "versions": dict,
    }
    assert set(summary["versions"]) == {"jax", "flax", "bn_jax"}
    assert summary["wall_seconds"] > 0


def test_the_summary_is_what_train_returns(bn: Complete) -> None:
    assert json.loads((bn.workdir / "summary.json").read_text()) == bn.summary


def test_the_summary_agrees_with_the_metrics(bn: Complete) -> None:
    accuracy = bn.metrics["test_accuracy"]
    assert bn.summary["final_test_accuracy"] == accuracy[-1]
    first = {str(x): bn.metrics["step"][accuracy >= x][0] for x in (0.9, 0.95)}
    assert bn.summary["steps_to_accuracy"] == first


def test_a_run_that_stays_below_an_accuracy_never_reached_it(
    baseline: Complete,
) -> None:
    assert baseline.metrics["test_accuracy"].max() < 0.9
    assert baseline.summary["steps_to_accuracy"] == {"0.9": None, "0.95": None}


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
    train_images, test_images = data.train.images > 127, data.test.images > 127
    params, stats = jax.tree.map(
        lambda x: np.asarray(x, np.float64), initial_state(config)[1:3]
    )
    unit = None
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
            five = np.argsort(-logits)[:, :5]
            is_in_top5 = (five == data.test.labels[:, None]).any(axis=1)
            percentiles = np.percentile(inputs[:50], (15, 50, 85), axis=0)
            if unit is None:
                spread = percentiles[2] - percentiles[0]
                unit = np.argsort(spread)[(len(spread) - 1) // 2]
        if step in EVALUATED:
            lines.append(
                {
                    "step": step,
                    "train_loss": np.mean(losses),
                    "test_loss": numpy_mlp.cross_entropy(logits, data.test.labels),
                    "test_accuracy": np.mean(logits.argmax(-1) == data.test.labels),
                    "test_top5_accuracy": np.mean(is_in_top5),
                    "percentiles": percentiles[:, unit],
                }
            )
            losses = []
        (chosen,) = indices(step, 1)
        loss, params, stats = numpy_mlp.sgd_step(
            params,
            stats,
            train_images[chosen],
            data.train.labels[chosen],
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
    assert_same_result(tmp_path / "again", bn)


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
    monkeypatch.setattr(loop, "build_parts", None)
    before = {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")}
    assert train(bn.config, str(bn.workdir)) == bn.summary
    assert {path: path.stat().st_mtime_ns for path in bn.workdir.rglob("*")} == before


@pytest.mark.slow
def test_a_run_of_everything_at_once_learns_and_goes_on_to_the_same_bits(
    tmp_path: Path, idx_dir: Path
) -> None:
    config = tiny_config(
        idx_dir,
        batch_size=24,
        accumulation_steps=2,
        dtype="bfloat16",
        ema_decay=0.9,
        on_nonfinite="skip",
        parallel__mode="shard_map",
        parallel__num_devices=4,
        schedule__name="cosine",
        schedule__warmup_steps=5,
        optimizer__weight_decay=1e-4,
        optimizer__clip_norm=5.0,
    )
    run = complete_run(config, tmp_path / "whole")
    assert run.metrics["test_accuracy"][-1] > 0.5
    assert run.metrics["ema_test_accuracy"][-1] > 0.5
    interrupt(config, tmp_path / "cut")
    train(config, tmp_path / "cut", show_progress=False)
    assert_same_result(tmp_path / "cut", run)


@pytest.mark.slow
def test_mnist_takes_fewer_steps_to_90_percent_with_batch_norm(tmp_path: Path) -> None:
    steps = {}
    for arm in ("bn", "baseline"):
        overrides = {"num_steps": "1500", "parallel.num_devices": "1"}
        config = load_config(f"mnist_mlp:{arm}", overrides=overrides)
        summary = train(config, tmp_path / arm, show_progress=False)
        steps[arm] = summary["steps_to_accuracy"]["0.9"]
    assert steps["bn"] <= 1000
    assert steps["baseline"] is None
