"""Evaluations on one device and on several, of runs with and without `norm.sync`."""

from pathlib import Path

import chex
import jax
import pytest
from training.tiny_runs import Complete, complete_run, tiny_config

from bn_jax.errors import UserError
from bn_jax.training.checkpoints.restore import local_devices
from bn_jax.training.evaluation.ensemble import ensemble
from bn_jax.training.evaluation.evaluate import STATISTICS, evaluate
from bn_jax.training.evaluation.inspect import inspect
from bn_jax.training.loop import train
from bn_jax.workdir.files import read_config

SHORT = {
    "batch_size": 24,
    "num_steps": 10,
    "max_steps_per_dispatch": 5,
    "evaluation__schedule__early_every_steps": 5,
    "checkpoint__every_steps": 5,
    "norm__sync": False,
}


@pytest.fixture(scope="module")
def unsynced(tmp_path_factory: pytest.TempPathFactory, idx_dir: Path) -> Complete:
    """A run in which each of four devices has its own statistics."""
    config = tiny_config(idx_dir, parallel__num_devices=4, **SHORT)
    return complete_run(config, tmp_path_factory.mktemp("runs") / "unsynced")


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.slow), 8])
def devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The number of devices that this process has."""
    found = jax.devices()[: request.param]
    monkeypatch.setattr(jax, "local_devices", lambda: found)
    return request.param


def test_a_run_without_sync_is_evaluated_as_it_was_trained(
    unsynced: Complete, devices: int
) -> None:
    assert local_devices([unsynced.config]).num_devices == devices
    evaluation = evaluate(unsynced.workdir, statistics="population")
    for name, value in evaluation.metrics.items():
        assert value == pytest.approx(unsynced.metrics[name][-1], rel=1e-5)


@pytest.mark.parametrize("statistics", STATISTICS)
def test_eight_devices_evaluate_as_one_does(
    unsynced: Complete, monkeypatch: pytest.MonkeyPatch, statistics: str
) -> None:
    several = evaluate(unsynced.workdir, statistics=statistics)
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    one = evaluate(unsynced.workdir, statistics=statistics)
    assert several.num_examples == one.num_examples == 97
    assert several.metrics == pytest.approx(one.metrics, rel=1e-5)


@pytest.mark.slow
def test_an_ensemble_and_its_layers_do_not_depend_on_the_devices(
    unsynced: Complete, bn: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [bn, unsynced]

    def measure() -> tuple:
        metrics = ensemble(
            [run.workdir for run in runs],
            statistics="population",
        ).metrics
        _, layers = inspect(unsynced.workdir)
        return metrics, [layer.drift for layer in layers]

    several = measure()
    one_device = jax.devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one_device)
    chex.assert_trees_all_close(several, measure(), rtol=1e-4)


@pytest.mark.slow
def test_a_run_without_sync_keeps_its_groups_on_other_devices(
    tmp_path: Path, idx_dir: Path
) -> None:
    for num_devices in (4, 2):
        # Without its summary the run counts as incomplete, and is resumed.
        config = tiny_config(idx_dir, parallel__num_devices=num_devices, **SHORT)
        train(config, tmp_path, show_progress=False)
        (tmp_path / "summary.json").unlink()
    assert read_config(tmp_path)["norm"]["group_size"] == 6


def test_other_groups_are_another_run(unsynced: Complete) -> None:
    config = unsynced.config.copy_and_resolve_references()
    with config.unlocked():
        config.norm.group_size = 12
    expected = r"norm\.group_size is 6 in the workdir and 12 in this command"
    with pytest.raises(UserError, match=expected):
        train(config, unsynced.workdir)


def test_devices_are_as_many_as_batches_can_be_divided_among(idx_dir: Path) -> None:
    config = tiny_config(idx_dir, batch_size=36, evaluation__batch_size=20)
    assert local_devices([config]).num_devices == 6
    assert local_devices([config], by_batch=True).num_devices == 4
