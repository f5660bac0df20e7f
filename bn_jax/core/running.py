"""Running statistics: the moving average, and the correction of the variance."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.types import BatchStats, Moments


def update_batch_stats(
    batch_stats: Mapping[str, Array], moments: Moments, *, momentum: float
) -> BatchStats:
    """One step of the exponential moving average of mean and biased variance.

    The paper mentions moving averages for tracking a model while it trains (section
    3.1) and leaves the rate open.

    Args:
        batch_stats: Running `mean` and `var` before the step.
        moments: Moments of the batch.
        momentum: Fraction of the old value that is kept: 0.99 is slow, 0 forgets.

    Returns:
        Running `mean` and `var` in the dtypes they had (the mean turns complex when
        the batch is). Features without a value in the batch keep theirs.
    """
    has_values = moments.num_samples > 0

    def step(old: Array, new: Array) -> Array:
        dtype = old.dtype
        if jnp.iscomplexobj(new):
            dtype = jnp.promote_types(dtype, jnp.complex64)
        old = old.astype(jnp.promote_types(dtype, new.dtype))
        average = momentum * old + (1 - momentum) * new.astype(old.dtype)
        return jnp.where(has_values, average, old).astype(dtype)

    return BatchStats(
        mean=step(batch_stats["mean"], moments.mean),
        var=step(batch_stats["var"], moments.var),
    )


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
