"""Whole runs of a user's models: trained, resumed, and evaluated from elsewhere."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import numpy as np
import pytest
from ml_collections import ConfigDict
from training.tiny_runs import (
    SHORT,
    Complete,
    assert_same_result,
    complete_run,
    final_state,
    interrupt,
    tiny_config,
)

from bn_jax.data.idx import load_idx_folder
from bn_jax.training import load
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.training.evaluation.evaluate import evaluate
from bn_jax.training.evaluation.inspect import inspect

_ROOT = Path(__file__).parents[2]


def own_config(folder: Path, idx_dir: Path, name: str, **settings: Any) -> ConfigDict:
    """A short run of a model in the user's package."""
    short = {key.replace(".", "__"): value for key, value in SHORT.items()}
    short.pop("model__hidden_features")
    short.update(
        batch_size=24,
        probes=("batch_norm",),
        optimizer__learning_rate=0.1,
        checkpoint__every_steps=5,
    )
    config = tiny_config(idx_dir, **{**short, **settings})
    with config.unlocked():
        config.model = ConfigDict({"name": f"own_models.{name}"})
        config.module_dir = str(folder)
    return config


@pytest.fixture(scope="module")
def linen(
    own_folder: Path, idx_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Complete:
    """A Linen model on eight devices, with two microbatches a step."""
    config = own_config(
        own_folder,
        idx_dir,
        "linen:Net",
        batch_size=32,
        accumulation_steps=2,
        parallel__mode="shard_map",
        parallel__num_devices=8,
    )
    return complete_run(config, tmp_path_factory.mktemp("runs") / "linen")


@pytest.fixture(scope="module")
def nnx(
    own_folder: Path, idx_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Complete:
    """An NNX model on one device, with averaged parameters."""
    config = own_config(own_folder, idx_dir, "of_nnx:Net", ema_decay=0.5)
    return complete_run(config, tmp_path_factory.mktemp("runs") / "nnx")


@pytest.mark.slow
def test_a_linen_model_learns_with_its_collections(linen: Complete) -> None:
    loss = linen.metrics["train_loss"]
    assert loss[-1] < loss[0]
    state = final_state(linen.config, linen.workdir)
    assert np.any(np.asarray(state.collections["ema"]["mean"]))


@pytest.mark.slow
def test_an_nnx_model_learns_with_its_variables(nnx: Complete) -> None:
    loss = nnx.metrics["train_loss"]
    assert loss[-1] < loss[0]
    assert final_state(nnx.config, nnx.workdir).collections["Ema"]["steps"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_evaluation_finds_the_model_from_another_folder(
    name: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run: Complete = request.getfixturevalue(name)
    monkeypatch.chdir(tmp_path)
    results = evaluate(run.workdir, statistics="population")
    for metric, value in results.metrics.items():
        assert value == pytest.approx(run.metrics[metric][-1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_a_loaded_model_is_the_one_that_was_trained(
    name: str, request: pytest.FixtureRequest
) -> None:
    run: Complete = request.getfixturevalue(name)
    trained = load(run.workdir)
    expected = final_state(run.config, run.workdir).variables
    chex.assert_trees_all_equal(trained.variables, expected)
    scores = trained.model.apply(
        trained.variables, np.ones((2, 28, 28, 1)), train=False
    )
    assert np.shape(scores) == (2, 10)


@pytest.mark.slow
def test_a_loaded_nnx_model_is_also_had_as_its_own_module(nnx: Complete) -> None:
    trained = load(nnx.workdir)
    x = np.ones((2, 28, 28, 1))
    for variables in (trained.variables, trained.averaged_variables):
        expected = trained.model.apply(variables, x, train=False)
        np.testing.assert_array_equal(trained.nnx_model(variables)(x), expected)


@pytest.mark.slow
def test_layers_without_moments_are_shown_without_drift(linen: Complete) -> None:
    _, layers = inspect(linen.workdir)
    with_drift = {layer.path: layer.drift is not None for layer in layers}
    assert (with_drift["ours"], with_drift["flax"]) == (True, False)


@pytest.mark.slow
def test_models_of_both_kinds_make_an_ensemble(
    linen: Complete, nnx: Complete, idx_dir: Path
) -> None:
    workdirs, test = [linen.workdir, nnx.workdir], load_idx_folder(idx_dir).test
    probabilities = []
    for trained in map(load, workdirs):
        variables = trained.averaged_variables or trained.variables
        inputs = trained.preprocess(test.images)
        scores = trained.model.apply(variables, inputs, train=False)
        p = np.exp(np.asarray(scores, np.float64))
        probabilities.append(p / p.sum(axis=-1, keepdims=True))
    p = np.mean(probabilities, axis=0)
    metrics = ensemble(workdirs, statistics="moving").metrics
    loss = -np.log(p[np.arange(97), test.labels]).mean()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["test_accuracy"] == (p.argmax(axis=-1) == test.labels).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: Complete = request.getfixturevalue(name)
    interrupt(run.config, tmp_path, step=10)
    complete_run(run.config, tmp_path)
    assert_same_result(tmp_path, run)


_CONFIG = """
from bn_jax.training import base_config

def get_config():
    config = base_config()
    config.num_steps = 2
    config.batch_size = 16
    config.model.name = "own_models.{name}"
    config.dataset.idx_dir = {idx_dir!r}
    return config
"""


def bn_jax(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs `bn-jax` as a process of its own."""
    command = [sys.executable, "-m", "bn_jax.cli", *map(str, words)]
    environment = {"PYTHONPATH": str(_ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(cwd)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_commands_find_a_model_beside_the_configuration(
    own_folder: Path, idx_dir: Path, tmp_path: Path
) -> None:
    file, run = own_folder / "experiment.py", tmp_path / "run"
    file.write_text(_CONFIG.format(name="linen:Net", idx_dir=str(idx_dir)))
    words = [f"--config={file}", f"--workdir={run}"]
    several = ["launch", "--num_processes=2", "--", sys.executable, "-m", "bn_jax.cli"]
    trained = bn_jax(*several, "train", *words, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    evaluated = bn_jax("evaluate", run, cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "evaluations use the running statistics of flax" in evaluated.stderr
    assert "ours" in bn_jax("inspect", run, cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_missing_class_is_one_line(
    own_folder: Path, idx_dir: Path, tmp_path: Path
) -> None:
    file = own_folder / "wrong.py"
    file.write_text(_CONFIG.format(name="linen:Nett", idx_dir=str(idx_dir)))
    words = [f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    refused = bn_jax("train", *words, cwd=tmp_path)
    assert refused.returncode == 1
    assert "defines no Nett" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in refused.stderr
