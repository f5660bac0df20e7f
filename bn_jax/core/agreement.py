"""Whether all devices hold the same values, told by sums over them."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.devices import Devices

_MARK_BITS = 5
# An odd number near 2^32 over the golden ratio, by which bits are scattered.
_SCATTER = 2_654_435_761


def marks(values: Inexact[Array, "*features"]) -> list[Float[Array, "*features"]]:
    """For each value a whole number below 32 that follows from its bits; its square.

    Values that differ have different numbers 31 times of 32, and those of many
    features hardly ever the same ones in all of them.

    Args:
        values: In float32 or float64, real or complex.

    Returns:
        Both, of the precision of the values. Sums of them over 4,096 devices are exact.
    """
    is_complex = jnp.iscomplexobj(values)
    bits = jnp.zeros(values.shape, jnp.uint32)
    for part in (values.real, values.imag) if is_complex else (values,):
        words = jax.lax.bitcast_convert_type(part, jnp.uint32)
        # Of float64 two, along an axis of their own.
        for word in jnp.unstack(words, axis=-1) if words.ndim > part.ndim else [words]:
            bits = (bits ^ word ^ (word >> 16)) * jnp.uint32(_SCATTER)
    mark = (bits >> (32 - _MARK_BITS)).astype(jnp.finfo(values.dtype).dtype)
    return [mark, jnp.square(mark)]


def are_equal(
    sums: Sequence[Float[Array, "*sums"]], devices: Devices
) -> Bool[Array, "*compared"]:
    """Whether numbers whose sums these are were all the same.

    Args:
        sums: Of the marks of each device, and of their squares.
        devices: The devices; where they form groups of consecutive ones, the marks of
            all of them are compared.

    Returns:
        Of the sums' shape, with 1 for an axis of groups.
    """
    count = math.prod(size for _, size in devices.axis_sizes)
    if devices.devices_per_group is not None:
        sums = [jnp.sum(of_group, axis=0, keepdims=True) for of_group in sums]
    elif devices.axis_index_groups is not None:
        count = len(devices.axis_index_groups[0])
    total, squares = sums
    # Of all numbers with that sum, equal ones have the smallest squares. Both products
    # are those of whole numbers, and rounded alike.
    return squares * count == total * total
