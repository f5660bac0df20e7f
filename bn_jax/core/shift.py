"""What is subtracted from the values of a feature before they are added up."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bn_jax.core.sums import abs_squared


def shift_for(batch_stats: Mapping[str, Array]) -> Inexact[Array, "*features"]:
    """The running mean; 0 for features that lie so near 0 that they need no shift.

    Within a standard deviation of the mean a sum of squares is at most twice that
    around the mean itself, and loses a bit beside it. An input that is nearly always
    zero, and so in most batches always, equals its shift there.

    Args:
        batch_stats: Running `mean` and `var` of each feature. A mean that is not
            finite is no shift either.
    """
    mean = batch_stats["mean"]
    is_near = abs_squared(mean) <= batch_stats["var"]
    return jnp.where(is_near | ~jnp.isfinite(mean), jnp.zeros((), mean.dtype), mean)
