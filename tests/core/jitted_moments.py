"""Moments of a batch on one device, under `jax.jit`."""

from functools import partial

import jax
import jax.numpy as jnp

from bn_jax.core.axes import canonical_axes
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments


def moments_of(x, *, axis=-1, mask=None):
    axes = canonical_axes(x.ndim, axis)
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape)
        x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    return batch_moments(x, mask=mask, feature_axes=axes, devices=Devices())


@jax.jit
def shifted_moments(x):
    """Returns the moments of x, with the mean as the sum of two numbers."""
    return moments_of(x)


@partial(jax.jit, static_argnames="axis")
def compiled_moments(x, *, axis=-1, mask=None):
    """Returns the moments of x, with the mean as one number."""
    return moments_of(x, axis=axis, mask=mask).rounded()
