"""Settings of the normalization, from the command line to the evaluation."""

from pathlib import Path

import numpy as np
import pytest
from training.tiny_runs import (
    Complete,
    assert_same_result,
    complete_run,
    interrupt,
)

from bn_jax.training import load
from bn_jax.training.config_files import load_config
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.loop import train

SHORT = {
    "num_steps": "4",
    "batch_size": "20",
    "parallel.num_devices": "1",
    "dataset.train_split": "train[:100]",
    "dataset.test_split": "test[:40]",
    "evaluation.schedule.early_every_steps": "2",
    "evaluation.batch_size": "40",
    "evaluation.population_batches": "2",
    "checkpoint.every_steps": "2",
    "max_steps_per_dispatch": "2",
}
GROUPS = {
    "norm.group_size": "5",
    "norm.momentum": "0.9",
    "norm.variance_correction": "1",
    "norm.debias": "True",
    "norm.skip_nonfinite": "True",
}
CUMULATIVE = {
    "norm.momentum": "None",
    "norm.group_size": "5",
    "norm.variance_correction": "1",
    "accumulation_steps": "2",
}
CONFIGS = {
    "mnist_mlp:bn": {"model.hidden_features": "(5,)"},
    "mnist_cnn:bn": {"model.channels": "(3,)", "schedule.warmup_steps": "1"},
    "inception_small:bn_x5": {"model.width": "0.02", "schedule.decay_every_steps": "4"},
}


@pytest.mark.parametrize(
    ("spec", "norm"),
    [
        ("mnist_mlp:bn", GROUPS),
        pytest.param("mnist_mlp:bn", CUMULATIVE, marks=pytest.mark.slow),
        pytest.param("mnist_cnn:bn", GROUPS, marks=pytest.mark.slow),
        pytest.param("mnist_cnn:bn", CUMULATIVE, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_every_setting_trains_resumes_and_is_evaluated(
    tmp_path: Path, idx_dir: Path, spec: str, norm: dict[str, str]
) -> None:
    data = {"dataset.idx_dir": str(idx_dir)}
    config = load_config(spec, overrides={**SHORT, **CONFIGS[spec], **data, **norm})
    run = complete_run(config, tmp_path / "complete")
    interrupt(config, tmp_path / "resumed", step=4)
    train(config, tmp_path / "resumed", show_progress=False)
    assert_same_result(tmp_path / "resumed", run)

    assert_evaluated_alike(run)


@pytest.mark.slow
def test_inception_trains_with_every_setting_and_is_evaluated(
    tmp_path: Path, idx_dir: Path
) -> None:
    spec, data = "inception_small:bn_x5", {"dataset.idx_dir": str(idx_dir)}
    config = load_config(spec, overrides={**SHORT, **CONFIGS[spec], **data, **GROUPS})
    assert_evaluated_alike(complete_run(config, tmp_path))


def assert_evaluated_alike(run: Complete) -> None:
    for name, value in evaluate(run.workdir).metrics.items():
        assert value == pytest.approx(run.metrics[name][-1], rel=1e-5)


def test_the_settings_reach_the_statistics(tmp_path: Path, idx_dir: Path) -> None:
    settings = {**SHORT, **CONFIGS["mnist_mlp:bn"], "dataset.idx_dir": str(idx_dir)}
    stats = []
    for correction in ("0", "1"):
        norm = {**CUMULATIVE, "norm.variance_correction": correction}
        config = load_config("mnist_mlp:bn", overrides={**settings, **norm})
        complete_run(config, tmp_path / correction)
        stats.append(load(tmp_path / correction).variables["batch_stats"]["norm0"])
    assert float(stats[0]["count"]) == 4
    # Groups of five examples, each with one value of a unit.
    np.testing.assert_allclose(stats[1]["var"], stats[0]["var"] * 5 / 4, rtol=1e-6)
