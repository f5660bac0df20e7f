"""Flags that are Python booleans, or traced ones that are known when a program runs."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree, Shaped

Flag = bool | Bool[Array, ""]


def as_flag(flag: Any, name: str) -> Flag:
    """The flag, as a Python boolean wherever its value is known.

    Args:
        flag: What a caller gave: a boolean or a number, of Python, NumPy or JAX.
        name: Of the argument, for the error.

    Raises:
        ValueError: If it is not one boolean.
    """
    if flag is None or isinstance(flag, str) or jnp.shape(flag) != ():
        raise ValueError(
            f"batch_norm: {name} must be one boolean, for all of x, and is {flag!r}."
        )
    return flag.astype(bool) if isinstance(flag, Tracer) else bool(flag)


def is_off(flag: Any) -> bool:
    """Whether a flag is known to be False, and neither open nor traced.

    Args:
        flag: What a caller gave, or None.
    """
    return not (flag is None or isinstance(flag, Tracer) or bool(flag))


def negate(flag: Flag) -> Flag:
    """The opposite.

    Args:
        flag: A flag as `as_flag` gives it.
    """
    return not flag if isinstance(flag, bool) else jnp.logical_not(flag)


def select(
    flag: Flag, if_true: Shaped[Array, "*shape"], if_false: Shaped[Array, "*shape"]
) -> Shaped[Array, "*shape"]:
    """One of two arrays.

    Args:
        flag: A flag as `as_flag` gives it.
        if_true: The result for True.
        if_false: The result for False.
    """
    if isinstance(flag, bool):
        return if_true if flag else if_false
    return jnp.where(flag, if_true, if_false)


def differentiable_if(flag: Flag, values: PyTree) -> PyTree:
    """The same values, constants for every derivative where the flag is False.

    What follows from them and is not selected then has no part in any derivative: zero
    times its slope would be NaN where that is infinite.

    Args:
        flag: A flag as `as_flag` gives it.
        values: Arrays.
    """
    if flag is True:
        return values
    return jax.tree.map(
        lambda value: select(flag, value, jax.lax.stop_gradient(value)), values
    )


# `lax.cond` with an answer for each of what is mapped becomes a select, which computes
# both branches in every step; and a loop would select all that it carries.
@jax.custom_batching.custom_vmap
def all_hold(claims: Bool[Array, "*shape"]) -> Bool[Array, ""]:
    """Whether all claims hold; under vmap one answer, for all that is mapped.

    Args:
        claims: Of any shape.
    """
    return jnp.all(claims)


@all_hold.def_vmap
def _all_hold_in_all(_: int, __: list[bool], claims: Array) -> tuple[Array, bool]:
    return all_hold(claims), False
