"""Typed parts of a run; its initial state and its training batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from bn_jax.data.batching import batch_indices
from bn_jax.data.dataset import Dataset
from bn_jax.errors import UserError
from bn_jax.training.distributed.parallel import Parallel, put_sharded, result_shapes
from bn_jax.training.own_model import (
    check_own_model,
    errors_in_model,
    log_running_layers,
)
from bn_jax.training.step.population import layers_without_moments
from bn_jax.training.step.state import TrainState, init_state
from bn_jax.training.step.train_step import Examples
from bn_jax.training.step_schedule import Steps


class BatchSettings(NamedTuple):
    """Settings of training batches, each named after its entry in the configuration.

    Attributes:
        seed: Seed of the initial parameters, the order of examples, and dropout.
        batch_size: Examples of a step, on all devices together.
        accumulation_steps: Microbatches of a step.
    """

    seed: int
    batch_size: int
    accumulation_steps: int


class EvaluationSettings(NamedTuple):
    """Settings of an evaluation, each named after its entry in the configuration.

    Attributes:
        batch_size: Test examples at once, on all devices together.
        population_batches: Training batches behind the population statistics.
        probe_examples: Test examples that the probes may look at.
        probes: Names of the probes.
    """

    batch_size: int
    population_batches: int
    probe_examples: int
    probes: Sequence[str]


class RunSettings(NamedTuple):
    """Settings of the loop.

    Attributes:
        num_steps: Steps of the whole run.
        evaluated: Steps after which the model is evaluated.
        cleared: Those of them after which a new mean of the losses begins: all but a
            last step at which a longer run would not be evaluated.
        saved: Steps after which a checkpoint is written.
        kept_checkpoints: Number of checkpoints that are kept.
        log_every: Steps between log lines; None for lines at evaluations only.
        max_steps_per_dispatch: Steps of the longest stretch.
        skips_nonfinite: True undoes a non-finite step and continues; False ends the
            run.
        max_nonfinite_steps: Non-finite steps in a row that end the run.
    """

    num_steps: int
    evaluated: Steps
    cleared: Steps
    saved: Steps
    kept_checkpoints: int
    log_every: int | None
    max_steps_per_dispatch: int
    skips_nonfinite: bool
    max_nonfinite_steps: int


class Parts(NamedTuple):
    """Typed parts that a configuration describes, ready to be compiled.

    Attributes:
        data: Images and labels, on the host.
        model: Network for programs under jit, which normalizes over the normalization
            batch.
        mapped_model: Network for a step that is mapped over devices. It normalizes over
            the same examples, by sums over `parallel.axis_name`.
        tx: Optimizer.
        preprocess: Turns stored pixels into the model's input.
        parallel: Devices of the run.
        keep_ema: True if the run keeps averaged parameters.
        scale_loss: True if the run scales its loss.
        batches: Settings of training batches.
        evaluation: Settings of an evaluation.
        run: Settings of the loop.
        num_classes: Number of scores that the network returns for an example.
        own_model: Name of a user's own model, for messages; empty for other networks.
        is_frozen: True for each parameter that training leaves as it is; None if all
            are trained.
        freezes_norms: True if all layers normalize by their running statistics.
    """

    data: Dataset
    model: nn.Module
    mapped_model: nn.Module
    tx: optax.GradientTransformation
    preprocess: Callable[[Any], Any]
    parallel: Parallel
    keep_ema: bool
    scale_loss: bool
    batches: BatchSettings
    evaluation: EvaluationSettings
    run: RunSettings
    num_classes: int
    own_model: str
    is_frozen: PyTree | None
    freezes_norms: bool


class StateInit(NamedTuple):
    """Function and arguments that make the state before the first step.

    Attributes:
        function: The traced function, as `jax.jit` returns it.
        arguments: Its arguments, a key and an example.
        shapes: Shapes and dtypes of the state, with a sharding that replicates it.
    """

    function: jax.stages.Wrapped
    arguments: tuple[Array, np.ndarray]
    shapes: TrainState


def build_init(parts: Parts) -> StateInit:
    """Traces the function that makes the state before the first step.

    Also checks a user's own model, and logs how it is evaluated.

    Args:
        parts: Parts of the run.

    Raises:
        UserError: If the model does not take the data.
    """
    init = trace_init(parts)
    if parts.own_model:
        variables = init.shapes.variables
        check_own_model(
            parts.own_model,
            parts.model,
            parts.mapped_model,
            variables=variables,
            microbatch=microbatch_shape(parts),
            num_classes=parts.num_classes,
            parallel=parts.parallel,
        )
        if not parts.freezes_norms:
            without = running_layers(parts, variables)
            log_running_layers(parts.own_model, without, variables["batch_stats"])
    return init


def running_layers(parts: Parts, variables: Mapping[str, PyTree]) -> list[str]:
    """Returns the layers that evaluations use the running statistics of.

    Args:
        parts: Parts of the run.
        variables: Variables of the network, or their shapes.
    """
    return layers_without_moments(parts.model, variables, microbatch_shape(parts))


def microbatch_shape(parts: Parts) -> jax.ShapeDtypeStruct:
    """Returns the shape of a microbatch of the model's inputs.

    Args:
        parts: Parts of the run.
    """
    size = parts.batches.batch_size // parts.batches.accumulation_steps
    image, _ = parts.data.train.read(np.zeros(1, int), np.zeros(1, int))
    shape = jax.eval_shape(parts.preprocess, image)
    return shape.update(shape=(size, *shape.shape[1:]))


def trace_init(parts: Parts) -> StateInit:
    """Traces the function that makes the state before the first step.

    Args:
        parts: Parts of the run.

    Raises:
        UserError: If the model does not take the data.
    """

    def init(key: Array, example: Array) -> TrainState:
        return init_state(
            parts.model,
            parts.tx,
            key=key,
            example=example,
            keep_ema=parts.keep_ema,
            scale_loss=parts.scale_loss,
        )

    function = jax.jit(
        init,
        out_shardings=parts.parallel.replicated,
        compiler_options=_quick_compilation(parts.parallel),
    )
    image, _ = parts.data.train.read(np.zeros(1, int), np.zeros(1, int))
    arguments = (jax.random.key(parts.batches.seed), parts.preprocess(image))
    with _errors_naming_model(parts):
        shapes = result_shapes(parts.parallel, function, *arguments)
    return StateInit(function, arguments, shapes)


def build_initial_state(parts: Parts) -> TrainState:
    """Returns the state before the first step, replicated on all devices.

    Args:
        parts: Parts of the run.

    Raises:
        UserError: If the model does not take the data.
    """
    init = build_init(parts)
    state: TrainState = init.function(*init.arguments)
    return state


def read_batches(parts: Parts, first_step: int, num_steps: int) -> Examples:
    """Reads the training examples of some steps and puts them on the devices.

    The examples depend on the seed and on the steps alone. Each process reads only
    the examples of its own devices.

    Args:
        parts: Parts of the run.
        first_step: Index of the first step to read, from 0.
        num_steps: Number of steps to read.

    Returns:
        Sharded examples, `(steps, microbatches, examples, ...)`.
    """
    split, batch_size = parts.data.train, parts.batches.batch_size
    order = batch_indices(
        len(split),
        batch_size,
        seed=parts.batches.seed,
        first_step=first_step,
        num_steps=num_steps,
    ).reshape(-1)
    first = first_step * batch_size

    def read(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        return split.read(order[positions - first], positions)

    positions = np.arange(first, first + len(order))
    shape = (num_steps, parts.batches.accumulation_steps, -1)
    return Examples(*put_sharded(parts.parallel, read, positions.reshape(shape)))


@contextmanager
def errors_naming_config() -> Iterator[None]:
    """Re-raises the ValueError of a model or layer as an error of the configuration.

    Raises:
        UserError: In place of a ValueError: a setting of the model, of its
            normalization or of the size of a batch is wrong.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def _errors_naming_model(parts: Parts) -> AbstractContextManager[None]:
    if parts.own_model:
        return errors_in_model(parts.own_model, parts.model)
    return errors_naming_config()


def _quick_compilation(parallel: Parallel) -> dict[str, int] | None:
    """Returns XLA's options for a program that runs once.

    Drawing random numbers is a long program. On a CPU, XLA would optimize the drawing
    of Inception's weights for minutes; the bits are equal without that.
    """
    is_cpu = parallel.mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if is_cpu else None
