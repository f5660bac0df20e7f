"""A trained model, taken from its folder: evaluated, or described layer by layer."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from bn_jax.analysis.drift import statistics_drift
from bn_jax.analysis.trained import Evaluation, Layer
from bn_jax.errors import UserError
from bn_jax.stats.collections import layers_with_statistics
from bn_jax.training.build import (
    Parts,
    Settings,
    build_initial_state,
    build_parts,
    read_batches,
    read_test_batches,
    settings_to_blame,
)
from bn_jax.training.checkpoint import Checkpoints
from bn_jax.training.metrics import PredictionSums, mean_metrics
from bn_jax.training.parallel import make_parallel
from bn_jax.training.state import TrainState
from bn_jax.training.steps import (
    PaddedBatches,
    make_eval_step,
    make_population_step,
)

STATISTICS = ("moving", "population", "batch")


def evaluate(config: Settings, workdir: Path, *, statistics: str) -> Evaluation:
    """Loss and accuracy of a run's newest checkpoint on the test set.

    Args:
        config: The run's configuration, perhaps with another `dataset`.
        workdir: The run's folder; nothing in it is changed.
        statistics: What layers normalize by: "moving" averages of training,
            "population" statistics computed anew from the minibatches that training
            would reach next, or those of each test "batch" of
            `config.evaluation.batch_size` by itself.

    Raises:
        UserError: If there is no checkpoint, or the data do not suit the model.
    """
    if statistics not in STATISTICS:
        raise UserError(
            f"--statistics must be one of {', '.join(STATISTICS)}, and is "
            f"{statistics!r}."
        )
    parts, state = _restore(config, workdir)
    sums = {"": _prediction_sums(config, parts, state, statistics)}
    if state.ema_params:
        averaged = state._replace(params=state.ema_params)
        sums["ema_"] = _prediction_sums(config, parts, averaged, statistics)
    metrics = {
        f"{prefix}{name}": value
        for prefix, one in sums.items()
        for name, value in mean_metrics(one).items()
    }
    num_examples = int(sums[""].num_examples)
    return Evaluation(int(state.step), parts.data.name, num_examples, metrics)


def inspect(config: Settings, workdir: Path) -> tuple[int, list[Layer]]:
    """The steps that a run was trained, and the layers of its newest checkpoint.

    Args:
        config: The run's configuration.
        workdir: The run's folder; nothing in it is changed.

    Raises:
        UserError: If there is no checkpoint.
    """
    parts, state = _restore(config, workdir)
    running = dict(layers_with_statistics(state.batch_stats))
    batch: Mapping[str, Any] = {}
    if running:
        one = read_batches(config, parts, int(state.step), 1)
        step = jax.jit(make_population_step(parts.model, preprocess=parts.preprocess))
        batch = dict(layers_with_statistics(step(state.variables, one)["batch_stats"]))
    layers = [
        Layer(
            path=path,
            shapes={name: tuple(leaf.shape) for name, leaf in leaves.items()},
            num_parameters=sum(leaf.size for leaf in leaves.values()),
            batch_stats=jax.tree.map(np.asarray, running.get(path)),
            drift=statistics_drift(batch[path], running[path])
            if path in running
            else None,
        )
        for path, leaves in _layers(state.params)
    ]
    return int(state.step), layers


def _restore(config: Settings, workdir: Path) -> tuple[Parts, TrainState]:
    # One device: the result does not depend on how many there are.
    parallel = make_parallel("jit", num_devices=1, devices=jax.local_devices())
    parts = build_parts(config, parallel)
    like = build_initial_state(config, parts)
    folder = workdir / "checkpoints"
    state = None
    if folder.is_dir():
        with Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints:
            state = checkpoints.restore_latest(like)
    if state is None:
        raise UserError(f"workdir {workdir}: it holds no checkpoint yet.")
    return parts, state


def _prediction_sums(
    config: Settings, parts: Parts, state: TrainState, statistics: str
) -> PredictionSums:
    variables: PyTree = state.variables
    if statistics == "population":
        count = config.evaluation.population_batches
        ahead = read_batches(config, parts, int(state.step), count)
        step = jax.jit(make_population_step(parts.model, preprocess=parts.preprocess))
        variables = step(variables, ahead)
    eval_step = jax.jit(
        make_eval_step(
            parts.model, preprocess=parts.preprocess, by_batch=statistics == "batch"
        )
    )
    test_batches = [read_test_batches(config, parts)]
    if statistics == "batch":
        test_batches = _without_filling(test_batches[0])
    with settings_to_blame():
        sums = [eval_step(variables, batches) for batches in test_batches]
    return jax.tree.map(lambda *parts: sum(parts), *sums)


def _without_filling(batches: PaddedBatches) -> list[PaddedBatches]:
    """The full batches, and the last one without what fills it up."""
    rest = int(np.sum(batches.is_example[-1]))
    if rest == batches.is_example.shape[1]:
        return [batches]
    last = jax.tree.map(lambda leaf: leaf[-1:, :rest], batches)
    if batches.is_example.shape[0] == 1:
        return [last]
    return [jax.tree.map(lambda leaf: leaf[:-1], batches), last]


def _layers(params: PyTree, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and own parameters of each layer that has any."""
    own = {name: leaf for name, leaf in params.items() if not hasattr(leaf, "items")}
    if own:
        yield path, own
    for name, child in params.items():
        if hasattr(child, "items"):
            yield from _layers(child, f"{path}/{name}".lstrip("/"))
