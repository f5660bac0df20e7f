"""Training from a configuration and into a folder: the file to read first.

Everything that experiments differ in stands in their configuration; the loop knows
nothing of any of them.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Array, PyTree
from ml_collections import ConfigDict

import bn_jax
from bn_jax.data import load_dataset
from bn_jax.data.batching import batch_indices, padded_batches
from bn_jax.data.image import binarize
from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.training.checkpoint import Checkpoints
from bn_jax.training.metrics import PredictionSums, mean_metrics
from bn_jax.training.optim import make_optimizer
from bn_jax.training.pace import Pace
from bn_jax.training.probes import make_probes
from bn_jax.training.schedule import chunks, evaluation_steps
from bn_jax.training.state import TrainState, init_state
from bn_jax.training.steps import (
    Examples,
    PaddedBatches,
    make_eval_step,
    make_population_step,
    make_train_chunk,
    make_train_step,
)
from bn_jax.training.writer import MetricsWriter
from bn_jax.workdir import (
    check_workdir,
    claim_workdir,
    read_metrics,
    read_summary,
    write_summary,
)

# A ConfigDict, whose settings no type checker knows.
_Settings = Any


def train(
    config: ConfigDict, workdir: Path | str, *, show_progress: bool = True
) -> dict[str, Any]:
    """Trains what the configuration describes, or goes on where it was left.

    Args:
        config: As the files in `configs/` make it.
        workdir: Folder of this run, and of no other.
        show_progress: Whether to show a progress bar, or log lines.

    Returns:
        What `summary.json` holds: `final_test_accuracy` in [0, 1],
        `steps_to_90_percent` (None if never), `steps_per_second` (evaluations
        included, compilation not), `wall_seconds` of this call, `device` and
        `versions`.

    Raises:
        UserError: If the configuration, the data or the folder is not as it must be,
            or the loss stops being finite.
    """
    started = time.monotonic()
    workdir = Path(workdir)
    settings = json.loads(config.to_json())
    check_workdir(workdir, settings)
    summary = read_summary(workdir)
    if summary is not None:
        logging.info("%s: this run is complete already.", workdir)
        return summary
    run = _build(config)
    claim_workdir(workdir, settings)
    steps_per_second = _run_steps(config, run, workdir, show_progress)
    metrics = read_metrics(workdir)
    passed = [line["step"] for line in metrics if line["test_accuracy"] >= 0.9]
    summary = {
        "final_test_accuracy": metrics[-1]["test_accuracy"],
        "steps_to_90_percent": passed[0] if passed else None,
        "steps_per_second": steps_per_second,
        "wall_seconds": time.monotonic() - started,
        "device": jax.devices()[0].device_kind,
        "versions": {
            "jax": jax.__version__,
            "flax": flax.__version__,
            "bn_jax": bn_jax.__version__,
        },
    }
    return write_summary(workdir, summary)


class _Measured(NamedTuple):
    """What an evaluation measured, still on the device."""

    sums: PredictionSums
    probed: Mapping[str, Array]


class _Run(NamedTuple):
    """The state before the first step, and compiled functions over resident data."""

    initial_state: TrainState
    train_chunk: Callable[[TrainState, int, int], tuple[TrainState, Array]]
    evaluate: Callable[[TrainState, int], _Measured]


def _build(config: _Settings) -> _Run:
    """Puts the data on the device, and everything together that works on them."""
    _check_config(config)
    data = load_dataset(**config.dataset)
    if config.batch_size > len(data.train_labels):
        raise UserError(
            f"config.batch_size: {config.batch_size} examples a step are more than the "
            f"{len(data.train_labels)} that {data.name} has for training."
        )
    preprocess = partial(binarize, threshold=config.binarize_threshold)
    norm = make_norm(**config.norm)
    model = make_model(num_classes=data.num_classes, norm=norm, **config.model)
    tx = make_optimizer(**config.optimizer)
    example = preprocess(data.train_images[:1])
    init = jax.jit(partial(init_state, model, tx))
    train_step = make_train_step(model, tx, preprocess=preprocess)
    batch = _on_device(
        data.train_images[: config.batch_size], data.train_labels[: config.batch_size]
    )
    try:
        initial_state = init(key=jax.random.key(config.seed), example=example)
        jax.eval_shape(train_step, initial_state, batch)
    except ValueError as error:
        # What a layer refuses is a setting of the model, of its normalization or of
        # the size of a batch.
        raise UserError(f"config: {error}") from error

    train_examples = _on_device(data.train_images, data.train_labels)
    images, labels, is_example = padded_batches(
        data.test_images, data.test_labels, config.evaluation.batch_size
    )
    test_batches = PaddedBatches(_on_device(images, labels), jnp.asarray(is_example))
    train_chunk = jax.jit(make_train_chunk(train_step))
    population_step = jax.jit(make_population_step(model, preprocess=preprocess))
    eval_step = jax.jit(make_eval_step(model, preprocess=preprocess))

    def indices(first_step: int, num_steps: int) -> np.ndarray:
        return batch_indices(
            len(data.train_labels),
            config.batch_size,
            seed=config.seed,
            first_step=first_step,
            num_steps=num_steps,
        )

    def with_population_statistics(state: TrainState, step: int) -> PyTree:
        # The minibatches that training comes to next: it has not fitted them yet.
        ahead = indices(step, config.evaluation.population_batches)
        return population_step(state, train_examples, ahead)

    probe = jax.jit(
        make_probes(
            config.probes,
            model=model,
            initial_variables=with_population_statistics(initial_state, 0),
            inputs=preprocess(data.test_images[: config.evaluation.probe_examples]),
        )
    )

    def run_chunk(
        state: TrainState, first_step: int, last_step: int
    ) -> tuple[TrainState, Array]:
        chosen = indices(first_step, last_step - first_step)
        return train_chunk(state, train_examples, chosen)

    def evaluate(state: TrainState, step: int) -> _Measured:
        variables = with_population_statistics(state, step)
        return _Measured(eval_step(variables, test_batches), probe(variables))

    return _Run(initial_state, run_chunk, evaluate)


def _on_device(images: np.ndarray, labels: np.ndarray) -> Examples:
    return Examples(jnp.asarray(images), jnp.asarray(labels))


def _run_steps(
    config: _Settings, run: _Run, workdir: Path, show_progress: bool
) -> float:
    """Takes the steps that are left, and returns how many of them a second took.

    A stretch of steps is one compiled call. The next one is dispatched before the
    figures of the last are fetched, so that the device never waits for Python.
    """
    every = config.checkpoint.every_steps
    saved = {*range(every, config.num_steps, every), config.num_steps}
    # Every checkpoint is evaluated, so that the first line of a run that goes on from
    # it averages the same training losses.
    evaluated = saved | evaluation_steps(config.num_steps, **config.evaluation.schedule)
    folder = workdir / "checkpoints"
    with Checkpoints(folder, keep=config.checkpoint.keep) as checkpoints:
        state = checkpoints.restore_latest(run.initial_state) or run.initial_state
        first_step = int(state.step)
        if first_step:
            logging.info("%s: goes on after step %d.", workdir, first_step)
        pace = Pace(first_step)
        reports: deque[Callable[[], None]] = deque()
        losses: list[Array] = []
        with MetricsWriter(
            workdir,
            first_step=first_step,
            num_steps=config.num_steps,
            show_progress=show_progress,
        ) as writer:
            for start, end in chunks(
                first_step,
                config.num_steps,
                stops=evaluated,
                max_steps=config.max_steps_per_dispatch,
            ):
                state, chunk_losses = run.train_chunk(state, start, end)
                losses.append(chunk_losses)
                measured = run.evaluate(state, end) if end in evaluated else None
                reports.append(
                    partial(_report, writer, pace, end, tuple(losses), measured)
                )
                if measured is not None:
                    losses.clear()
                # A checkpoint must not know more than the metrics on disk.
                may_wait = 0 if end in saved else 1
                while len(reports) > may_wait:
                    reports.popleft()()
                if end in saved:
                    checkpoints.save(state, step=end)
    return pace.steps_per_second


def _report(
    writer: MetricsWriter,
    pace: Pace,
    step: int,
    losses: Sequence[Array],
    measured: _Measured | None,
) -> None:
    """Waits until the device is through with a stretch, and writes what it measured."""
    jax.block_until_ready(losses[-1])
    if measured is not None:
        values = {
            "train_loss": float(np.mean(np.concatenate(losses))),
            **mean_metrics(measured.sums),
            **{name: value.tolist() for name, value in measured.probed.items()},
        }
        for name, value in values.items():
            if not np.all(np.isfinite(value)):
                raise UserError(
                    f"{name} is {value} after step {step}; a lower learning rate may "
                    "keep it finite."
                )
        writer.write(step, values)
    writer.advance(step)
    pace.advance(step)


def _check_config(config: _Settings) -> None:
    """Raises UserError for settings that no run can have."""
    schedule = config.evaluation.schedule
    at_least_one = {
        "num_steps": config.num_steps,
        "batch_size": config.batch_size,
        "max_steps_per_dispatch": config.max_steps_per_dispatch,
        "evaluation.batch_size": config.evaluation.batch_size,
        "evaluation.population_batches": config.evaluation.population_batches,
        "evaluation.probe_examples": config.evaluation.probe_examples,
        "evaluation.schedule.early_every_steps": schedule.early_every_steps,
        "evaluation.schedule.every_steps": schedule.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "checkpoint.keep": config.checkpoint.keep,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"config.{name} must be at least 1, and is {value}.")
    if config.seed < 0:
        raise UserError(f"config.seed must not be negative, and is {config.seed}.")
    if not 0 <= config.binarize_threshold <= 254:
        raise UserError(
            "config.binarize_threshold must lie in 0 to 254, so that both values can "
            f"come up, and is {config.binarize_threshold}."
        )
