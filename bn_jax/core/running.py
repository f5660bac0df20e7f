"""Running statistics: moving and cumulative averages, and the variance's correction."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.config import BatchNormConfig
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.types import BatchStats, Moments

# A float32 counts no further. Statistics with this count have long forgotten their
# initial values, and unlike infinity it can be averaged and saved.
LARGEST_COUNT = 2.0**24


def update_batch_stats(
    batch_stats: Mapping[str, Array],
    moments: Moments,
    config: BatchNormConfig,
    *,
    momentum: float | Float[Array, ""] | None,
) -> BatchStats:
    """Returns the running statistics after one more batch.

    The paper mentions moving averages for tracking a model while it trains (section
    3.1) and leaves the rate open. With `debias`, step t of the moving average gives
    the new batch the weight (1 - momentum) / (1 - momentum^t): the first batch
    replaces the initial values, and at any step the average is the one that Adam's
    bias correction would make.
    Source: Kingma & Ba (2015), section 3, for the correction.

    Args:
        batch_stats: Running `mean` and `var`, and `count`, the number of batches
            before this one, where `debias` or `momentum=None` needs it.
        moments: Moments of the batch.
        config: The settings `variance_correction`, `debias` and `skip_nonfinite`.
        momentum: Fraction of the old value that is kept: 0.99 is slow, 0 forgets.
            None for the cumulative average, of all batches alike.

    Returns:
        New statistics in the dtypes they had, in float32 at least: in fewer bits they
        would stall (the mean turns complex when the batch is). Features without a
        value in the batch keep theirs.
    """
    var = unbiased_variance(moments) if config.variance_correction else moments.var
    counts = moments.num_samples > 0
    if config.skip_nonfinite:
        counts &= jnp.all(jnp.isfinite(moments.mean) & jnp.isfinite(var))
    weight = _weight(batch_stats, momentum=momentum, debias=config.debias)

    def step(old: Array, new: Array) -> Array:
        wide = wide_dtype(old.dtype, new.dtype)
        dtype = wide if jnp.iscomplexobj(new) else wide_dtype(old.dtype)
        old, new = old.astype(wide), new.astype(wide)
        part = weight
        if isinstance(weight, Array):
            part = weight.astype(jnp.finfo(wide).dtype)
        average = (1 - part) * old + part * new
        return jnp.where(counts, average, old).astype(dtype)

    updated = {
        "mean": step(batch_stats["mean"], moments.mean),
        "var": step(batch_stats["var"], var),
    }
    if "count" in batch_stats:
        count = batch_stats["count"]
        updated["count"] = jnp.where(jnp.any(counts), count + 1, count)
    return updated


def as_batch_stats(batch_stats: Mapping[str, Array]) -> BatchStats:
    """Returns the statistics as arrays, with a `count` of at most `LARGEST_COUNT`.

    Args:
        batch_stats: Running statistics, with a count or without one. A count of
            infinity stands for statistics that have forgotten their initial values.
    """
    stats = {name: jnp.asarray(value) for name, value in batch_stats.items()}
    if "count" in stats and jnp.issubdtype(stats["count"].dtype, jnp.floating):
        count = stats["count"].astype(wide_dtype(stats["count"].dtype))
        stats["count"] = jnp.minimum(count, LARGEST_COUNT)
    return stats


def unbiased_variance(moments: Moments) -> Float[Array, "*features"]:
    """Returns the variance times m / (m - 1), for m values: an unbiased estimate.

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 10.

    Args:
        moments: Moments with the biased variance.

    Returns:
        Array of the variance's shape and dtype. Where m is below 2 no unbiased
        estimate exists, and the biased variance stays as it is.
    """
    num_samples = moments.num_samples
    correction = num_samples / jnp.maximum(num_samples - 1, 1)
    return jnp.where(num_samples > 1, moments.var * correction, moments.var)


def _weight(
    batch_stats: Mapping[str, Array],
    *,
    momentum: float | Float[Array, ""] | None,
    debias: bool,
) -> float | Array:
    """Returns the weight of the new batch, against everything before it."""
    if momentum is not None and not debias:
        return 1 - momentum
    steps = batch_stats["count"] + 1
    if momentum is None:
        return 1 / steps
    # The denominator is 1 - momentum^steps, without cancelling in the first steps. A
    # momentum of 0 has no logarithm, and forgets everything in one step.
    forgets = momentum == 0
    kept = jnp.where(forgets, -0.5, momentum - 1)
    weight = kept / jnp.expm1(steps * jnp.log1p(kept))
    return jnp.where(forgets, 1.0, weight)
