"""Standardization by given statistics, then scale and bias."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from bn_jax.core.axes import expand_to_rank
from bn_jax.core.config import BatchNormConfig
from bn_jax.core.dtypes import wide_dtype


def normalize(
    x: Inexact[Array, "*shape"],
    mean: Inexact[Array, "*features"],
    var: Float[Array, "*features"],
    config: BatchNormConfig,
    *,
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    offset: Inexact[Array, "*features"] | None = None,
) -> Inexact[Array, "*shape"]:
    """Returns `(x - mean) / sqrt(var + epsilon) * scale + bias` for each feature.

    The mean is subtracted before any multiplication, because the folded form
    `x * a + b` would lose digits where the mean is large.
    Source: Ioffe & Szegedy (2015), Algorithm 1, the last two lines.

    Args:
        x: Activations.
        mean: Mean of each feature.
        var: Variance of each feature.
        config: Canonical feature axes and epsilon.
        scale: Learned factor of each feature, gamma in the paper; None for 1.
        bias: Learned offset of each feature, beta in the paper; None for 0.
        offset: Number to add to `mean`, with the digits that do not fit into it; None
            for 0.

    Returns:
        Array of x's shape and dtype; the arithmetic is in float32 or wider.
    """
    wide = wide_dtype(x.dtype)

    def expand(values: Array) -> Array:
        return expand_to_rank(values.astype(wide), config.axis, x.ndim)

    multiplier = jax.lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + config.epsilon)
    y = x.astype(wide) - expand(mean)
    if offset is not None:
        y = y - expand(offset)
    if scale is not None:
        multiplier = multiplier * scale.astype(wide)
    y = y * expand(multiplier)
    if bias is not None:
        y = y + expand(bias)
    return y.astype(x.dtype)
