"""What running statistics let one expect of a batch."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.flags import all_hold
from bn_jax.core.types import Guess


def guess_from(batch_stats: Mapping[str, Array]) -> Guess:
    """The running mean, and whether it lies near 0 in all features.

    It does within one running standard deviation: a sum of squares is at most twice
    that around the mean there.

    Args:
        batch_stats: Running `mean` and `var` of each feature. Where one of them is not
            finite, neither is it near 0.
    """
    mean, var = batch_stats["mean"], batch_stats["var"]
    wide = wide_dtype(mean.dtype, var.dtype)
    deviation = jnp.sqrt(jnp.maximum(var.astype(jnp.finfo(wide).dtype), 0))
    is_near = (jnp.abs(mean.astype(wide)) <= deviation) & jnp.isfinite(deviation)
    return Guess(mean, all_hold(is_near))
