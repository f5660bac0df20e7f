"""Batch counts for running statistics that were saved without them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from bn_jax.core.running import LARGEST_COUNT, as_batch_stats


def with_counts(
    batch_stats: Mapping[str, Any], like: Mapping[str, Any], *, count: float
) -> dict[str, Any]:
    """Returns a `batch_stats` collection with its missing batch counts added.

    Flax does not store the number of batches behind its running statistics. A layer
    with `debias=True` or `momentum=None` accepts such a collection, but returns one
    with a `count`. The structure of the tree then changes: `jax.lax.scan` rejects a
    carry whose structure changes, and `jax.jit` compiles a second time.

    Args:
        batch_stats: The collection; counts that it already has are kept.
        like: The collection that `model.init` returns, as arrays or as shapes (under
            `jax.eval_shape`).
        count: Number of batches behind the statistics. For `debias=True` give infinity,
            stored as 2**24: trained statistics have long forgotten their initial
            values. For `momentum=None` give 0, which starts a new average: after a
            large count, new batches would have almost no weight.

    Returns:
        The collection. Layers without a `count` in `like` get none.

    Raises:
        ValueError: If a layer of the collection is not in `like`.

    >>> trained = {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    >>> like = {"norm": trained["norm"] | {"count": jnp.zeros(())}}
    >>> with_counts(trained, like, count=jnp.inf)["norm"]["count"]
    Array(1.6777216e+07, dtype=float32)
    """
    if not hasattr(like, "items"):
        raise ValueError(
            "with_counts: like must be the batch_stats that model.init returns for "
            f"the same model, but it has {type(like).__name__} where the collection "
            f"has {sorted(batch_stats)}."
        )
    unknown = set(batch_stats) - set(like)
    if unknown:
        raise ValueError(
            "with_counts: like must be the batch_stats that model.init returns for "
            f"the same model, but it lacks {sorted(unknown)} and has {sorted(like)}."
        )
    completed: dict[str, Any] = {
        name: with_counts(child, like[name], count=count)
        if hasattr(child, "items")
        else child
        for name, child in batch_stats.items()
    }
    if "mean" in completed and "count" in like and "count" not in completed:
        needed = like["count"]
        finite = min(count, LARGEST_COUNT)
        completed["count"] = jnp.full(needed.shape, finite, needed.dtype)
    elif "mean" in completed and "count" in completed:
        completed |= as_batch_stats({"count": completed["count"]})
    return completed
