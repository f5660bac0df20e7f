"""Moments of the parts of a batch, merged exactly into those of the whole."""

import jax.numpy as jnp

from bn_jax.core.sums import abs_squared
from bn_jax.core.types import Moments


def merge_moments(moments: Moments) -> Moments:
    """Moments of all parts together.

    The variance of the whole is the mean of the parts' variances plus the variance
    of their means, both weighted by the numbers of values. Means are merged as
    differences from the first part's, so that a large one does not cancel.
    Source: Chan, Golub & LeVeque (1983), Eq. 2.1.

    Args:
        moments: Moments with a leading axis of parts.

    Returns:
        Moments without it; a part without values adds nothing.
    """
    num_samples = jnp.sum(moments.num_samples, axis=0)
    divisor = jnp.maximum(num_samples, 1)
    reference = moments.mean[0]
    # A part without values has a mean of 0, which may be far from the others.
    weights = moments.num_samples / divisor[None]
    differences = moments.mean - reference[None]
    offset = jnp.sum(weights * differences, axis=0)
    spread = moments.var + abs_squared(differences - offset[None])
    var = jnp.sum(weights * spread, axis=0)
    return Moments(num_samples, reference + offset, var)
