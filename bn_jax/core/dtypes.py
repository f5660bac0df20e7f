"""The precision that values, statistics and arithmetic are kept in."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Inexact


def wide_dtype(*dtypes: DTypeLike) -> np.dtype:
    """The narrowest dtype of at least float32 that holds all of them.

    Unlike `jnp.promote_types` it also answers under strict promotion: here half
    precision is widened on purpose.

    Args:
        *dtypes: Dtypes of arrays; integers count as float32.

    >>> wide_dtype(jnp.bfloat16)
    dtype('float32')
    """
    return np.result_type(*map(_at_least_float32, dtypes))


def _at_least_float32(dtype: DTypeLike) -> np.dtype:
    dtype = jnp.dtype(dtype)
    is_wide = jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4
    return dtype if is_wide else np.dtype(np.float32)


def rounded_to_bfloat16(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """X with the 8 bits that a bfloat16 has, of which one is not written down.

    Args:
        x: Of bfloat16 or float32, and so is the result.

    >>> rounded_to_bfloat16(jnp.array([257.0]))
    Array([256.], dtype=float32)
    """
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


@jax.custom_jvp
def as_stored(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """X as memory holds it, to all that read it.

    Within one program XLA leaves a sum or product of bfloat16 in float32 on its way
    to some readers, and to others not: what is computed from both, such as moments and
    what they normalize, would be of different values.

    Args:
        x: Of any dtype; all but bfloat16 are left alone, as XLA does.
    """
    if x.dtype != jnp.bfloat16:
        return x
    # A CPU would write the rounded values down once more.
    return jax.lax.platform_dependent(
        x, cpu=jax.lax.optimization_barrier, default=rounded_to_bfloat16
    )


# A rounding of x, and none of its gradient.
as_stored.defjvps(lambda tangent, _, x: tangent)
