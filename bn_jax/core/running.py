"""Running statistics: exponential and cumulative averages, variance correction."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.config import BatchNormConfig
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.types import BatchStats, Moments

# A float32 cannot count further. Statistics with this count have long forgotten their
# initial values. Unlike infinity, the number can be averaged and saved.
LARGEST_COUNT = 2.0**24


def update_batch_stats(
    batch_stats: Mapping[str, Array],
    moments: Moments,
    config: BatchNormConfig,
    *,
    momentum: float | Float[Array, ""] | None,
) -> BatchStats:
    """Returns the running statistics after one more batch.

    The paper suggests moving averages to track a model while it trains (section 3.1),
    but gives no rate. With `debias`, step t gives the new batch the weight
    (1 - momentum) / (1 - momentum^t). The first batch then replaces the initial values,
    and after every step the average equals Adam's bias-corrected average.
    Source: Kingma & Ba (2015), section 3, for the correction.

    Args:
        batch_stats: Running `mean` and `var`. With `debias` or `momentum=None` also
            `count`, the number of batches before this one.
        moments: Moments of the batch.
        config: Settings `variance_correction`, `debias` and `skip_nonfinite`.
        momentum: Fraction of the old value that is kept: 0.99 is slow, 0 keeps nothing.
            None for the cumulative average, which weights all batches equally.

    Returns:
        New statistics in their old dtypes, but at least float32, because fewer bits
        would round small updates away. The mean becomes complex if the batch is
        complex. Features without a valid value in the batch keep their statistics.
    """
    var = unbiased_variance(moments) if config.variance_correction else moments.var
    is_used = moments.num_samples > 0
    if config.skip_nonfinite:
        is_used &= jnp.all(jnp.isfinite(moments.mean) & jnp.isfinite(var))
    weight = _weight(batch_stats, momentum=momentum, debias=config.debias)

    def step(old: Array, new: Array) -> Array:
        wide = wide_dtype(old.dtype, new.dtype)
        dtype = wide if jnp.iscomplexobj(new) else wide_dtype(old.dtype)
        old, new = old.astype(wide), new.astype(wide)
        fraction = weight
        if isinstance(weight, Array):
            fraction = weight.astype(jnp.finfo(wide).dtype)
        average = (1 - fraction) * old + fraction * new
        return jnp.where(is_used, average, old).astype(dtype)

    updated = {
        "mean": step(batch_stats["mean"], moments.mean),
        "var": step(batch_stats["var"], var),
    }
    if "count" in batch_stats:
        count = batch_stats["count"]
        updated["count"] = jnp.where(jnp.any(is_used), count + 1, count)
    return updated


def as_batch_stats(batch_stats: Mapping[str, Array]) -> BatchStats:
    """Returns the statistics as arrays, with a `count` of at most `LARGEST_COUNT`.

    Args:
        batch_stats: Running statistics, with or without a count. An infinite count
            means that they have forgotten their initial values.
    """
    stats = {name: jnp.asarray(value) for name, value in batch_stats.items()}
    if "count" in stats and jnp.issubdtype(stats["count"].dtype, jnp.floating):
        count = stats["count"].astype(wide_dtype(stats["count"].dtype))
        stats["count"] = jnp.minimum(count, LARGEST_COUNT)
    return stats


def unbiased_variance(moments: Moments) -> Float[Array, "*features"]:
    """Returns the unbiased variance: m / (m - 1) times the biased one, for m values.

    Source: Ioffe & Szegedy (2015), Algorithm 2, line 10.

    Args:
        moments: Moments with the biased variance.

    Returns:
        Array of the variance's shape and dtype. If m is below 2, no unbiased estimate
        exists, and the result is the biased variance.
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
    """Returns the new batch's weight, in [0, 1]; the old statistics get the rest."""
    if momentum is not None and not debias:
        return 1 - momentum
    steps = batch_stats["count"] + 1
    if momentum is None:
        return 1 / steps
    # (1 - momentum) / (1 - momentum^steps), where `expm1` keeps the digits that the
    # subtraction would lose in the first steps. A momentum of 0 has no logarithm, and
    # gives the new batch all the weight.
    keeps_nothing = momentum == 0
    momentum_minus_1 = jnp.where(keeps_nothing, -0.5, momentum - 1)
    weight = momentum_minus_1 / jnp.expm1(steps * jnp.log1p(momentum_minus_1))
    return jnp.where(keeps_nothing, 1.0, weight)
