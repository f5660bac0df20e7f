"""Flags that are Python booleans, or traced ones that are known when a program runs."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped

Flag = bool | Bool[Array, ""]


def as_static(flag: Any) -> Any:
    """The flag, as a Python boolean where its value is known.

    Args:
        flag: A boolean of Python, NumPy or JAX.
    """
    return bool(flag) if isinstance(flag, bool | np.bool_) else flag


def negate(flag: Flag) -> Flag:
    """The opposite.

    Args:
        flag: A flag as `as_static` gives it.
    """
    return not flag if isinstance(flag, bool) else jnp.logical_not(flag)


def select(
    flag: Flag, if_true: Shaped[Array, "*shape"], if_false: Shaped[Array, "*shape"]
) -> Shaped[Array, "*shape"]:
    """One of two arrays; the other is not computed where the flag is known.

    Args:
        flag: A flag as `as_static` gives it.
        if_true: The result for True.
        if_false: The result for False.
    """
    if isinstance(flag, bool):
        return if_true if flag else if_false
    return jnp.where(flag, if_true, if_false)
