"""Running statistics: moving and cumulative averages, and the variance's correction."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.types import BatchStats, Moments


def update_batch_stats(
    batch_stats: Mapping[str, Array],
    moments: Moments,
    *,
    momentum: float | Float[Array, ""] | None,
    variance_correction: int = 0,
    debias: bool = False,
    skip_nonfinite: bool = False,
) -> BatchStats:
    """One step of the average of mean and variance over batches.

    The paper mentions moving averages for tracking a model while it trains (section
    3.1) and leaves the rate open. With `debias`, step t of the moving average gives
    the new batch the weight (1 - momentum) / (1 - momentum^t): the first batch
    replaces the initial values, and what is kept is at any time the average that
    Adam's bias correction would make of it.
    Source: Kingma & Ba (2015), section 3, for the correction.

    Args:
        batch_stats: Running `mean` and `var`, and `count`, the number of batches
            before this one, where `debias` or `momentum=None` needs it.
        moments: Moments of the batch.
        momentum: Fraction of the old value that is kept: 0.99 is slow, 0 forgets.
            None for the cumulative average, of all batches alike.
        variance_correction: 0 averages the biased variance, 1 the unbiased one.
        debias: Whether the initial values are forgotten at the first batch.
        skip_nonfinite: Whether a batch whose mean or variance is not finite in any
            feature leaves the statistics alone.

    Returns:
        New statistics in the dtypes they had, in float32 at least: in fewer bits they
        would stall (the mean turns complex when the batch is). Features without a
        value in the batch keep theirs.
    """
    var = unbiased_variance(moments) if variance_correction else moments.var
    counts = moments.num_samples > 0
    if skip_nonfinite:
        counts &= jnp.all(jnp.isfinite(moments.mean) & jnp.isfinite(var))
    weight = _weight(batch_stats, momentum=momentum, debias=debias)

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


def unbiased_variance(moments: Moments) -> Float[Array, "*features"]:
    """The variance times m / (m - 1), for m values: an unbiased estimate.

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
    """How much the new batch counts, against everything before it."""
    if momentum is not None and not debias:
        return 1 - momentum
    steps = batch_stats["count"] + 1
    if momentum is None:
        return 1 / steps
    # The denominator is 1 - momentum^steps, without cancelling in the first steps.
    return (momentum - 1) / jnp.expm1(steps * jnp.log1p(momentum - 1))
