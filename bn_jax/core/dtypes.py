"""The precision that values, statistics and arithmetic are kept in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact


def wide_dtype(*dtypes: DTypeLike) -> np.dtype:
    """Returns the narrowest dtype of at least float32 that holds all of them.

    Unlike `jnp.promote_types` it also answers under strict promotion: here half
    precision is widened on purpose.

    Args:
        *dtypes: Dtypes of arrays; integers count as float32.

    >>> wide_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return np.result_type(*map(_at_least_float32, dtypes))


@jax.custom_jvp
def as_stored(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Returns x as memory holds it, to all that read it.

    Within one program XLA keeps a sum or product of bfloat16 in float32 for some of
    its readers, and not for others. Without this, the moments and the values that they
    normalize would be of different numbers, and a constant feature would not become 0.

    Args:
        x: Of any dtype; all but bfloat16 are left alone, as XLA does.
    """
    if x.dtype != jnp.bfloat16:
        return x
    return jax.lax.optimization_barrier(x)


# The gradient may stay part of a larger computation.
as_stored.defjvps(lambda tangent, _, x: tangent)


def _at_least_float32(dtype: DTypeLike) -> np.dtype:
    dtype = jnp.dtype(dtype)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if is_wide else np.dtype(np.float32)
