"""What a run does over and over, compiled for its devices and over its data."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, PyTree

from bn_jax.training.build import (
    Parts,
    Settings,
    build_initial_state,
    build_train_step,
    read_batches,
    read_test_batches,
    settings_to_blame,
)
from bn_jax.training.metrics import PredictionSums
from bn_jax.training.parallel import compile_chunk
from bn_jax.training.probes import make_probes
from bn_jax.training.processes import make_any
from bn_jax.training.state import Tally, TrainState, clear_losses
from bn_jax.training.steps import make_eval_step, make_population_step, make_train_chunk


class Measured(NamedTuple):
    """What an evaluation measured, still on the device.

    Attributes:
        sums: Of the predictions by the parameters, under an empty name, and of those
            by the averaged parameters under `ema_`, where they are kept.
        probed: What the probes measured, by name.
    """

    sums: Mapping[str, PredictionSums]
    probed: Mapping[str, Array]


class Run(NamedTuple):
    """The state before the first step, and compiled functions over the run's data.

    Attributes:
        initial_state: On all devices.
        train_steps: Takes the steps from one to another; the state is given away.
        evaluate: Measures a state on the test set after that many steps.
        clear_losses: See `bn_jax.training.state.clear_losses`.
        any_process: See `bn_jax.training.processes.make_any`.
        must_wait: See `Parallel.must_wait`.
    """

    initial_state: TrainState
    train_steps: Callable[[TrainState, int, int], tuple[TrainState, Tally]]
    evaluate: Callable[[TrainState, int], Measured]
    clear_losses: Callable[[Tally], Tally]
    any_process: Callable[[int], Array]
    must_wait: bool


def compile_run(config: Settings, parts: Parts) -> Run:
    """Puts the test set on the devices, and makes ready what works on it.

    On several devices of a CPU every call is waited for (see `Parallel.must_wait`).

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.

    Raises:
        UserError: If the model or its normalization refuses the data.
    """
    parallel = parts.parallel
    settle = jax.block_until_ready if parallel.must_wait else lambda result: result
    state = build_initial_state(config, parts)
    train_step = build_train_step(config, parts)
    if parallel.axis_name is None:
        # Refusals come before anything is compiled; a mapped step has no axis here.
        with settings_to_blame():
            one = jax.tree.map(lambda x: x[0], read_batches(config, parts, 0, 1))
            jax.eval_shape(train_step, state, one)
    train_chunk = compile_chunk(parallel, make_train_chunk(train_step))
    population_step = jax.jit(
        make_population_step(parts.model, preprocess=parts.preprocess),
        out_shardings=parallel.replicated,
    )
    eval_step = jax.jit(
        make_eval_step(parts.model, preprocess=parts.preprocess),
        out_shardings=parallel.replicated,
    )
    test_batches = read_test_batches(config, parts)

    def with_population_statistics(state: TrainState, step: int) -> PyTree:
        # The minibatches that training comes to next: it has not fitted them yet.
        ahead = read_batches(config, parts, step, config.evaluation.population_batches)
        return settle(population_step(state.variables, ahead))

    probe = jax.jit(
        make_probes(
            config.probes,
            model=parts.model,
            initial_variables=with_population_statistics(state, 0),
            inputs=parts.preprocess(_first_test_images(config, parts)),
        ),
        out_shardings=parallel.replicated,
    )

    def train_steps(
        state: TrainState, first_step: int, last_step: int
    ) -> tuple[TrainState, Tally]:
        batches = read_batches(config, parts, first_step, last_step - first_step)
        with settings_to_blame():
            return settle(train_chunk(state, batches))

    def evaluate(state: TrainState, step: int) -> Measured:
        variables = with_population_statistics(state, step)
        sums = {"": settle(eval_step(variables, test_batches))}
        if state.ema_params:
            # The averaged network is another one, and so are its statistics.
            averaged = state._replace(params=state.ema_params)
            ema_variables = with_population_statistics(averaged, step)
            sums["ema_"] = settle(eval_step(ema_variables, test_batches))
        return Measured(sums, settle(probe(variables, state.batch_stats)))

    clear = jax.jit(clear_losses, out_shardings=parallel.replicated)
    return Run(
        initial_state=state,
        train_steps=train_steps,
        evaluate=evaluate,
        clear_losses=lambda tally: settle(clear(tally)),
        any_process=make_any(parallel),
        must_wait=parallel.must_wait,
    )


def _first_test_images(config: Settings, parts: Parts) -> np.ndarray:
    count = min(config.evaluation.probe_examples, len(parts.data.test))
    return parts.data.test.read(np.arange(count), np.arange(count))[0]
