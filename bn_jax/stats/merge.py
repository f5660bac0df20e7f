"""Running statistics that devices kept apart, pooled into one."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bn_jax.core.devices import check_bound
from bn_jax.core.merge import merge_moments
from bn_jax.core.sums import abs_squared
from bn_jax.core.types import BatchStats, Moments


def merge_batch_stats(
    batch_stats: PyTree, *, axis_name: str | tuple[str, ...] | None = None
) -> PyTree:
    """Statistics of all devices' examples, from those that each device kept.

    The pooled variance is the mean of the variances plus the variance of the means;
    averaging the variances alone, as a `pmean` of the collection does, loses the
    second part. Devices have equal weight.
    Source: Chan, Golub & LeVeque (1983), Eq. 2.1.

    Args:
        batch_stats: A `batch_stats` collection with a leading axis of devices, as
            pmap returns it; without one where `axis_name` is given.
        axis_name: Mapped axis to pool over, for use inside pmap, shard_map or vmap.

    Returns:
        The collection without the axis of devices, the same on all of them; a
        `count` is averaged.

    Raises:
        ValueError: If the tree holds something else than `mean`, `var` and `count`.
        NameError: If an axis is not mapped.

    >>> kept = {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.array([[1.0], [1.0]])}
    >>> merge_batch_stats(kept)["var"]
    Array([2.], dtype=float32)
    """
    if axis_name is None:
        return _merge(batch_stats, _pool_leading)
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    check_bound("merge_batch_stats", names)
    return _merge(batch_stats, partial(_pool_mapped, axis_name=axis_name))


def _merge(node: Any, pool: Callable[[Mapping[str, Array]], BatchStats]) -> Any:
    if not hasattr(node, "items"):
        raise ValueError(
            "merge_batch_stats: expected a batch_stats collection, whose layers hold "
            f"'mean' and 'var'; found {type(node).__name__} in the place of a layer."
        )
    if not {"mean", "var"} <= set(node):
        return {name: _merge(child, pool) for name, child in node.items()}
    if set(node) - {"mean", "var", "count"}:
        raise ValueError(
            "merge_batch_stats: a layer's statistics are 'mean', 'var' and 'count'; "
            f"found {sorted(node)}."
        )
    return {name: new.astype(node[name].dtype) for name, new in pool(node).items()}


def _pool_leading(stats: Mapping[str, Array]) -> BatchStats:
    mean, var = stats["mean"], stats["var"]
    merged = merge_moments(Moments(jnp.ones_like(var), mean, var))
    pooled = {"mean": merged.mean, "var": merged.var}
    if "count" in stats:
        pooled["count"] = jnp.mean(stats["count"], axis=0)
    return pooled


def _pool_mapped(
    stats: Mapping[str, Array], *, axis_name: str | tuple[str, ...]
) -> BatchStats:
    """The same by means over the axis, which are known to be alike on all devices."""
    average = partial(jax.lax.pmean, axis_name=axis_name)
    # Rounded where it is large; the differences from it are not.
    reference = average(stats["mean"])
    difference = stats["mean"] - reference
    offset = average(difference)
    var = average(stats["var"] + abs_squared(difference - offset))
    pooled = {"mean": reference + offset, "var": var}
    if "count" in stats:
        pooled["count"] = average(stats["count"])
    return pooled
