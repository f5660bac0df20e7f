"""Configurations and runs of version 0.1, which this version takes over."""

import json
import shutil
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from bn_jax.training import load
from bn_jax.training.base_config import complete
from bn_jax.training.config_files import load_config, override
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.loop import train
from bn_jax.workdir.differences import differences
from bn_jax.workdir.files import read_metrics

_FOLDER = Path(__file__).parent / "version_0_1"
# The settings of all shipped configurations, as version 0.1 wrote them.
_CONFIGS: dict[str, Any] = json.loads((_FOLDER / "configs.json").read_text())


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A complete run of 8 steps with checkpoints after steps 4 and 8."""
    with tarfile.open(_FOLDER / "workdir.tar.gz") as archive:
        archive.extractall(tmp_path / "run", filter="data")
    return tmp_path / "run"


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_shipped_configuration_describes_the_run_that_it_described(name: str) -> None:
    new = json.loads(load_config(name).to_json())
    old = complete(_CONFIGS[name])
    places = ("in version 0.1", "now")
    # Neither changes a result.
    may_differ = ["report_steps_to", "log_every"]
    assert differences(old, new, places=places, may_differ=may_differ) == []


def test_a_run_is_evaluated_with_its_own_figures(workdir: Path) -> None:
    measured = evaluate(workdir, statistics="population")
    expected = read_metrics(workdir)[-1]
    assert measured.step == expected["step"] == 8
    for name, value in measured.metrics.items():
        assert value == pytest.approx(expected[name], abs=1e-6)


def test_a_run_is_loaded_with_the_classes_of_its_data(workdir: Path) -> None:
    trained = load(workdir)
    assert (trained.step, trained.num_classes) == (8, 10)
    assert trained.averaged_variables is not None
    assert load(workdir, step=4).step == 4


def test_a_run_without_sync_is_loaded_with_the_groups_of_its_devices(
    workdir: Path,
) -> None:
    path = workdir / "config.json"
    config = json.loads(path.read_text())
    config["norm"]["sync"] = False
    config["parallel"]["num_devices"] = 2
    path.write_text(json.dumps(config))
    trained = load(workdir)
    assert trained.config.norm.group_size == config["batch_size"] // 2
    # The first group does not see what is in the second.
    apply = jax.jit(partial(trained.model.apply, train=True, mutable=True))
    images = np.ones((config["batch_size"], 28, 28, 1), np.float32)
    images[::2] = 0
    scores, _ = apply(trained.variables, images)
    images[len(images) // 2 :] = 0
    others, _ = apply(trained.variables, images)
    np.testing.assert_array_equal(*(x[: len(x) // 2] for x in (scores, others)))


def test_a_run_resumes_from_its_checkpoint(workdir: Path) -> None:
    expected = read_metrics(workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "summary.json").unlink()
    config = load_config("mnist_mlp:bn")
    for key, value in _settings_of(workdir).items():
        override(config, key, repr(value))
    train(config, workdir, show_progress=False)
    resumed = read_metrics(workdir)
    assert [line["step"] for line in resumed] == [4, 8]
    for name, value in expected[-1].items():
        assert resumed[-1][name] == pytest.approx(value, abs=1e-6)


def _settings_of(workdir: Path) -> dict[str, Any]:
    """Returns the settings in which the run differs from the shipped configuration."""
    saved = json.loads((workdir / "config.json").read_text())
    return {
        "num_steps": saved["num_steps"],
        "ema_decay": saved["ema_decay"],
        "model.hidden_features": tuple(saved["model"]["hidden_features"]),
        "dataset.train_split": saved["dataset"]["train_split"],
        "dataset.test_split": saved["dataset"]["test_split"],
        "evaluation.schedule.early_every_steps": 4,
        "evaluation.population_batches": 2,
        "checkpoint.every_steps": 4,
        "checkpoint.keep": 2,
        "parallel.num_devices": 1,
        "probes": (),
        "max_steps_per_dispatch": 4,
    }
