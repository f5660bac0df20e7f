"""The order of axes in which TPUs keep what a convolution gives."""

import jax.numpy as jnp

from bn_jax.core.types import Batch

# A TPU keeps the fastest axis in rows of so many values.
_ROW = 128


def in_memory_order(batch: Batch) -> Batch:
    """The same with its axes as a TPU's memory has them, the fastest one last.

    Examples and features run faster than all other axes of what a convolution gives,
    and of the two the features, but where the examples fill rows and they do not. So it
    was in programs for TPU v5e, for nearly all layers, and it is no promise. Under jit
    the examples are those of all devices, which is not what a chip's memory holds.

    Args:
        batch: Images or volumes; others, as those in groups, stay as they are.
    """
    x, feature_axes, mask = batch
    if x.ndim < 4 or len(feature_axes) != 1 or 0 in feature_axes:
        return batch
    (features,) = feature_axes
    positions = [axis for axis in range(1, x.ndim) if axis != features]
    order = (*positions, 0, features)
    if x.shape[0] % _ROW == 0 and x.shape[features] % _ROW != 0:
        order = (*positions, features, 0)
    if mask is not None:
        mask = jnp.transpose(mask, order)
    return Batch(jnp.transpose(x, order), (order.index(features),), mask)
