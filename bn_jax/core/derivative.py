"""Normalization by the batch's own moments, with its closed-form derivative."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.collectives import Devices, bind_axes, sum_across
from bn_jax.core.config import BatchNormConfig
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.moments import batch_moments
from bn_jax.core.normalize import normalize
from bn_jax.core.types import ShiftedMoments


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def normalize_by_batch(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    mask: Bool[Array, "*#shape"] | None,
    config: BatchNormConfig,
    devices: Devices,
) -> tuple[Inexact[Array, "*shape"], ShiftedMoments]:
    """Returns x normalized by its own moments, and the moments.

    The derivative is a closed form: it saves only x and arrays with one value per
    feature, and sums across devices once in each direction. The closed form is a
    tangent, which JAX transposes to the gradient. Forward mode, higher orders and every
    mode of mapping therefore work too.

    Args:
        x: Activations, zero where the mask is False.
        scale: Learned factor of each feature; None for 1.
        bias: Learned offset of each feature; None for 0.
        mask: True at valid positions; None if all are valid.
        config: Canonical feature axes and epsilon.
        devices: Devices that share moments.
    """
    moments = batch_moments(x, mask=mask, feature_axes=config.axis, devices=devices)
    shift, offset = moments.finite_shift_and_offset()
    y = normalize(x, shift, moments.var, config, scale=scale, bias=bias, offset=offset)
    return y, moments


@normalize_by_batch.defjvp
def _normalize_by_batch_jvp(
    config: BatchNormConfig,
    devices: Devices,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Any, Any]:
    x, scale, *_ = primals
    with bind_axes(devices):
        y, moments = normalize_by_batch(*primals, config, devices)
        # The fourth argument, the mask, is boolean and has no tangent.
        tangent = _tangent(config, devices, x, scale, moments, *tangents[:3])
        return (y, moments), tangent


# `jax.checkpoint`: JAX would otherwise save a float32 copy of x for the backward pass.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1))
def _tangent(
    config: BatchNormConfig,
    devices: Devices,
    x: Array,
    scale: Array | None,
    moments: ShiftedMoments,
    dx: Array,
    dscale: Array | None,
    dbias: Array | None,
) -> tuple[Array, ShiftedMoments]:
    """Returns the tangents of y and of the moments, from those of x, scale and bias.

    With x_hat = (x - mean) * inv_std, the tangent of y is `inv_std * scale * dx` plus,
    for each feature, a multiple of x_hat and a constant. Its transpose therefore has
    two sums over the batch, of dy and of dy * x_hat: those of the paper's section 3.

    Source: Ioffe & Szegedy (2015), section 3, the six equations of the gradient.
    """
    wide = wide_dtype(x.dtype)
    axes = other_axes(x.ndim, config.axis)

    def expand(values: Array) -> Array:
        return expand_to_rank(values, config.axis, x.ndim)

    # The difference is written in two ways on purpose: a sum of this function uses one
    # and a sum of its transpose the other. XLA would store a common difference, or x
    # in float32, as an array of x's size.
    shift, offset = moments.finite_shift_and_offset()
    deviation = x.astype(wide) + expand(-shift) - expand(offset)
    minus_deviation = (-x).astype(wide) + expand(shift)
    dx = dx.astype(wide)
    # The derivative of |a|^2 is 2 real(conj(a) da); `dvar` below has the factor 2.
    products = (jnp.conj(deviation) * dx).real
    sum_dx, sum_products = sum_across(
        devices, [jnp.sum(dx, axis=axes), jnp.sum(products, axis=axes)]
    )
    divisor = jnp.maximum(moments.num_samples, 1)
    dmean, dvar = sum_dx / divisor, 2 * sum_products / divisor

    # Two cases would give NaN. Without values and with an epsilon of 0, rsqrt gives
    # infinity. With an infinite variance it gives 0, which multiplies infinite sums.
    is_usable = (moments.num_samples > 0) & ~jnp.isinf(moments.var)
    zero = jnp.zeros_like(moments.var)
    inv_std = jnp.where(is_usable, jax.lax.rsqrt(moments.var + config.epsilon), zero)
    slope = inv_std if scale is None else inv_std * scale.astype(wide)
    multiple = -slope * dvar * jnp.square(inv_std) / 2
    constant = -slope * dmean
    if dscale is not None:
        multiple = multiple + dscale.astype(wide) * inv_std
    if dbias is not None:
        constant = constant + dbias.astype(wide)
    multiple = jnp.where(is_usable, multiple, jnp.zeros_like(multiple))
    # `minus_deviation` lacks the offset of the mean. The offset is at most a few
    # standard deviations, so it is subtracted here, once per feature, and not from x.
    constant = constant - offset * multiple
    dy = expand(slope) * dx + minus_deviation * expand(-multiple) + expand(constant)
    # The count and the shift are constants: the mean's tangent is that of its offset.
    zero_tangents = (zero, jnp.zeros_like(moments.shift))
    return dy.astype(x.dtype), ShiftedMoments(*zero_tangents, dmean, dvar)
