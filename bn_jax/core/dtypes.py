"""The precision that statistics and arithmetic are kept in."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


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
