"""Checks of what `batch_norm` is given, before it is traced, with advice."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from bn_jax.core.collectives import Devices
from bn_jax.core.config import BatchNormConfig, check_is_number
from bn_jax.core.types import NumValues


def check_arrays(
    x: Array,
    feature_axes: Sequence[int],
    *,
    scale: Array | None,
    bias: Array | None,
    batch_stats: Mapping[str, Array] | None,
    mask: Array | None,
) -> None:
    """Checks that all arrays fit x.

    Args:
        x: Activations.
        feature_axes: Canonical feature axes.
        scale: Learned factors, or None.
        bias: Learned offsets, or None.
        batch_stats: Running statistics, or None.
        mask: True at the positions that count, or None.

    Raises:
        ValueError: If one of them does not.
    """
    for name, values in {"scale": scale, "bias": bias}.items():
        if values is not None and jnp.iscomplexobj(values) > jnp.iscomplexobj(x):
            raise ValueError(
                f"batch_norm: {name} must be real where x is, and is "
                f"{jnp.result_type(values)}; make x complex, whose dtype the result "
                "has."
            )
    statistics = {} if batch_stats is None else dict(batch_stats)
    missing = {"mean", "var"} - set(statistics)
    if missing and batch_stats is not None:
        raise ValueError(
            f"batch_norm: batch_stats must hold 'mean' and 'var', and lacks "
            f"{sorted(missing)}; it has {sorted(batch_stats)}."
        )
    features = tuple(x.shape[axis] for axis in feature_axes)
    of_features = {name: statistics.get(name) for name in ("mean", "var")}
    for name, values in {"scale": scale, "bias": bias, **of_features}.items():
        if values is not None and jnp.shape(values) != features:
            raise ValueError(
                f"batch_norm: {name} must have the shape {features} of x's feature "
                f"axes {tuple(feature_axes)}, and has {jnp.shape(values)}; x has "
                f"{x.shape}."
            )
    if jnp.shape(statistics.get("count", 0)) != ():
        raise ValueError(
            "batch_norm: batch_stats['count'] must be one number, the batches of all "
            f"features, and has the shape {jnp.shape(statistics['count'])}."
        )
    if mask is not None and not _broadcasts(jnp.shape(mask), x.shape):
        fitting = _mask_shape(jnp.shape(mask), x.shape, feature_axes)
        raise ValueError(
            f"batch_norm: mask of shape {jnp.shape(mask)} does not broadcast to x of "
            f"shape {x.shape}; give it {fitting}."
        )


def check_running_average(
    batch_stats: Mapping[str, Array],
    config: BatchNormConfig,
    *,
    momentum: float | Float[Array, ""] | None,
) -> None:
    """Checks that the running average has the settings and the count that it needs.

    Args:
        batch_stats: Running statistics.
        config: The settings.
        momentum: Fraction of the old statistics that is kept; None for an average of
            all batches alike.

    Raises:
        ValueError: If momentum is no number in [0, 1), a count is missing, or
            `debias` corrects an average that needs no correction.
    """
    if momentum is not None:
        check_is_number("momentum", momentum)
    is_known = not (momentum is None or isinstance(momentum, Tracer))
    # A float: inside shard_map a comparison of an array would be traced.
    if is_known and not 0 <= float(momentum) < 1:
        raise ValueError(
            f"batch_norm: momentum must lie in [0, 1), and is {momentum}; it is the "
            "fraction of the old statistics that is kept (PyTorch's 0.1 is 0.9 here). "
            "To keep all of them, update_running_average=False."
        )
    if (momentum is None or config.debias) and "count" not in batch_stats:
        raise ValueError(
            "batch_norm: momentum=None and debias=True need the number of batches so "
            f"far: batch_stats['count'], 0.0 at first; it has {sorted(batch_stats)}. "
            "bn_jax.with_counts completes a whole collection."
        )
    if momentum is None and config.debias:
        raise ValueError(
            "batch_norm: debias=True corrects a moving average; the cumulative one "
            "(momentum=None) needs no correction. Leave one of them out."
        )


def count_values(x: Array, config: BatchNormConfig, devices: Devices) -> NumValues:
    """Returns how many values share a mean, masked ones included, as shapes give them.

    Args:
        x: Activations.
        config: The settings, with canonical axes.
        devices: Devices that share statistics.
    """
    sizes = [n for axis, n in enumerate(x.shape) if axis not in config.axis]
    values = devices.number
    if config.group_size is not None:
        values, sizes = config.group_size, sizes[1:]
    for size in sizes:
        values *= size
    return NumValues(values)


def single_value_advice(x: Array) -> str:
    """Returns the message for a batch with one value a feature.

    Args:
        x: Activations.
    """
    return (
        f"batch_norm: x of shape {x.shape} has one value a feature, whose variance "
        "is 0 and whose normalized value is always 0. Train with more examples a "
        "batch or group (group_size), share statistics across devices (axis_name), "
        "or normalize by the running ones (use_running_average=True)."
    )


@contextmanager
def errors_naming(where: str) -> Iterator[None]:
    """Re-raises the operator's errors with another name instead of `batch_norm`.

    Args:
        where: Path or name of the layer, or name of another function.

    Raises:
        ValueError: If the body raises it.
        NameError: If the body raises it.
    """
    try:
        yield
    except (ValueError, NameError) as error:
        message = str(error).removeprefix("batch_norm: ")
        raise type(error)(f"{where}: {message}") from error


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    trailing = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(
        size in (1, goal) for size, goal in zip(shape, trailing, strict=True)
    )


def _mask_shape(
    shape: Sequence[int], x_shape: Sequence[int], feature_axes: Sequence[int]
) -> tuple[int, ...]:
    """Returns the shape of a mask that hides what one of the given shape names.

    A mask whose sizes are those of the first axes that are averaged over, such as
    (batch, length), lacks only axes of size 1. Any other one may mean anything: the
    answer is then the shape for whole examples.
    """
    averaged = [axis for axis in range(len(x_shape)) if axis not in feature_axes]
    named = averaged[: len(shape)]
    if tuple(shape) != tuple(x_shape[axis] for axis in named):
        named = averaged[:1]
    return tuple(n if axis in named else 1 for axis, n in enumerate(x_shape))
