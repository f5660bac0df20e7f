"""Standardization by given statistics, then scale and shift."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from bn_jax.core.axes import expand_to_rank


def normalize(
    x: Inexact[Array, "*shape"],
    mean: Inexact[Array, "*features"],
    var: Float[Array, "*features"],
    *,
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    feature_axes: Sequence[int],
    epsilon: float,
) -> Inexact[Array, "*shape"]:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, feature by feature.

    The mean is subtracted before anything is multiplied: the folded form
    `x * a + b` would cancel where the mean is large.
    Source: Ioffe & Szegedy (2015), Algorithm 1, the last two lines.

    Args:
        x: Activations.
        mean: Mean of each feature.
        var: Variance of each feature.
        scale: Learned factor of each feature, gamma in the paper; None for 1.
        bias: Learned offset of each feature, beta in the paper; None for 0.
        feature_axes: Canonical axes of x that hold the features.
        epsilon: Added to the variance, inside the root.

    Returns:
        Array of x's shape and dtype; the arithmetic is in float32 or wider.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def expand(feature_values: Array) -> Array:
        return expand_to_rank(feature_values.astype(wide), feature_axes, x.ndim)

    multiplier = jax.lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + epsilon)
    if scale is not None:
        multiplier = multiplier * scale.astype(wide)
    y = (x.astype(wide) - expand(mean)) * expand(multiplier)
    if bias is not None:
        y = y + expand(bias)
    return y.astype(x.dtype)
