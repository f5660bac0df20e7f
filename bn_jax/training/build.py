"""Construction of the typed parts of a run from its configuration.

Code for models, data, steps and programs takes these parts. Only the loop and the
evaluation commands read the configuration as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bn_jax.data import load_dataset
from bn_jax.data.dataset import Dataset
from bn_jax.data.preprocess import make_preprocess
from bn_jax.errors import UserError
from bn_jax.layers.frozen import frozen
from bn_jax.models import make_model, make_norm
from bn_jax.models.own import takes_norm
from bn_jax.stats.accumulate import accumulate_batch_stats
from bn_jax.training.distributed.parallel import Parallel
from bn_jax.training.group_size import Settings, share_of_device
from bn_jax.training.optim.freeze import (
    frozen_parameters,
    leave_alone,
    stop_gradients,
)
from bn_jax.training.optim.optimizers import make_optimizer
from bn_jax.training.optim.schedules import make_schedule
from bn_jax.training.own_model import check_norm_settings
from bn_jax.training.parts import (
    BatchSettings,
    EvaluationSettings,
    Parts,
    RunSettings,
    trace_init,
)
from bn_jax.training.step.train_step import TrainStep, make_train_step
from bn_jax.training.step_schedule import checkpoint_steps, evaluation_steps
from bn_jax.user_code import is_object_name

# Settings of a BatchNorm layer that accumulation over microbatches needs.
_ACCUMULATION_SETTINGS = (
    "momentum",
    "group_size",
    "variance_correction",
    "debias",
    "skip_nonfinite",
)


def build_parts(config: Settings, parallel: Parallel) -> Parts:
    """Reads the data, and makes the model and its optimizer.

    Args:
        config: Configuration, as the files in `configs/` make it.
        parallel: Devices to train on.

    Raises:
        UserError: If a setting is out of its range, or the data are missing.
    """
    data = load_dataset(**config.dataset, module_dir=config.module_dir)
    return build_parts_for_data(data, config, parallel)


def build_parts_for_data(data: Dataset, config: Settings, parallel: Parallel) -> Parts:
    """Makes the model and its optimizer for data that are already loaded.

    Args:
        data: Images and labels.
        config: Configuration; its `dataset` is not read.
        parallel: Devices to train on.

    Raises:
        UserError: If a setting is out of its range.
    """
    _check_batch(config, data, parallel)
    _check_norm(config)
    num_classes = _num_classes(config, data)
    schedule = make_schedule(
        **config.schedule,
        learning_rate=config.optimizer.learning_rate,
        num_steps=config.num_steps,
    )
    settings, name = config.evaluation, config.model.name
    parts = Parts(
        data=data,
        model=build_model(config, num_classes),
        mapped_model=build_model(config, num_classes, axis_name=parallel.axis_name),
        tx=make_optimizer(
            **{
                **{k: v for k, v in config.optimizer.items() if k != "freeze"},
                "learning_rate": schedule,
            }
        ),
        preprocess=make_preprocess(**config.pixels),
        parallel=parallel,
        keep_ema=config.ema_decay is not None,
        # Small gradients would become 0 in float16.
        scale_loss=config.dtype == "float16",
        batches=BatchSettings(
            seed=config.seed,
            batch_size=config.batch_size,
            accumulation_steps=config.accumulation_steps,
        ),
        evaluation=EvaluationSettings(
            batch_size=settings.batch_size,
            population_batches=settings.population_batches,
            probe_examples=settings.probe_examples,
            probes=tuple(config.probes),
        ),
        run=_run_settings(config, data),
        num_classes=num_classes,
        own_model=f"config.model.name={name}" if is_object_name(name) else "",
        is_frozen=None,
        freezes_norms=config.norm.frozen,
    )
    if parts.own_model and not takes_norm(parts.model):
        check_norm_settings(parts.own_model, config.norm)
    return _with_frozen_parameters(config, parts)


def build_model(
    config: Settings, num_classes: int, *, axis_name: str | None = None
) -> nn.Module:
    """Returns the network that a configuration describes.

    Args:
        config: Configuration, as the files in `configs/` make it.
        num_classes: Number of scores; `config.model.num_classes` comes first.
        axis_name: Mapped axis over which a step sums; None for programs under jit.

    Raises:
        UserError: If a setting of the model or of its normalization is wrong.
    """
    fields = {"num_classes": num_classes, "dtype": config.dtype, **config.model}
    model = make_model(
        norm=_norm(config, axis_name),
        axis_name=axis_name,
        module_dir=config.module_dir,
        **fields,
    )
    return frozen(model) if config.norm.frozen else model


def build_train_step(config: Settings, parts: Parts) -> TrainStep:
    """Returns the training step, not compiled, to be mapped over `parts.parallel`.

    Args:
        config: Configuration, as the files in `configs/` make it.
        parts: Parts that it describes.
    """
    return make_train_step(
        parts.mapped_model,
        parts.tx,
        preprocess=parts.preprocess,
        accumulate=_accumulate(config, parts),
        axis_name=parts.parallel.axis_name,
        label_smoothing=config.label_smoothing,
        ema_decay=config.ema_decay,
        max_nonfinite_steps=parts.run.max_nonfinite_steps,
        stop_gradients=partial(stop_gradients, parts.is_frozen),
    )


def describe_normalization(config: Settings, parts: Parts) -> str:
    """Returns words that say which examples share their mean and variance.

    Args:
        config: Configuration, as the files in `configs/` make it.
        parts: Parts that it describes.
    """
    if config.norm.frozen:
        return "running statistics, frozen (config.norm.frozen)"
    if parts.own_model and not takes_norm(parts.model):
        return "as the network makes it"
    if config.norm.name is None:
        return "none"
    num_devices = parts.parallel.num_devices
    share = share_of_device(config, num_devices)
    size = config.norm.group_size or share_of_device(config, 1)
    devices = f" on {num_devices} devices" if num_devices > 1 else ""
    if devices and size == share:
        devices = f", separately on each of {num_devices} devices"
    return f"{size} of {config.batch_size} examples{devices}"


def _check_batch(config: Settings, data: Dataset, parallel: Parallel) -> None:
    if config.batch_size > len(data.train):
        raise UserError(
            f"config.batch_size={config.batch_size} must be at most the "
            f"{len(data.train)} training examples of {data.name}; lower it."
        )
    divisor = parallel.num_devices * config.accumulation_steps
    if config.batch_size % divisor:
        raise UserError(
            f"config.batch_size={config.batch_size} must be divisible by {divisor}, "
            f"which is {parallel.num_devices} devices times "
            f"config.accumulation_steps={config.accumulation_steps}; change one of "
            "them, or use fewer devices by config.parallel.num_devices."
        )


def _run_settings(config: Settings, data: Dataset) -> RunSettings:
    epoch = -(-len(data.train) // config.batch_size)
    schedule = dict(config.evaluation.schedule)
    schedule["every_steps"] = schedule["every_steps"] or epoch
    skips = config.on_nonfinite == "skip"
    return RunSettings(
        num_steps=config.num_steps,
        evaluated=evaluation_steps(config.num_steps, **schedule),
        cleared=evaluation_steps(config.num_steps + 1, **schedule),
        saved=checkpoint_steps(
            config.num_steps, every_steps=config.checkpoint.every_steps or epoch
        ),
        kept_checkpoints=config.checkpoint.keep,
        log_every=config.log_every,
        max_steps_per_dispatch=config.max_steps_per_dispatch,
        skips_nonfinite=skips,
        max_nonfinite_steps=config.max_nonfinite_steps if skips else 1,
    )


def _num_classes(config: Settings, data: Dataset) -> int:
    num_classes = {"num_classes": data.num_classes, **config.model}["num_classes"]
    if num_classes < data.num_classes:
        raise UserError(
            f"config.model.num_classes={num_classes} must be at least the "
            f"{data.num_classes} classes of {data.name}; leave it out to have exactly "
            "as many."
        )
    return num_classes


def _with_frozen_parameters(config: Settings, parts: Parts) -> Parts:
    patterns, freezes_norms = config.optimizer.freeze, config.norm.frozen
    if not (patterns or freezes_norms):
        return parts
    is_frozen = frozen_parameters(
        trace_init(parts).shapes.variables,
        patterns=patterns,
        freezes_norms=freezes_norms,
    )
    return parts._replace(tx=leave_alone(parts.tx, is_frozen), is_frozen=is_frozen)


def _norm(config: Settings, axis_name: str | None) -> Callable[..., nn.Module] | None:
    # Without sync, the loop has set `group_size` to a device's share of a microbatch.
    # That makes the groups, not the mapped axis: jit, shard_map and pmap agree.
    fields = {
        name: value
        for name, value in config.norm.items()
        if name not in ("sync", "frozen")
    }
    return make_norm(**fields, axis_name=axis_name)


def _check_norm(config: Settings) -> None:
    """Checks the settings by a layer alone: a network's error would name its code."""
    norm = _norm(config, None)
    if norm is None:
        return
    layer: Any = norm(use_running_average=False)
    x = jax.ShapeDtypeStruct((share_of_device(config, 1), 2, 1), jnp.float32)
    try:
        variables = jax.eval_shape(layer.init, jax.random.key(0), x)
        jax.eval_shape(partial(layer.apply, mutable=True), variables, x)
    except ValueError as error:
        message = str(error).removeprefix("BatchNorm: ")
        raise UserError(f"config.norm.{message}") from error


def _accumulate(
    config: Settings, parts: Parts
) -> Callable[[PyTree, PyTree], PyTree] | None:
    # `config.norm` says nothing about layers that a user's model makes by itself.
    if parts.own_model and not takes_norm(parts.model):
        return None
    return partial(accumulate_batch_stats, **_accumulation_settings(config))


def _accumulation_settings(config: Settings) -> dict[str, Any]:
    norm = config.norm
    return {name: norm[name] for name in _ACCUMULATION_SETTINGS}
