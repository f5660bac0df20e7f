"""Statistics that come without the number of batches behind them, completed."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree


def with_counts(
    batch_stats: PyTree, like: PyTree, *, count: float = float("inf")
) -> PyTree:
    """A collection with the counts that a model's layers need and the collection lacks.

    Flax keeps no count of the batches behind its statistics. A layer with
    `debias=True` or `momentum=None` takes such a collection in a call as it is, but
    returns one with a `count` in it, a tree of another structure than it was given:
    `jax.lax.scan` refuses that of its carry, and `jax.jit` compiles once more.

    Args:
        batch_stats: The collection; counts that it has are kept.
        like: The collection as `model.init` makes it, arrays or their shapes (under
            `jax.eval_shape`).
        count: How many batches the statistics stand for. By default they count as
            far advanced, for a bias-corrected average; 0 starts a cumulative one
            (momentum=None) anew.

    Returns:
        The collection; layers that have no count in `like` are as they were.

    >>> trained = {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    >>> like = {"norm": trained["norm"] | {"count": jnp.zeros(())}}
    >>> with_counts(trained, like)["norm"]["count"]
    Array(inf, dtype=float32)
    """
    if not hasattr(batch_stats, "items"):
        return batch_stats
    completed: dict[str, Any] = {
        name: with_counts(child, like.get(name, {}), count=count)
        for name, child in batch_stats.items()
    }
    if "mean" in completed and "count" in like and "count" not in completed:
        needed = like["count"]
        completed["count"] = jnp.full(needed.shape, count, needed.dtype)
    return completed
