"""Normalization by the batch's own moments, with its closed-form derivative."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.devices import Devices, bound, own_group, sum_across
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.moments import batch_moments
from bn_jax.core.normalize import normalize
from bn_jax.core.types import Guess, ShiftedMoments


class Layout(NamedTuple):
    """What stays the same from batch to batch; hashable.

    Attributes:
        moment_axes: Canonical axes of x that moments are kept apart along.
        feature_axes: Those of them that scale and bias have.
        epsilon: Added to the variance, inside the root.
        devices: Devices that share moments.
    """

    moment_axes: tuple[int, ...]
    feature_axes: tuple[int, ...]
    epsilon: float
    devices: Devices


@partial(jax.custom_jvp, nondiff_argnums=(5,))
def normalize_by_batch(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    guess: Guess,
    mask: Bool[Array, "*#shape"] | None,
    layout: Layout,
) -> tuple[Inexact[Array, "*shape"], ShiftedMoments]:
    """X normalized by its own mean and variance, and these.

    The derivative is the closed form, which saves x and what has a feature's size,
    and sums across devices once in each direction. It is given as a tangent, which
    JAX transposes, so that forward mode, higher orders and every way of mapping work
    too.

    Args:
        x: Activations, zero where the mask is False.
        scale: Learned factor of each feature; None for 1.
        bias: Learned offset of each feature; None for 0.
        guess: What is expected of the batch, of the moments' shape.
        mask: True at the positions that count.
        layout: Axes, epsilon and devices.
    """
    moments = batch_moments(
        x,
        guess,
        feature_axes=layout.moment_axes,
        mask=mask,
        epsilon=layout.epsilon,
        devices=layout.devices,
    )
    _, shift, offset, var = (own_group(layout.devices, leaf) for leaf in moments)
    y = normalize(
        x,
        shift,
        var,
        offset=offset,
        scale=scale,
        bias=bias,
        moment_axes=layout.moment_axes,
        feature_axes=layout.feature_axes,
        epsilon=layout.epsilon,
    )
    return y, moments


@normalize_by_batch.defjvp
def _normalize_by_batch_jvp(
    layout: Layout, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Any, Any]:
    x, scale, *_ = primals
    with bound(layout.devices):
        y, moments = normalize_by_batch(*primals, layout)
        return (y, moments), _tangent(layout, x, scale, moments, *tangents[:3])


# Rematerialized, or a float32 copy of x would be saved for the transpose.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=0)
def _tangent(
    layout: Layout,
    x: Array,
    scale: Array | None,
    moments: ShiftedMoments,
    dx: Array,
    dscale: Array | None,
    dbias: Array | None,
) -> tuple[Array, ShiftedMoments]:
    """The change of y and of the moments, for changes of x, scale and bias.

    With x_hat = (x - mean) * inv_std, it is `inv_std * scale * dx` plus, for each
    feature, a multiple of x_hat and a constant. Its transpose therefore has two
    sums over the batch, of dy and of dy * x_hat: those of the paper's section 3.

    Source: Ioffe & Szegedy (2015), section 3, the six equations of the gradient.
    """
    wide = wide_dtype(x.dtype)
    moment_axes, rank = layout.moment_axes, x.ndim

    def expand(values: Array) -> Array:
        return expand_to_rank(own_group(layout.devices, values), moment_axes, rank)

    def expand_features(values: Array) -> Array:
        values = expand_to_rank(values.astype(wide), layout.feature_axes, rank)
        # Features as the moments have them, with 1 for axes of moments alone.
        return jnp.squeeze(values, other_axes(rank, moment_axes))

    # The same twice, written differently: one is used in a sum of this function, the
    # other in one of its transpose. Sharing them, or x in float32, would store an array
    # of x's size.
    shift, offset = moments.shift, moments.offset
    deviation = x.astype(wide) + expand(-shift) - expand(offset)
    to_shift = (-x).astype(wide) + expand(shift)
    dx = dx.astype(wide)
    axes = other_axes(rank, moment_axes)
    total, product = sum_across(
        layout.devices,
        [jnp.sum(dx, axis=axes), jnp.sum(_real_product(deviation, dx), axis=axes)],
    )
    divisor = jnp.maximum(moments.num_samples, 1)
    dmean = total / divisor
    dvar = 2 * product / divisor

    # Without a value, and with an epsilon of 0, there is no inverse to multiply by.
    inv_std = jnp.where(
        moments.num_samples > 0,
        jax.lax.rsqrt(moments.var + layout.epsilon),
        jnp.zeros_like(moments.var),
    )
    slope = inv_std if scale is None else inv_std * expand_features(scale)
    multiple = -slope * dvar * jnp.square(inv_std) / 2
    constant = -slope * dmean
    if dscale is not None:
        multiple = multiple + expand_features(dscale) * inv_std
    if dbias is not None:
        constant = constant + expand_features(dbias)
    # No more than a deviation, the offset needs no subtraction of its own.
    constant = constant - offset * multiple
    dy = expand(slope) * dx + to_shift * expand(-multiple) + expand(constant)
    no_change = jnp.zeros_like(moments.num_samples)
    no_shift = jnp.zeros_like(moments.shift)
    return dy.astype(x.dtype), ShiftedMoments(no_change, no_shift, dmean, dvar)


def _real_product(a: Array, b: Array) -> Array:
    """Real part of conj(a) * b: what the square of an absolute value changes by."""
    if jnp.iscomplexobj(a):
        return a.real * b.real + a.imag * b.imag
    return a * b
