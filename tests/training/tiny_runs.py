"""The paper's experiment made tiny: 60 steps of a small network on few images."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from bn_jax.data.dataset import Dataset
from bn_jax.training.build import build_parts, build_train_step
from bn_jax.training.checkpoints.checkpoint import Checkpoints
from bn_jax.training.config_files import load_config
from bn_jax.training.distributed.parallel import make_parallel
from bn_jax.training.group_size import with_groups_of_devices
from bn_jax.training.logs.writer import MetricsWriter
from bn_jax.training.loop import train
from bn_jax.training.parts import Parts, build_initial_state
from bn_jax.training.run import Run, compile_run
from bn_jax.training.step.state import TrainState
from bn_jax.workdir.files import claim_workdir, read_config, read_metrics

# Stretches are 10 or 5 steps long, so that little is compiled; the batches divide
# neither the training set nor the test set. One device, of the eight there are.
TINY = {
    "num_steps": 60,
    "batch_size": 25,
    "parallel.num_devices": 1,
    "model.hidden_features": (8, 7),
    "optimizer.learning_rate": 2.0,
    "evaluation.schedule.early_every_steps": 10,
    "evaluation.schedule.early_until_step": 30,
    "evaluation.schedule.every_steps": 20,
    "evaluation.batch_size": 40,
    "evaluation.population_batches": 4,
    "evaluation.probe_examples": 50,
    "checkpoint.every_steps": 25,
    "checkpoint.keep": 1,
    "max_steps_per_dispatch": 10,
}
# There are checkpoints after steps 25, 50 and 60.
EVALUATED = [10, 20, 30, 40, 60]

# Settings for tests that start whole programs: 10 steps in equal stretches.
SHORT = {
    **TINY,
    "num_steps": 10,
    "model.hidden_features": (8,),
    "evaluation.schedule.early_every_steps": 5,
    "max_steps_per_dispatch": 5,
}


class Complete(NamedTuple):
    """A run from its first step to its last, without a stop."""

    config: ConfigDict
    workdir: Path
    summary: Mapping[str, Any]

    @property
    def metrics(self) -> dict[str, np.ndarray]:
        lines = read_metrics(self.workdir)
        return {name: np.array([line[name] for line in lines]) for name in lines[0]}


class _PowerFailureError(Exception):
    """Ends a run where a test wants it to."""


def tiny_config(idx_dir: Path, *, arm: str = "bn", **settings: Any) -> ConfigDict:
    """The configuration of one arm, on the images of a folder.

    Args:
        idx_dir: As `write_idx_folder` writes it.
        arm: "bn" or "baseline".
        **settings: Further settings, with `__` for each dot.
    """
    config = load_config(f"mnist_mlp:{arm}")
    further = {key.replace("__", "."): value for key, value in settings.items()}
    values = {"dataset.idx_dir": str(idx_dir), **TINY, **further}
    config.update_from_flattened_dict(values)
    return config


def complete_run(config: ConfigDict, workdir: Path) -> Complete:
    """Trains without a progress bar."""
    return Complete(config, workdir, train(config, workdir, show_progress=False))


def with_settings(run: Complete, folder: Path, **settings: Any) -> Path:
    """Copies a workdir, and changes settings in the copy's `config.json`.

    Args:
        run: The run, which is not changed.
        folder: The copy, which does not exist yet.
        **settings: Settings to change, with `__` for each dot.
    """
    shutil.copytree(run.workdir, folder)
    config = ConfigDict(read_config(folder))
    config.update_from_flattened_dict(
        {key.replace("__", "."): value for key, value in settings.items()}
    )
    claim_workdir(folder, json.loads(config.to_json()))
    return folder


def grouped(config: ConfigDict) -> ConfigDict:
    """The configuration with the groups of its devices, as the loop builds from it."""
    num_devices = make_parallel(**config.parallel).num_devices
    return with_groups_of_devices(config, num_devices)


def parts_of(config: ConfigDict) -> Parts:
    """Returns the parts of a run, as its configuration describes them."""
    return build_parts(grouped(config), make_parallel(**config.parallel))


def compile_tiny_run(config: ConfigDict, data: Dataset | None = None) -> Run:
    """Returns the compiled run of a configuration, on other data if they are given."""
    parts = parts_of(config)
    parts = parts if data is None else parts._replace(data=data)
    return compile_run(parts, build_train_step(grouped(config), parts))


def initial_state(config: ConfigDict) -> TrainState:
    """The state of a configuration before its first step."""
    return build_initial_state(parts_of(config))


def final_state(config: ConfigDict, workdir: Path) -> TrainState:
    """The newest state that a run has saved."""
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        state = checkpoints.restore_latest(initial_state(config))
    assert state is not None
    return state


def plain(state: TrainState) -> TrainState:
    """The state with the numbers of its key, which NumPy can compare."""
    return state._replace(key=jax.random.key_data(state.key))


def _fail_at(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, step: int
) -> None:
    """Makes the method fail, before it does anything, once the run is at that step."""
    original = getattr(where, method)

    def failing(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if step in (*arguments, *keywords.values()):
            raise _PowerFailureError
        return original(self, *arguments, **keywords)

    monkeypatch.setattr(where, method, failing)


def interrupt(
    config: ConfigDict,
    workdir: Path,
    *,
    where: type = MetricsWriter,
    method: str = "write",
    step: int = 40,
) -> None:
    """Trains until a power failure; as it is called, between two checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        _fail_at(patch, where, method, step)
        with pytest.raises(_PowerFailureError):
            train(config, workdir, show_progress=False)


def assert_same_result(workdir: Path, expected: Complete) -> None:
    """Checks that metrics and last checkpoint equal those of a run, bit for bit."""
    lines = (workdir / "metrics.jsonl").read_bytes()
    assert lines == (expected.workdir / "metrics.jsonl").read_bytes()
    chex.assert_trees_all_equal(
        plain(final_state(expected.config, workdir)),
        plain(final_state(expected.config, expected.workdir)),
    )
