"""Moments whose sums are float64, for devices that cannot branch by themselves."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bn_jax.core.devices import varying_with
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.types import Batch, ShiftedMoments


def moments_in_float64(
    around: Callable[..., ShiftedMoments], batch: Batch, shift: Array
) -> ShiftedMoments:
    """Moments by one pass in float64, whose sums need no shift.

    Cancellation leaves an error of some `1e-16 * mean**2` in the variance: nothing
    beside that of float32 values that differ, but more than an epsilon of 1e-5 where
    a feature of 3e5 or more is constant but for the last digit of a few values. A GPU
    cannot branch by itself, and would wait for the host longer than for this pass.
    """
    # JAX makes float32 of float64 where it is not enabled.
    with jax.enable_x64(True):
        wide = wide_dtype(shift.dtype, jnp.float64)
        if batch.x.dtype != shift.dtype:
            # Were half precision widened at once, XLA might store an array of float64
            # of x's size and read it twice.
            x = _rounded_to_float32(batch.x.astype(shift.dtype))
            batch = batch._replace(x=x)
        moments = around(batch, jnp.zeros_like(shift, wide))
        num_samples, *_, var = moments
        mean = moments.mean
        near = jnp.where(jnp.isfinite(mean), mean, jnp.zeros((), wide))
        near = _rounded_to_float32(near)
        narrow = jnp.finfo(shift.dtype).dtype
        moments = ShiftedMoments(
            num_samples.astype(narrow),
            near.astype(shift.dtype),
            (mean - near).astype(shift.dtype),
            var.astype(narrow),
        )
    return varying_with(moments, shift)


def _rounded_to_float32(x: Array) -> Array:
    """The same dtype with the digits of a float32.

    There and back again by `astype` is nothing to XLA's compiler for GPUs, which may
    keep more precision than it is asked for.
    """
    if jnp.iscomplexobj(x):
        parts = map(_rounded_to_float32, (x.real, x.imag))
        return jax.lax.complex(*parts)
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23)
