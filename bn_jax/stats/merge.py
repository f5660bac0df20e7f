"""Pooling of running statistics that each device kept for its own examples."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bn_jax.core.collectives import Devices, mapped_devices
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.moments import merge_across
from bn_jax.core.running import as_batch_stats
from bn_jax.core.types import BatchStats, ShiftedMoments

# Name under which vmap maps a leading axis of devices.
_DEVICES = "bn_jax devices"


def merge_batch_stats(
    batch_stats: Mapping[str, Any], *, axis_name: str | tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Pools the running statistics that each device kept into those of all examples.

    The pooled variance is the mean of the variances plus the variance of the means. An
    average of the variances alone, such as a `pmean` of the collection, loses the
    second term. All devices have equal weight.
    Source: Chan, Golub & LeVeque (1983), Eq. 2.1.

    Args:
        batch_stats: A `batch_stats` collection with a leading axis of devices, as
            `pmap` returns it; without that axis if `axis_name` is given.
        axis_name: Mapped axis or axes to pool over, for use inside pmap, shard_map or
            vmap.

    Returns:
        The collection without the axis of devices, equal on all devices. A `count` is
        averaged over the devices.

    Raises:
        ValueError: If the tree is not a `batch_stats` collection, or a layer holds
            anything but `mean`, `var` and `count`.
        NameError: If no pmap, shard_map or vmap around the call has the axis.

    >>> kept = {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.array([[1.0], [1.0]])}
    >>> merge_batch_stats(kept)["var"]
    Array([2.], dtype=float32)
    """
    if axis_name is None:
        return _merge(batch_stats, _pool_leading)
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    devices = mapped_devices("merge_batch_stats", names)
    return _merge(batch_stats, partial(_pool, devices=devices))


def _merge(node: Any, pool: Callable[[Mapping[str, Array]], BatchStats]) -> Any:
    if not hasattr(node, "items"):
        raise ValueError(
            "merge_batch_stats: expected a batch_stats collection, whose layers hold "
            f"'mean' and 'var'; found {type(node).__name__} instead of a layer."
        )
    if not {"mean", "var"} <= set(node):
        return {name: _merge(child, pool) for name, child in node.items()}
    if set(node) - {"mean", "var", "count"}:
        raise ValueError(
            "merge_batch_stats: a layer may hold 'mean', 'var' and 'count' only; "
            f"found {sorted(node)}."
        )
    stats = as_batch_stats(node)
    # Half precision has too few digits, and float16 too small a range, for the sums.
    wide = {name: kept.astype(wide_dtype(kept.dtype)) for name, kept in stats.items()}
    return {name: new.astype(stats[name].dtype) for name, new in pool(wide).items()}


def _pool_leading(stats: Mapping[str, Array]) -> BatchStats:
    """Pools along the leading axis, which vmap turns into a mapped axis."""

    def pool(stats: Mapping[str, Array]) -> BatchStats:
        return _pool(stats, devices=mapped_devices("merge_batch_stats", [_DEVICES]))

    return jax.vmap(pool, axis_name=_DEVICES, out_axes=None)(stats)


def _pool(stats: Mapping[str, Array], *, devices: Devices) -> BatchStats:
    mean, var = stats["mean"], stats["var"]
    kept = ShiftedMoments(jnp.ones_like(var), mean, jnp.zeros_like(mean), var)
    merged = merge_across(devices, kept)
    pooled = {"mean": merged.mean, "var": merged.var}
    if "count" in stats:
        pooled["count"] = jax.lax.pmean(stats["count"], devices.axis_names)
    return pooled
