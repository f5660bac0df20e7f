"""Compiled programs of a run: training, evaluation and probes."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, PyTree

from bn_jax.data.dataset import evaluated_split
from bn_jax.training.distributed.compilation import compile_ahead
from bn_jax.training.distributed.parallel import compile_stretch, result_shapes
from bn_jax.training.distributed.processes import make_max_over_processes
from bn_jax.training.evaluation.eval_batches import add_up, make_test_reader
from bn_jax.training.evaluation.predict import (
    PaddedBatches,
    make_eval_step,
    make_predict,
)
from bn_jax.training.evaluation.probes import Probe, make_probes
from bn_jax.training.parts import (
    Parts,
    build_init,
    errors_naming_config,
    read_batches,
    running_layers,
)
from bn_jax.training.step.metrics import PredictionSums
from bn_jax.training.step.population import make_population_step
from bn_jax.training.step.state import Tally, TrainState, clear_losses
from bn_jax.training.step.train_step import (
    Examples,
    TrainStep,
    make_train_stretch,
)


class EvaluationResults(NamedTuple):
    """Results of an evaluation, still on the device.

    Attributes:
        split: Name of the evaluated split, "validation" or "test".
        sums: Sums over the predictions. The key "" has those of the parameters, and
            "ema_" those of the averaged parameters, if the run keeps an average.
        probed: Results of the probes, by name.
    """

    split: str
    sums: Mapping[str, PredictionSums]
    probed: Mapping[str, Array]


class Run(NamedTuple):
    """The state before the first step, and functions that run compiled programs.

    Attributes:
        initial_state: State before the first step, on all devices.
        train_steps: Takes the steps between two step numbers. The state that it gets
            is donated.
        evaluate: Evaluates a state, after as many steps as given, on the validation
            split or, without one, on the test split. Returns None if its last argument,
            called before the evaluation and between two pieces of the split, asks to
            stop.
        clear_losses: Clears the losses of a tally (`state.clear_losses`).
        max_over_processes: Returns the largest of the numbers that the processes pass
            in (`processes.make_max_over_processes`).
        must_wait: True if a program must end before the next may begin
            (`Parallel.must_wait`).
    """

    initial_state: TrainState
    train_steps: Callable[[TrainState, int, int], tuple[TrainState, Tally]]
    evaluate: Callable[
        [TrainState, int, Callable[[], ArrayLike]], EvaluationResults | None
    ]
    clear_losses: Callable[[Tally], Tally]
    max_over_processes: Callable[[int], Array]
    must_wait: bool


class _Programs(NamedTuple):
    """Programs of a run, and the reader of the split that they evaluate.

    JAX compiles `train_stretch` at its first call, once for each number of steps. The
    other programs compile in the background.
    """

    make_state: Callable[[], TrainState]
    train_stretch: Callable[[TrainState, Examples], tuple[TrainState, Tally]]
    with_population_statistics: Callable[[PyTree, Examples], PyTree]
    sum_predictions: Callable[[PyTree, PaddedBatches], PredictionSums]
    read_evaluated: Callable[[], Any]


def compile_run(parts: Parts, train_step: TrainStep) -> Run:
    """Starts to compile the programs of a run, and makes its initial state.

    A split that fits into memory is put on the devices. From a split on disk one
    batch is read, because the programs are compiled for its shape.

    Args:
        parts: Parts of the run.
        train_step: Training step of the run, not compiled.

    Raises:
        UserError: If the model or its normalization refuses the data.
    """
    parallel = parts.parallel
    programs = _compile(parts, train_step)
    state = programs.make_state()
    probe = jax.jit(
        make_probes(
            parts.evaluation.probes,
            model=parts.model,
            initial_variables=lambda: _variables(parts, programs, state, 0)[""],
            read_inputs=partial(_probe_inputs, parts),
            running_layers=lambda: running_layers(parts, state.variables),
        ),
        out_shardings=parallel.replicated,
    )
    clear = jax.jit(clear_losses, out_shardings=parallel.replicated)
    return Run(
        initial_state=state,
        train_steps=partial(_train_steps, parts, programs),
        evaluate=partial(_evaluate, parts, programs, probe),
        clear_losses=lambda tally: parallel.wait_if_needed(clear(tally)),
        max_over_processes=make_max_over_processes(parallel),
        must_wait=parallel.must_wait,
    )


def _compile(parts: Parts, train_step: TrainStep) -> _Programs:
    parallel = parts.parallel
    init = build_init(parts)
    train_stretch = compile_stretch(parallel, make_train_stretch(train_step))
    population_step = jax.jit(
        make_population_step(parts.model, preprocess=parts.preprocess),
        out_shardings=parallel.replicated,
    )
    eval_step = jax.jit(
        make_eval_step(make_predict(parts.model, preprocess=parts.preprocess)),
        out_shardings=parallel.replicated,
    )
    _, split = evaluated_split(parts.data)
    read_evaluated = make_test_reader(
        parallel, split, batch_size=parts.evaluation.batch_size
    )
    batch = read_batches(parts, 0, 1)
    training = _shapes_of_steps(batch, parts.evaluation.population_batches)
    evaluated = next(iter(read_evaluated()))
    with errors_naming_config():
        if parallel.mode != "pmap":
            # A model that refuses its input does so here, before XLA compiles for
            # minutes. JAX reuses the trace of a step for stretches of any length. The
            # function for pmap converts arrays of other processes: it has no trace.
            jax.eval_shape(train_stretch, init.shapes, batch)
        variables = init.shapes.variables
        network = result_shapes(parallel, population_step, variables, training)
        make_state = compile_ahead(init.function, *init.arguments)
        return _Programs(
            make_state=partial(make_state, *init.arguments),
            train_stretch=train_stretch,
            with_population_statistics=compile_ahead(
                population_step, variables, training
            ),
            sum_predictions=compile_ahead(eval_step, network, evaluated),
            read_evaluated=read_evaluated,
        )


def _train_steps(
    parts: Parts, programs: _Programs, state: TrainState, first_step: int, end: int
) -> tuple[TrainState, Tally]:
    batches = read_batches(parts, first_step, end - first_step)
    with errors_naming_config():
        return parts.parallel.wait_if_needed(programs.train_stretch(state, batches))


def _evaluate(
    parts: Parts,
    programs: _Programs,
    probe: Probe,
    state: TrainState,
    step: int,
    should_stop: Callable[[], ArrayLike],
) -> EvaluationResults | None:
    if bool(should_stop()):
        return None
    wait_if_needed = parts.parallel.wait_if_needed
    networks = _variables(parts, programs, state, step)

    def sums_of(batches: PaddedBatches) -> Mapping[str, PredictionSums]:
        return {
            prefix: wait_if_needed(programs.sum_predictions(variables, batches))
            for prefix, variables in networks.items()
        }

    sums = add_up(sums_of, programs.read_evaluated(), should_stop=should_stop)
    if sums is None:
        return None
    split, _ = evaluated_split(parts.data)
    probed = wait_if_needed(probe(networks[""], state.batch_stats))
    return EvaluationResults(split, wait_if_needed(sums), probed)


def _variables(
    parts: Parts, programs: _Programs, state: TrainState, step: int
) -> Mapping[str, PyTree]:
    """Returns the variables to evaluate, with population statistics.

    Population statistics are computed from the next training batches, because the
    parameters are not yet fitted to them. The averaged parameters get population
    statistics of their own, because their activations differ.
    """
    ahead = read_batches(parts, step, parts.evaluation.population_batches)
    return {
        prefix: parts.parallel.wait_if_needed(
            programs.with_population_statistics(variables, ahead)
        )
        for prefix, variables in state.networks.items()
    }


def _probe_inputs(parts: Parts) -> Array:
    _, split = evaluated_split(parts.data)
    count = min(parts.evaluation.probe_examples, len(split))
    images, _ = split.read(np.arange(count), np.arange(count))
    return parts.preprocess(images)


def _shapes_of_steps(batch: Examples, num_steps: int) -> Examples:
    """Returns the shapes of the examples of that many steps."""

    def longer(leaf: Array) -> jax.ShapeDtypeStruct:
        shape = (num_steps, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(longer, batch)
