"""What `batch_norm` refuses, in words that name the way out, before it is traced."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from bn_jax.core.devices import Devices, number_of_devices


def check_arrays(
    x: Array,
    feature_axes: Sequence[int],
    *,
    scale: Array | None,
    bias: Array | None,
    batch_stats: Mapping[str, Array],
    mask: Array | None,
) -> None:
    """Makes sure that all arrays fit x.

    Args:
        x: Activations.
        feature_axes: Canonical feature axes.
        scale: Learned factors, if any.
        bias: Learned offsets, if any.
        batch_stats: Running statistics.
        mask: Which positions count, if not all.

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
    missing = {"mean", "var"} - set(batch_stats)
    if missing:
        raise ValueError(
            f"batch_norm: batch_stats must hold 'mean' and 'var', and lacks "
            f"{sorted(missing)}; it has {sorted(batch_stats)}."
        )
    features = tuple(x.shape[axis] for axis in feature_axes)
    statistics = {name: batch_stats[name] for name in ("mean", "var")}
    for name, values in {"scale": scale, "bias": bias, **statistics}.items():
        if values is not None and jnp.shape(values) != features:
            raise ValueError(
                f"batch_norm: {name} must have the shape {features} of x's feature "
                f"axes {tuple(feature_axes)}, and has {jnp.shape(values)}; x has "
                f"{x.shape}."
            )
    if jnp.shape(batch_stats.get("count", 0)) != ():
        raise ValueError(
            "batch_norm: batch_stats['count'] must be one number, the batches of all "
            f"features, and has the shape {jnp.shape(batch_stats['count'])}."
        )
    if mask is not None and not _broadcasts(jnp.shape(mask), x.shape):
        raise ValueError(
            f"batch_norm: mask of shape {jnp.shape(mask)} does not broadcast to x of "
            f"shape {x.shape}; to mask whole examples, give it "
            f"{x.shape[:1] + (1,) * (x.ndim - 1)}."
        )


def check_settings(
    batch_stats: Mapping[str, Array],
    feature_axes: Sequence[int],
    *,
    momentum: float | Float[Array, ""] | None,
    epsilon: float,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: int | None,
    variance_correction: int,
    debias: bool,
) -> None:
    """Makes sure that all settings mean something, and do so together.

    Args:
        batch_stats: Running statistics.
        feature_axes: Canonical feature axes.
        momentum: As for `batch_norm`, and so are all the others.
        epsilon: See there.
        axis_name: See there.
        axis_index_groups: See there.
        group_size: See there.
        variance_correction: See there.
        debias: See there.

    Raises:
        ValueError: If one of them does not.
    """
    for name, number in {"momentum": momentum, "epsilon": epsilon}.items():
        is_left_out = name == "momentum" and number is None
        if not is_left_out and not _is_number(number):
            raise ValueError(
                f"batch_norm: {name} must be one number, for all features, and is "
                f"{number!r}."
            )
    if momentum is not None and not _may_be_fraction(momentum):
        raise ValueError(
            f"batch_norm: momentum must lie in [0, 1), and is {momentum}; it is the "
            "fraction of the old statistics that is kept (PyTorch's 0.1 is 0.9 here). "
            "To keep all of them, update_running_average=False."
        )
    if isinstance(epsilon, Tracer):
        raise ValueError(
            "batch_norm: epsilon must be a number that is known before tracing, and is "
            f"{epsilon}; make it static."
        )
    if not epsilon >= 0:
        raise ValueError(f"batch_norm: epsilon must not be negative; it is {epsilon}.")
    if variance_correction not in (0, 1):
        raise ValueError(
            "batch_norm: variance_correction must be 0 (biased) or 1 (unbiased), and "
            f"is {variance_correction}."
        )
    if axis_index_groups is not None and axis_name is None:
        raise ValueError(
            "batch_norm: axis_index_groups needs axis_name, the mapped axis that the "
            "groups divide."
        )
    is_whole = isinstance(group_size, int | np.integer)
    if group_size is not None and (not is_whole or group_size < 1):
        raise ValueError(
            "batch_norm: group_size must be a whole number of examples, at least 1; "
            f"it is {group_size!r}."
        )
    if group_size is not None and axis_index_groups is not None:
        raise ValueError(
            "batch_norm: group_size and axis_index_groups both say which examples "
            "share statistics; give one of them."
        )
    if group_size is not None and 0 in feature_axes:
        raise ValueError(
            "batch_norm: group_size counts examples along axis 0, which is a feature "
            f"axis here (axis={tuple(feature_axes)})."
        )
    if (momentum is None or debias) and "count" not in batch_stats:
        raise ValueError(
            "batch_norm: momentum=None and debias=True need the number of batches so "
            f"far: batch_stats['count'], 0.0 at first; it has {sorted(batch_stats)}. "
            "bn_jax.with_counts completes a whole collection."
        )
    if momentum is None and debias:
        raise ValueError(
            "batch_norm: debias=True corrects a moving average; the cumulative one "
            "(momentum=None) needs no correction. Leave one of them out."
        )


def check_number_of_values(
    x: Array,
    feature_axes: Sequence[int],
    *,
    devices: Devices,
    group_size: int | None,
) -> None:
    """Makes sure that there is more than one value a feature to take a variance of.

    Args:
        x: Activations, none of them masked.
        feature_axes: Canonical feature axes; where they are all axes of x, as for a
            single vector, there is nothing to demand.
        devices: Devices that share statistics.
        group_size: Examples that share statistics, if not all.

    Raises:
        ValueError: If there is one.
    """
    sizes = [n for axis, n in enumerate(x.shape) if axis not in feature_axes]
    if group_size is None:
        values = number_of_devices(devices)
    else:
        values, sizes = group_size, sizes[1:]
    for size in sizes:
        values *= size
    if values == 1 and len(feature_axes) < x.ndim:
        raise ValueError(
            f"batch_norm: x of shape {x.shape} has one value a feature, whose variance "
            "is 0 and whose normalized value is always 0. Train with more examples a "
            "batch or group (group_size), share statistics across devices (axis_name), "
            "or normalize by the running ones (use_running_average=True)."
        )


def _is_number(value: Any) -> bool:
    is_numeric = isinstance(value, float | int | np.generic | np.ndarray | jax.Array)
    return is_numeric and jnp.shape(value) == ()


def _may_be_fraction(momentum: float | Array) -> bool:
    """Whether it lies in [0, 1), or is known only when the program runs."""
    return isinstance(momentum, Tracer) or bool(0 <= momentum < 1)


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    trailing = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(
        size in (1, goal) for size, goal in zip(shape, trailing, strict=True)
    )
