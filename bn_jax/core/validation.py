"""Checks of `batch_norm`'s arguments before tracing; each error gives advice."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NoReturn

import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float

from bn_jax.core.collectives import Devices
from bn_jax.core.config import BatchNormConfig, check_is_number
from bn_jax.core.types import NumValues


def raise_value_error(message: str) -> NoReturn:
    """Raises ValueError with a message about the arguments.

    Args:
        message: The message.

    Raises:
        ValueError: Always.
    """
    raise ValueError(message)


def check_arrays(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    batch_stats: Mapping[str, Array] | None,
    mask: Array | None,
    *,
    feature_axes: Sequence[int],
) -> None:
    """Checks that all arrays fit x.

    Args:
        x: Activations.
        scale: Learned factor of each feature, or None.
        bias: Learned offset of each feature, or None.
        batch_stats: Running statistics, or None.
        mask: True at valid positions; None if all are valid.
        feature_axes: Canonical feature axes.

    Raises:
        ValueError: If an array does not fit x.
    """
    for name, values in {"scale": scale, "bias": bias}.items():
        if values is not None and jnp.iscomplexobj(values) > jnp.iscomplexobj(x):
            raise ValueError(
                f"batch_norm: {name} must be real because x is real, but is "
                f"{jnp.result_type(values)}; make x complex, because the result has "
                "the dtype of x."
            )
    stats = {} if batch_stats is None else dict(batch_stats)
    missing = {"mean", "var"} - set(stats)
    if missing and batch_stats is not None:
        raise ValueError(
            f"batch_norm: batch_stats must hold 'mean' and 'var', but lacks "
            f"{sorted(missing)}; it has {sorted(stats)}."
        )
    features = tuple(x.shape[axis] for axis in feature_axes)
    count = stats.get("count", 0)
    running = {name: stats.get(name) for name in ("mean", "var")}
    for name, values in {"scale": scale, "bias": bias, **running}.items():
        if values is not None and jnp.shape(values) != features:
            raise ValueError(
                f"batch_norm: {name} must have the shape {features} of x's feature "
                f"axes {tuple(feature_axes)}, but has {jnp.shape(values)}; x has "
                f"{x.shape}."
            )
    if jnp.shape(count) != ():
        raise ValueError(
            "batch_norm: batch_stats['count'] must be one number, the batches so far, "
            f"for all features, but has the shape {jnp.shape(count)}."
        )
    if mask is not None and not _broadcasts(jnp.shape(mask), x.shape):
        fitting = _mask_shape(jnp.shape(mask), x.shape, feature_axes)
        raise ValueError(
            f"batch_norm: mask of shape {jnp.shape(mask)} does not broadcast to x of "
            f"shape {x.shape}; give it the shape {fitting}."
        )


def check_momentum(
    momentum: float | Float[Array, ""] | None,
    batch_stats: Mapping[str, Array] | None,
    config: BatchNormConfig,
) -> None:
    """Checks the momentum, and the count that some running averages need.

    Args:
        momentum: Fraction of the old statistics that is kept; None weights all batches
            equally.
        batch_stats: Running statistics, or None.
        config: The settings.

    Raises:
        ValueError: If momentum is not one number in [0, 1), a needed count is missing,
            or `debias` is set for the cumulative average, which needs no correction.
    """
    if momentum is not None:
        check_is_number("momentum", momentum)
        # As a float, because inside shard_map JAX would trace an array's comparison.
        if not (isinstance(momentum, Tracer) or 0 <= float(momentum) < 1):
            raise ValueError(
                f"batch_norm: momentum must lie in [0, 1), but is {momentum}; it is "
                "the fraction of the old statistics that is kept (PyTorch's 0.1 is 0.9 "
                "here). To keep all of them, set update_running_average=False."
            )
    needs_count = momentum is None or config.debias
    if needs_count and batch_stats is not None and "count" not in batch_stats:
        raise ValueError(
            "batch_norm: momentum=None and debias=True need the number of batches so "
            "far: batch_stats['count'], 0.0 at first. batch_stats has only "
            f"{sorted(batch_stats)}; bn_jax.with_counts adds counts to a collection."
        )
    if momentum is None and config.debias:
        raise ValueError(
            "batch_norm: debias=True corrects an exponential moving average, but the "
            "cumulative average (momentum=None) needs no correction. Leave one of them "
            "out."
        )


def count_values(x: Array, config: BatchNormConfig, devices: Devices) -> NumValues:
    """Returns the number of values that share a mean, masked ones included.

    Args:
        x: Activations.
        config: The settings, with canonical axes.
        devices: Devices that share statistics.
    """
    sizes = [n for axis, n in enumerate(x.shape) if axis not in config.axis]
    if config.group_size is not None:
        return NumValues(config.group_size * math.prod(sizes[1:]))
    return NumValues(devices.number * math.prod(sizes))


@contextmanager
def errors_naming(where: str) -> Iterator[None]:
    """Re-raises the operator's errors under another name than `batch_norm`.

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
    """Returns the shape that a mask should have, guessed from the shape that it has.

    If its sizes equal those of the first averaged axes, such as (batch, length), the
    mask lacks only axes of size 1. Any other shape could mean anything, so the answer
    is then the shape of a mask for whole examples.
    """
    averaged = [axis for axis in range(len(x_shape)) if axis not in feature_axes]
    named = averaged[: len(shape)]
    if tuple(shape) != tuple(x_shape[axis] for axis in named):
        named = averaged[:1]
    return tuple(n if axis in named else 1 for axis, n in enumerate(x_shape))
