"""Sums over the values of each feature around a shift, on one device."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.devices import varying_with
from bn_jax.core.flags import all_hold


def sums_around(
    x: Inexact[Array, "*shape"],
    shift: Inexact[Array, "*features"],
    *,
    feature_axes: Sequence[int],
    mask: Bool[Array, "*#shape"] | None,
    unit: float = 1.0,
) -> list[Inexact[Array, "*features"]]:
    """The sums of `x - shift`, of its square and of the mask, if there is one.

    Args:
        x: Activations.
        shift: What is subtracted, in the dtype of the sums.
        feature_axes: Canonical axes that are not summed over.
        mask: True at the positions that count; None for all.
        unit: What differences are multiplied by before they are squared; the first
            two sums are in its square.
    """
    # Here and not by the caller: what a branch that is hardly ever taken is given
    # would be a wide copy of x, made in every step.
    x = x.astype(shift.dtype)
    # The second difference adds the negative instead of subtracting. Were both the
    # same expression, XLA would compute it once, store an array of x's size and read
    # it twice; like this each is part of its sum.
    deviation = x - expand_to_rank(shift, feature_axes, x.ndim)
    same_deviation = x + expand_to_rank(-shift, feature_axes, x.ndim)
    if unit != 1:
        deviation, same_deviation = deviation * unit * unit, same_deviation * unit
    return _sums(deviation, same_deviation, feature_axes=feature_axes, mask=mask)


def sums_around_guess(
    x: Inexact[Array, "*shape"],
    shift: Inexact[Array, "*features"],
    *,
    feature_axes: Sequence[int],
    mask: Bool[Array, "*#shape"] | None,
) -> list[Inexact[Array, "*features"]]:
    """The same; on a CPU without subtracting where no feature has a shift.

    A CPU adds up numbers as fast as it reads them, and subtracts half as fast. Other
    devices wait for memory either way, and lose by a branch what the sums share with
    their neighbours.
    """
    axes = {"feature_axes": feature_axes, "mask": mask}

    around_shift = partial(sums_around, **axes)

    def around_zero(x: Array, shift: Array) -> list[Array]:
        return varying_with(_sums(x, x, **axes), shift)

    def by_shift(x: Array, shift: Array) -> list[Array]:
        # Half precision is widened for either branch, and for the gradient's sums:
        # here it is once.
        x = x.astype(shift.dtype)
        return jax.lax.cond(all_hold(shift == 0), around_zero, around_shift, x, shift)

    return jax.lax.platform_dependent(x, shift, cpu=by_shift, default=around_shift)


def abs_squared(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The square of the absolute value, without the root of `abs`.

    Args:
        x: Real or complex.
    """
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _sums(
    deviation: Array,
    same_deviation: Array,
    *,
    feature_axes: Sequence[int],
    mask: Array | None,
) -> list[Array]:
    squares = abs_squared(same_deviation)
    axes = other_axes(deviation.ndim, feature_axes)
    if mask is None:
        return [jnp.sum(deviation, axis=axes), jnp.sum(squares, axis=axes)]
    counted = jnp.broadcast_to(mask, deviation.shape)
    return [
        jnp.sum(values, axis=axes, where=counted)
        for values in (deviation, squares, counted.astype(squares.dtype))
    ]
