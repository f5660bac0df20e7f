"""Running statistics that devices kept apart, pooled into one."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from bn_jax.core.merge import merge_moments
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

    >>> kept = {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.array([[1.0], [1.0]])}
    >>> merge_batch_stats(kept)["var"]
    Array([2.], dtype=float32)
    """
    if axis_name is not None:
        batch_stats = jax.lax.all_gather(batch_stats, axis_name)
    return _merge(batch_stats)


def _merge(node: Any) -> Any:
    if not hasattr(node, "items"):
        raise ValueError(
            "merge_batch_stats: expected a batch_stats collection, whose layers hold "
            f"'mean' and 'var'; found {type(node).__name__} in the place of a layer."
        )
    if not {"mean", "var"} <= set(node):
        return {name: _merge(child) for name, child in node.items()}
    if set(node) - {"mean", "var", "count"}:
        raise ValueError(
            "merge_batch_stats: a layer's statistics are 'mean', 'var' and 'count'; "
            f"found {sorted(node)}."
        )
    mean, var = node["mean"], node["var"]
    merged = merge_moments(Moments(jnp.ones_like(var), mean, var))
    pooled: BatchStats = {"mean": merged.mean, "var": merged.var}
    if "count" in node:
        pooled["count"] = jnp.mean(node["count"], axis=0)
    return jax.tree.map(_as_before, pooled, dict(node))


def _as_before(new: Array, old: Array) -> Array:
    return new.astype(old.dtype)
