"""Standardization by given statistics, then scale and shift."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from bn_jax.core.axes import expand_to_rank
from bn_jax.core.dtypes import wide_dtype


def normalize(
    x: Inexact[Array, "*shape"],
    mean: Inexact[Array, "*moments"],
    var: Float[Array, "*moments"],
    *,
    offset: Inexact[Array, "*moments"] | None = None,
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    moment_axes: Sequence[int],
    feature_axes: Sequence[int],
    epsilon: float,
) -> Inexact[Array, "*shape"]:
    """`(x - mean) / sqrt(var + epsilon) * scale + bias`, feature by feature.

    The mean is subtracted before anything is multiplied: the folded form
    `x * a + b` would cancel where the mean is large.
    Source: Ioffe & Szegedy (2015), Algorithm 1, the last two lines.

    Args:
        x: Activations.
        mean: Mean of each feature, or of each feature in each group of examples.
        var: Variance likewise.
        offset: What the mean is beyond `mean`, with the digits that one number has no
            room for; None for 0.
        scale: Learned factor of each feature, gamma in the paper; None for 1.
        bias: Learned offset of each feature, beta in the paper; None for 0.
        moment_axes: Canonical axes of x that mean and variance have.
        feature_axes: Canonical axes of x that scale and bias have.
        epsilon: Added to the variance, inside the root.

    Returns:
        Array of x's shape and dtype; the arithmetic is in float32 or wider.
    """
    wide = wide_dtype(x.dtype)
    inv_std = jax.lax.rsqrt(var.astype(jnp.finfo(wide).dtype) + epsilon)
    y = x.astype(wide) - expand_to_rank(mean.astype(wide), moment_axes, x.ndim)
    if offset is not None:
        y = y - expand_to_rank(offset.astype(wide), moment_axes, x.ndim)
    multiplier = expand_to_rank(inv_std, moment_axes, x.ndim)
    if scale is not None:
        expanded = expand_to_rank(scale.astype(wide), feature_axes, x.ndim)
        multiplier = multiplier * expanded
    y = y * multiplier
    if bias is not None:
        y = y + expand_to_rank(bias.astype(wide), feature_axes, x.ndim)
    return y.astype(x.dtype)
