"""The parts of a run, put together from its configuration."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jaxtyping import Array

from bn_jax.data import load_dataset
from bn_jax.data.batching import batch_indices
from bn_jax.data.dataset import Dataset
from bn_jax.data.preprocess import make_preprocess
from bn_jax.errors import UserError
from bn_jax.models import make_model, make_norm
from bn_jax.stats.accumulate import accumulate_batch_stats
from bn_jax.training.distributed.parallel import Parallel, put_split, result_shapes
from bn_jax.training.optim.optimizers import make_optimizer
from bn_jax.training.optim.schedules import make_schedule
from bn_jax.training.state import TrainState, init_state
from bn_jax.training.steps import Examples, TrainStep, make_train_step

# A ConfigDict, whose settings no type checker knows.
Settings = Any

# What the statistics of a step made of microbatches depend on, with the layer's own
# defaults where a configuration leaves one out.
_AVERAGING = (
    "momentum",
    "group_size",
    "variance_correction",
    "debias",
    "skip_nonfinite",
)


class Parts(NamedTuple):
    """What a configuration describes, ready to be compiled.

    Attributes:
        data: Images and labels, on the host.
        model: The network, with statistics of the whole batch under jit.
        mapped_model: The same for a step that is mapped over devices.
        tx: The optimizer.
        preprocess: Turns stored pixels into the model's input.
        parallel: The devices.
    """

    data: Dataset
    model: nn.Module
    mapped_model: nn.Module
    tx: optax.GradientTransformation
    preprocess: Callable[[Any], Any]
    parallel: Parallel


def build_parts(config: Settings, parallel: Parallel) -> Parts:
    """Reads the data, and makes the model and its optimizer.

    Args:
        config: As the files in `configs/` make it.
        parallel: Devices to train on.

    Raises:
        UserError: If a setting is not as it must be, or the data are missing.
    """
    return parts_around(load_dataset(**config.dataset), config, parallel)


def parts_around(data: Dataset, config: Settings, parallel: Parallel) -> Parts:
    """The model and its optimizer for data that are there already.

    Args:
        data: Images and labels.
        config: As the files in `configs/` make it; its `dataset` is not looked at.
        parallel: Devices to train on.

    Raises:
        UserError: If a setting is not as it must be.
    """
    if config.batch_size > len(data.train):
        raise UserError(
            f"config.batch_size: {config.batch_size} examples a step are more than the "
            f"{len(data.train)} that {data.name} has for training."
        )
    parts = parallel.num_devices * config.accumulation_steps
    if config.batch_size % parts:
        raise UserError(
            f"config.batch_size={config.batch_size} must be divisible by {parts}, "
            f"which is {parallel.num_devices} devices times "
            f"config.accumulation_steps={config.accumulation_steps}; change one of "
            "them, or use fewer devices by config.parallel.num_devices."
        )
    fields = {"num_classes": data.num_classes, "dtype": config.dtype, **config.model}
    if fields["num_classes"] < data.num_classes:
        raise UserError(
            f"config.model.num_classes: {fields['num_classes']} scores are too few for "
            f"the {data.num_classes} classes of {data.name}; leave it out, and there "
            "are as many."
        )
    schedule = make_schedule(
        **config.schedule,
        learning_rate=config.optimizer.learning_rate,
        num_steps=config.num_steps,
    )
    return Parts(
        data=data,
        model=make_model(norm=_norm(config, parallel, None), **fields),
        mapped_model=make_model(
            norm=_norm(config, parallel, parallel.axis_name), **fields
        ),
        tx=make_optimizer(**{**config.optimizer, "learning_rate": schedule}),
        preprocess=make_preprocess(**config.pixels),
        parallel=parallel,
    )


def build_train_step(config: Settings, parts: Parts) -> TrainStep:
    """The training step, not compiled, to be mapped over `parts.parallel`.

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.
    """
    averaging = {name: config.norm[name] for name in _AVERAGING if name in config.norm}
    if not config.norm.sync:
        averaging["group_size"] = _examples_together(config, parts.parallel)
    limit = {"raise": 1, "skip": config.max_nonfinite_steps}[config.on_nonfinite]
    return make_train_step(
        parts.mapped_model,
        parts.tx,
        preprocess=parts.preprocess,
        accumulate=partial(accumulate_batch_stats, **averaging),
        axis_name=parts.parallel.axis_name,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        max_nonfinite_steps=limit,
    )


class Init(NamedTuple):
    """What makes the state before the first step.

    Attributes:
        function: As `jax.jit` makes it.
        arguments: Its arguments, a key and an example.
        shapes: Those of the state, with the devices that will hold it: all.
    """

    function: jax.stages.Wrapped
    arguments: tuple[Array, np.ndarray]
    shapes: TrainState


def build_init(config: Settings, parts: Parts) -> Init:
    """What makes the state before the first step, traced and not compiled.

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.

    Raises:
        UserError: If the model does not take the data.
    """

    def init(key: Array, example: Array) -> TrainState:
        keep_ema = config.ema_decay is not None
        return init_state(
            parts.model, parts.tx, key=key, example=example, keep_ema=keep_ema
        )

    function = jax.jit(
        init,
        out_shardings=parts.parallel.replicated,
        compiler_options=_compiled_once(parts.parallel),
    )
    image, _ = parts.data.train.read(np.zeros(1, int), np.zeros(1, int))
    arguments = (jax.random.key(config.seed), parts.preprocess(image))
    with settings_to_blame():
        shapes = result_shapes(parts.parallel, function, *arguments)
    return Init(function, arguments, shapes)


def build_initial_state(config: Settings, parts: Parts) -> TrainState:
    """The state before the first step, the same on all devices.

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.

    Raises:
        UserError: If the model does not take the data.
    """
    init = build_init(config, parts)
    state: TrainState = init.function(*init.arguments)
    return state


def read_batches(
    config: Settings, parts: Parts, first_step: int, num_steps: int
) -> Examples:
    """Examples of some steps, `(steps, microbatches, examples, ...)`, on the devices.

    They depend on the seed and on the steps alone. Each process reads those of its own
    devices.

    Args:
        config: As the files in `configs/` make it.
        parts: What it describes.
        first_step: Steps before the first one wanted.
        num_steps: How many steps.
    """
    split = parts.data.train
    order = batch_indices(
        len(split),
        config.batch_size,
        seed=config.seed,
        first_step=first_step,
        num_steps=num_steps,
    ).reshape(-1)
    first = first_step * config.batch_size

    def read(positions: np.ndarray) -> tuple[np.ndarray, ...]:
        return split.read(order[positions - first], positions)

    positions = np.arange(first, first + len(order))
    shape = (num_steps, config.accumulation_steps, -1)
    return Examples(*put_split(parts.parallel, read, positions.reshape(shape)))


def describe_normalization(config: Settings, parallel: Parallel) -> str:
    """Which examples share their mean and variance in training, in words.

    Args:
        config: As the files in `configs/` make it.
        parallel: Devices to train on.
    """
    if config.norm.name is None:
        return "no normalization"
    size = _examples_together(config, parallel)
    devices = f" on {parallel.num_devices} devices"
    if parallel.num_devices == 1:
        devices = ""
    elif not config.norm.sync:
        devices = f", those of each of {parallel.num_devices} devices"
    return f"normalization batch: {size} of {config.batch_size} examples{devices}"


def _compiled_once(parallel: Parallel) -> dict[str, int] | None:
    """Options for a program that runs once, and is to be compiled quickly.

    Random numbers are long programs: for Inception, XLA takes minutes on a CPU to
    optimize the drawing of its weights, which are the same bits without that.
    """
    is_cpu = parallel.mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if is_cpu else None


@contextmanager
def settings_to_blame() -> Iterator[None]:
    """A context in which what a layer refuses is an error of the configuration.

    Raises:
        UserError: In place of a ValueError: a setting of the model, of its
            normalization or of the size of a batch is wrong.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def _norm(
    config: Settings, parallel: Parallel, axis_name: str | None
) -> Callable[..., nn.Module] | None:
    fields = {name: value for name, value in config.norm.items() if name != "sync"}
    if config.norm.name is None:
        return make_norm(**fields)
    if not config.norm.sync:
        fields["group_size"] = _examples_together(config, parallel)
    return make_norm(**fields, axis_name=axis_name)


def _examples_together(config: Settings, parallel: Parallel) -> int:
    """Examples that share statistics in training."""
    microbatch = config.batch_size // config.accumulation_steps
    # A group of a device's own examples is the same in every mode.
    return microbatch if config.norm.sync else microbatch // parallel.num_devices
