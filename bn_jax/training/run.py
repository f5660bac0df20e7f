"""What a run does over and over, compiled for its devices and over its data."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from bn_jax.training.build import (
    Parts,
    Settings,
    build_init,
    build_train_step,
    read_batches,
    settings_to_blame,
)
from bn_jax.training.distributed.compilation import compile_ahead
from bn_jax.training.distributed.parallel import compile_chunk, result_shapes
from bn_jax.training.distributed.processes import make_any
from bn_jax.training.evaluation.eval_batches import add_up, make_test_reader
from bn_jax.training.evaluation.predict import (
    PaddedBatches,
    make_eval_step,
    make_predict,
)
from bn_jax.training.evaluation.probes import make_probes
from bn_jax.training.metrics import PredictionSums
from bn_jax.training.state import Tally, TrainState, clear_losses
from bn_jax.training.steps import Examples, make_population_step, make_train_chunk


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
        evaluate: Measures a state on the test set after that many steps; None if
            `should_stop` tells it to stop, before it begins or between two parts.
        clear_losses: See `bn_jax.training.state.clear_losses`.
        any_process: See `bn_jax.training.distributed.processes.make_any`.
        must_wait: See `Parallel.must_wait`.
    """

    initial_state: TrainState
    train_steps: Callable[[TrainState, int, int], tuple[TrainState, Tally]]
    evaluate: Callable[[TrainState, int, Callable[[], ArrayLike]], Measured | None]
    clear_losses: Callable[[Tally], Tally]
    any_process: Callable[[int], Array]
    must_wait: bool


def compile_run(config: Settings, parts: Parts) -> Run:
    """Makes ready what works on the data, and puts a test set in memory on the devices.

    Of a test set on the disk a batch is read, for its shape. On several devices of a
    CPU every call is waited for (see `Parallel.must_wait`).

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.

    Raises:
        UserError: If the model or its normalization refuses the data.
    """
    parallel = parts.parallel
    settle = jax.block_until_ready if parallel.must_wait else lambda result: result
    init = build_init(config, parts)
    train_chunk = compile_chunk(
        parallel, make_train_chunk(build_train_step(config, parts))
    )
    population_step = jax.jit(
        make_population_step(parts.model, preprocess=parts.preprocess),
        out_shardings=parallel.replicated,
    )
    eval_step = jax.jit(
        make_eval_step(make_predict(parts.model, preprocess=parts.preprocess)),
        out_shardings=parallel.replicated,
    )
    read_test = make_test_reader(
        parallel, parts.data.test, batch_size=config.evaluation.batch_size
    )
    batch = read_batches(config, parts, 0, 1)
    training = _shapes_of_steps(batch, config.evaluation.population_batches)
    test_part = next(iter(read_test()))
    with settings_to_blame():
        if parallel.mode != "pmap":
            # Refusals come before anything is compiled. JAX keeps what it traces of a
            # step for stretches of any length.
            jax.eval_shape(train_chunk, init.shapes, batch)
        variables = init.shapes.variables
        network = result_shapes(parallel, population_step, variables, training)
        make_state = compile_ahead(init.function, *init.arguments)
        take_population = compile_ahead(population_step, variables, training)
        sum_predictions = compile_ahead(eval_step, network, test_part)
    state = make_state(*init.arguments)

    def networks(state: TrainState, step: int) -> Mapping[str, PyTree]:
        # The minibatches that training comes to next: it has not fitted them yet. The
        # averaged network is another one, and so are its statistics.
        ahead = read_batches(config, parts, step, config.evaluation.population_batches)
        return {
            prefix: settle(take_population(network, ahead))
            for prefix, network in state.networks.items()
        }

    probe = jax.jit(
        make_probes(
            config.probes,
            model=parts.model,
            initial_variables=lambda: networks(state, 0)[""],
            read_inputs=partial(_first_test_inputs, config, parts),
        ),
        out_shardings=parallel.replicated,
    )

    def train_steps(
        state: TrainState, first_step: int, last_step: int
    ) -> tuple[TrainState, Tally]:
        batches = read_batches(config, parts, first_step, last_step - first_step)
        with settings_to_blame():
            return settle(train_chunk(state, batches))

    def evaluate(
        state: TrainState, step: int, should_stop: Callable[[], ArrayLike]
    ) -> Measured | None:
        if bool(should_stop()):
            return None
        evaluated = networks(state, step)

        def sums_of(part: PaddedBatches) -> Mapping[str, PredictionSums]:
            return {
                prefix: settle(sum_predictions(network, part))
                for prefix, network in evaluated.items()
            }

        sums = add_up(sums_of, read_test(), should_stop=should_stop)
        if sums is None:
            return None
        sums = settle(sums)
        return Measured(sums, settle(probe(evaluated[""], state.batch_stats)))

    clear = jax.jit(clear_losses, out_shardings=parallel.replicated)
    return Run(
        initial_state=state,
        train_steps=train_steps,
        evaluate=evaluate,
        clear_losses=lambda tally: settle(clear(tally)),
        any_process=make_any(parallel),
        must_wait=parallel.must_wait,
    )


def _first_test_inputs(config: Settings, parts: Parts) -> Array:
    count = min(config.evaluation.probe_examples, len(parts.data.test))
    images, _ = parts.data.test.read(np.arange(count), np.arange(count))
    return parts.preprocess(images)


def _shapes_of_steps(batch: Examples, num_steps: int) -> Examples:
    """Shapes of the examples of as many steps."""

    def longer(leaf: Array) -> jax.ShapeDtypeStruct:
        shape = (num_steps, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(longer, batch)
