"""Precision of values, statistics and arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact


def wide_dtype(*dtypes: DTypeLike) -> np.dtype:
    """Returns the narrowest dtype of at least float32 that holds all of the dtypes.

    Unlike `jnp.promote_types`, this also works under strict promotion, because half
    precision is widened on purpose.

    Args:
        *dtypes: Dtypes of arrays; integers count as float32.

    >>> wide_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return np.result_type(*map(_at_least_float32, dtypes))


@jax.custom_jvp
def as_stored(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Returns x rounded to its own dtype, so that every operation reads equal values.

    Within one program, XLA keeps the result of a bfloat16 sum or product in float32 for
    some operations and rounds it for others. Without this barrier, the moments would
    belong to slightly different values than the normalized ones, and a constant feature
    would not become 0.

    Args:
        x: Array of any dtype. Only bfloat16 gets a barrier, because XLA widens no other
            dtype.
    """
    if x.dtype != jnp.bfloat16:
        return x
    return jax.lax.optimization_barrier(x)


# The gradient needs no barrier, so XLA may fuse it with other operations.
as_stored.defjvps(lambda tangent, _, x: tangent)


def _at_least_float32(dtype: DTypeLike) -> np.dtype:
    dtype = jnp.dtype(dtype)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if is_wide else np.dtype(np.float32)
