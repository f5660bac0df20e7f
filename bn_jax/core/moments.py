"""Number of values, mean and variance of each feature of a batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import canonical_axes, expand_to_rank, other_axes
from bn_jax.core.types import Moments


def batch_moments(
    x: Inexact[Array, "*shape"],
    *,
    axis: int | Sequence[int] = -1,
    mask: Bool[Array, "*#shape"] | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
) -> Moments:
    """Mean and biased variance of each feature, over every other axis.

    Two passes: the first finds the mean, the second sums the deviations from it and
    their squares. `E[x^2] - E[x]^2` would save a pass, and cancel when the mean is
    large. The sum of the deviations is zero but for rounding; adding it back corrects
    the mean, and the variance, to the last bits. The first mean is a constant for the
    derivative, because neither result depends on it.
    Source: Ioffe & Szegedy (2015), Algorithm 1; Chan, Golub & LeVeque (1983), Eq. 1.7.

    Args:
        x: Activations.
        axis: Feature axis or axes; the others are averaged over.
        mask: True at the positions that count; all of them by default.
        axis_name: Mapped axis or axes to reduce over as well (synchronized BN).
            Sums and counts are added up across devices, so that devices may hold
            different numbers of valid positions, or none.
        axis_index_groups: Groups of devices within that axis that share moments.

    Returns:
        Moments of the shape of the feature axes, in float32 or wider. With no value
        to average (an empty batch, or a mask that leaves nothing) all three are 0.

    Raises:
        ValueError: If an axis does not exist in x.

    >>> batch_moments(jnp.array([[1.0, 2.0], [3.0, 6.0]])).var
    Array([1., 4.], dtype=float32)
    """
    feature_axes = canonical_axes(x.ndim, axis)
    reduction_axes = other_axes(x.ndim, feature_axes)
    x = zero_where_masked(x.astype(jnp.promote_types(x.dtype, jnp.float32)), mask)

    def across_devices(sums: tuple[Array, Array]) -> tuple[Array, Array]:
        if axis_name is None:
            return sums
        return jax.lax.psum(sums, axis_name, axis_index_groups=axis_index_groups)

    real_dtype = jnp.finfo(x.dtype).dtype
    num_samples, total = across_devices(
        (
            _count(x, mask, feature_axes, real_dtype),
            jnp.sum(x, axis=reduction_axes),
        )
    )
    divisor = jnp.maximum(num_samples, 1)
    rough_mean = jax.lax.stop_gradient(total / divisor)
    deviation = zero_where_masked(
        x - expand_to_rank(rough_mean, feature_axes, x.ndim), mask
    )
    residual, squares = across_devices(
        (
            jnp.sum(deviation, axis=reduction_axes),
            jnp.sum(_abs_squared(deviation), axis=reduction_axes),
        )
    )
    correction = residual / divisor
    return Moments(
        num_samples=num_samples,
        mean=rough_mean + correction,
        var=jnp.maximum(squares / divisor - _abs_squared(correction), 0),
    )


def zero_where_masked(
    x: Inexact[Array, "*shape"], mask: Bool[Array, "*#shape"] | None
) -> Inexact[Array, "*shape"]:
    """X with zeros where the mask is False, so that no NaN there goes further.

    Selecting comes before any arithmetic: multiplying by zero would keep a NaN, in
    the value or in the derivative.

    Args:
        x: Activations.
        mask: True at the positions that count; x itself is returned without one.
    """
    if mask is None:
        return x
    return jnp.where(jnp.broadcast_to(mask, x.shape), x, jnp.zeros((), x.dtype))


def _count(
    x: Inexact[Array, "*shape"],
    mask: Bool[Array, "*#shape"] | None,
    feature_axes: Sequence[int],
    dtype: jnp.dtype,
) -> Float[Array, "*features"]:
    """Positions of this device that count, per feature."""
    reduction_axes = other_axes(x.ndim, feature_axes)
    counted = jnp.ones(x.shape, bool) if mask is None else mask
    counted = jnp.broadcast_to(counted, x.shape)
    return jnp.sum(counted, axis=reduction_axes, dtype=dtype)


def _abs_squared(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)
