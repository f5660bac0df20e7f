"""Statistics that come without the number of batches behind them, completed."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from bn_jax.core.running import LARGEST_COUNT, as_batch_stats


def with_counts(batch_stats: PyTree, like: PyTree, *, count: float) -> PyTree:
    """Returns the collection with the counts that a model's layers need and it lacks.

    Flax keeps no count of the batches behind its statistics. A layer with
    `debias=True` or `momentum=None` takes such a collection in a call as it is, but
    returns one with a `count` in it, a tree of another structure than it was given:
    `jax.lax.scan` refuses that of its carry, and `jax.jit` compiles once more.

    Args:
        batch_stats: The collection; counts that it has are kept.
        like: The collection as `model.init` makes it, arrays or their shapes (under
            `jax.eval_shape`).
        count: Number of batches that the statistics stand for: infinity, which is kept
            as 2**24, for a bias-corrected average, whose initial values are long
            forgotten; 0 to start a cumulative one (momentum=None) anew, which a large
            count would stop.

    Returns:
        The collection; layers that have no count in `like` are as they were.

    Raises:
        ValueError: If a layer of the collection is not in `like`.

    >>> trained = {"norm": {"mean": jnp.zeros(2), "var": jnp.ones(2)}}
    >>> like = {"norm": trained["norm"] | {"count": jnp.zeros(())}}
    >>> with_counts(trained, like, count=jnp.inf)["norm"]["count"]
    Array(1.6777216e+07, dtype=float32)
    """
    if not hasattr(batch_stats, "items"):
        return batch_stats
    if not hasattr(like, "items"):
        raise ValueError(
            "with_counts: like must be the batch_stats of the same model, as "
            f"model.init makes them; it has {type(like).__name__} where the collection "
            f"has {sorted(batch_stats)}."
        )
    unknown = set(batch_stats) - set(like)
    if unknown:
        raise ValueError(
            "with_counts: like must be the batch_stats of the same model, as "
            f"model.init makes them; it lacks {sorted(unknown)} and has {sorted(like)}."
        )
    completed: dict[str, Any] = {
        name: with_counts(child, like[name], count=count)
        for name, child in batch_stats.items()
    }
    if "mean" in completed and "count" in like and "count" not in completed:
        needed = like["count"]
        finite = min(count, LARGEST_COUNT)
        completed["count"] = jnp.full(needed.shape, finite, needed.dtype)
    elif "mean" in completed and "count" in completed:
        completed |= as_batch_stats({"count": completed["count"]})
    return completed
