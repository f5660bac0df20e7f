"""Batch Normalization with all settings in one record, for `batch_norm` and layers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.collectives import Devices, make_devices
from bn_jax.core.config import BatchNormConfig, check_groups_of_examples
from bn_jax.core.dtypes import as_stored
from bn_jax.core.explicit_sharding import in_manual_context, with_automatic_sharding
from bn_jax.core.groups import normalize_by_batch_or_group
from bn_jax.core.normalize import normalize
from bn_jax.core.running import as_batch_stats, update_batch_stats
from bn_jax.core.traced_settings import (
    TracedSettings,
    differentiable_if,
    make_settings,
    negate,
    select,
)
from bn_jax.core.types import BatchStats, Moments, NumValues
from bn_jax.core.validation import (
    check_arrays,
    check_momentum,
    count_values,
    raise_value_error,
)


class BatchNormResult(NamedTuple):
    """Results of one application of Batch Normalization.

    Attributes:
        y: Normalized activations.
        batch_stats: New running statistics; None if the caller passed none.
        moments: Moments of the batch; None if no result needed them.
        num_values: Number of values that share a mean; None if `moments` is None.
    """

    y: Inexact[Array, "..."]
    batch_stats: BatchStats | None
    moments: Moments | None
    num_values: NumValues | None


def batch_norm_with_moments(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array] | None,
    config: BatchNormConfig,
    *,
    use_running_average: bool | Bool[Array, ""],
    update_running_average: bool | Bool[Array, ""] | None,
    momentum: float | Float[Array, ""] | None,
    mask: Bool[Array, "*#shape"] | None,
    on_single_value: Callable[[str], Any] = raise_value_error,
) -> BatchNormResult:
    """Returns the result of `batch_norm`, and the batch's moments.

    Args:
        x: Activations; integers are converted to float32.
        scale: Learned factor of each feature; None for 1.
        bias: Learned offset of each feature; None for 0.
        batch_stats: Running statistics; None if there are none.
        config: The static settings.
        use_running_average: True normalizes by `batch_stats`, False by the batch's
            own statistics. May be traced.
        update_running_average: True updates `batch_stats` with the batch; None for the
            opposite of `use_running_average`. May be traced.
        momentum: Fraction of the running statistics that one step keeps; None weights
            all batches equally. May be traced.
        mask: True at valid positions; None if all are valid.
        on_single_value: Called with a message if there is only one value per feature.
            The default raises ValueError. If the function returns, the batch is
            accepted: initialization with a single example needs that.

    Raises:
        ValueError: In all cases that `batch_norm` lists.
        NameError: If the batch's statistics may be needed and no pmap, shard_map or
            vmap binds `config.axis_name`.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    scale, bias = (p if p is None else jnp.asarray(p) for p in (scale, bias))
    config = config._replace(axis=canonical_axes(x.ndim, config.axis))
    check_groups_of_examples(config)
    check_arrays(x, scale, bias, batch_stats, mask, feature_axes=config.axis)
    check_momentum(momentum, batch_stats, config)
    stats = None if batch_stats is None else as_batch_stats(batch_stats)
    settings = make_settings(
        use_running_average, update_running_average, momentum, stats
    )
    devices, num_values = Devices(), None
    if settings.need_batch:
        devices = make_devices(config)
        num_values = count_values(x, config, devices)
        if mask is None and num_values.value == 1 and len(config.axis) < x.ndim:
            on_single_value(
                f"batch_norm: x of shape {x.shape} has one value per feature, so its "
                "variance is 0 and its normalized value is always 0. Train with more "
                "examples per batch or group (group_size), share statistics across "
                "devices (axis_name), or normalize by the running statistics "
                "(use_running_average=True)."
            )
    # `compute` takes all arrays as arguments, because an array in a closure would keep
    # its sharding on an explicit mesh.
    arrays = in_manual_context((x, scale, bias, stats, mask, settings.traced()))
    compute = partial(_compute, config, devices, settings)
    compute = with_automatic_sharding(compute, x, config.axis, stats, arrays[1:])
    y, stats, moments = compute(*arrays)
    return BatchNormResult(y, stats, moments, num_values)


def _compute(
    config: BatchNormConfig,
    devices: Devices,
    settings: TracedSettings,
    x: Array,
    scale: Array | None,
    bias: Array | None,
    stats: BatchStats | None,
    mask: Array | None,
    traced: Mapping[str, Array],
) -> tuple[Array, BatchStats | None, Moments | None]:
    """Computes y, the new statistics and the moments from checked arguments."""
    by_running, updates, updates_follow, momentum = settings._replace(**traced)
    if mask is not None:
        mask = jnp.array(mask, bool, ndmin=x.ndim)
        # Masked positions become 0 before any arithmetic. Multiplying them by 0 later
        # would keep a NaN, in the value or in the derivative.
        x = _zero_where_masked(x, mask)
    y, moments, params = x, None, {"scale": scale, "bias": bias}
    if stats is not None and by_running is not False:
        given, running, affine = differentiable_if(by_running, (x, stats, params))
        y = _normalize_by_running(
            given, running["mean"], running["var"], config, **affine
        )
    if settings.need_batch:
        normalize_batch = partial(
            normalize_by_batch_or_group, mask=mask, config=config, devices=devices
        )
        by_batch, x = negate(by_running), as_stored(x)
        y_by_batch, moments = normalize_batch(
            *differentiable_if(by_batch, (x, scale, bias))
        )
        y = select(by_running, y, y_by_batch)
        if not updates_follow and by_batch is not True:
            # The two flags are independent here, so the statistics may need derivatives
            # where y does not. `differentiable_if` has removed those from the moments
            # above, so the moments are computed again.
            _, moments = normalize_batch(x, None, None)
    if moments is not None and stats is not None:
        updated = update_batch_stats(stats, moments, config, momentum=momentum)
        stats = stats | {
            name: select(updates, value, stats[name]) for name, value in updated.items()
        }
    if mask is not None:
        y = _zero_where_masked(y, mask)
    return y, stats, moments


# `jax.checkpoint`: JAX would otherwise save a float32 copy of x for the backward pass.
_normalize_by_running = jax.checkpoint(normalize, prevent_cse=False, static_argnums=3)


# `jax.checkpoint`: JAX would otherwise save zeros of x's size for the backward pass.
@partial(jax.checkpoint, prevent_cse=False)
def _zero_where_masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))
