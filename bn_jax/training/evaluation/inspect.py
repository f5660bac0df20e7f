"""Layers of a trained model, from its workdir."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from bn_jax.analysis.drift import Drift, statistics_drift
from bn_jax.results import Layer
from bn_jax.stats.collections import layers_with_statistics
from bn_jax.training.checkpoints.restore import local_devices, restore
from bn_jax.training.config_files import saved_config
from bn_jax.training.parts import read_batches
from bn_jax.training.step.population import make_population_step


def inspect(workdir: Path | str) -> tuple[int, list[Layer]]:
    """Returns the steps that a run was trained, and the layers of its network.

    Args:
        workdir: Workdir of the run; nothing in it is changed.

    Raises:
        UserError: If there is no run or no checkpoint.
    """
    workdir = Path(workdir)
    config = saved_config(workdir)
    parts, state = restore(config, workdir, local_devices([config]))
    running = dict(layers_with_statistics(state.batch_stats))
    batch: Mapping[str, Any] = {}
    if running:
        one = read_batches(parts, int(state.step), 1)
        step = jax.jit(
            make_population_step(parts.model, preprocess=parts.preprocess),
            out_shardings=parts.parallel.replicated,
        )
        batch = dict(layers_with_statistics(step(state.variables, one)["batch_stats"]))
    layers = [
        Layer(
            path=path,
            shapes={name: tuple(leaf.shape) for name, leaf in leaves.items()},
            num_parameters=sum(leaf.size for leaf in leaves.values()),
            batch_stats=jax.tree.map(np.asarray, running.get(path)),
            drift=_drift(batch.get(path), running.get(path)),
        )
        for path, leaves in _layers(state.params)
    ]
    return int(state.step), layers


def _drift(
    batch: Mapping[str, Array] | None, running: Mapping[str, Array] | None
) -> Drift | None:
    """Returns the drift of a layer; None if it has no statistics or sows no moments."""
    if (
        batch is None
        or running is None
        or np.array_equal(batch["mean"], running["mean"])
    ):
        return None
    return statistics_drift(batch, running)


def _layers(params: PyTree, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields path and own parameters of each layer that has parameters."""
    own = {name: leaf for name, leaf in params.items() if not hasattr(leaf, "items")}
    if own:
        yield path, own
    for name, child in params.items():
        if hasattr(child, "items"):
            yield from _layers(child, f"{path}/{name}".lstrip("/"))
