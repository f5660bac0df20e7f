"""Sums over the values of each feature around a shift, on one device."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.flags import all_hold

# Sums around 0 of a mean so many variances (squared) away are nine times what they are
# around the mean. XLA adds up a million float32 values to 1e-6.
_FAR = 8
# Fewer values are added up in less time than the branch takes; and fewer of a feature
# have a mean and a deviation far from the expected ones too often.
_WORTH_A_BRANCH = 2**16
_ENOUGH_OF_A_FEATURE = 64


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
    # Here and not by the caller: what a loop that hardly ever runs is given would be a
    # wide copy of x, made in every step.
    wide = x.astype(shift.dtype)
    deviation = wide - expand_to_rank(shift, feature_axes, x.ndim)
    # Were the second difference the same expression, XLA would compute it once, store
    # an array of x's size and read it twice; like this each is part of its sum.
    if jnp.finfo(shift.dtype).bits == 64 and x.dtype != shift.dtype:
        # Nor do both share x in float64, which a GPU's compiler would store: the
        # negative, of the same square, is widened by itself.
        negative = (-x).astype(shift.dtype)
        same_deviation = negative + expand_to_rank(shift, feature_axes, x.ndim)
    else:
        same_deviation = wide + expand_to_rank(-shift, feature_axes, x.ndim)
    if unit != 1:
        deviation, same_deviation = deviation * unit * unit, same_deviation * unit
    return _sums(deviation, same_deviation, feature_axes=feature_axes, mask=mask)


def sums_around_guess(
    x: Inexact[Array, "*shape"],
    shift: Inexact[Array, "*features"],
    is_near_zero: bool | Bool[Array, ""],
    *,
    feature_axes: Sequence[int],
    mask: Bool[Array, "*#shape"] | None,
) -> list[Inexact[Array, "*features"]]:
    """The same; on a CPU by way of sums around 0 where these are as good.

    On a CPU the subtraction takes time of its own. Other devices wait for memory either
    way, and lose by a branch what the sums share with their neighbours.

    Args:
        x: As for `sums_around`, and so are the others.
        shift: See there.
        is_near_zero: Whether it is worth a try: if the sums around 0 turn out to have
            lost digits, those around the shift are made besides.
        feature_axes: See there.
        mask: See there.
    """
    around_shift = partial(sums_around, feature_axes=feature_axes, mask=mask)
    positions = x.size // max(shift.size, 1)
    # The size that `jax.export` leaves open is no integer.
    if isinstance(positions, int) and (
        x.size < _WORTH_A_BRANCH or positions < _ENOUGH_OF_A_FEATURE
    ):
        return around_shift(x, shift)

    def by_way_of_zero(x: Array, shift: Array) -> list[Array]:
        wide = x.astype(shift.dtype)
        total, squares, *counts = _sums(
            wide, wide, feature_axes=feature_axes, mask=mask
        )
        num_samples = counts[0] if counts else jnp.full_like(squares, positions)
        divisor = jnp.maximum(num_samples, 1)
        mean = total / divisor
        spread = jnp.maximum(squares - divisor * abs_squared(mean), 0)
        is_exact = divisor * abs_squared(mean) <= _FAR * spread
        offset = mean - shift
        moved = [num_samples * offset, spread + num_samples * abs_squared(offset)]
        return jax.lax.cond(
            all_hold(is_exact | (num_samples == 0)),
            lambda: [*moved, *counts],
            lambda: around_shift(x, shift),
        )

    def by_guess(x: Array, shift: Array) -> list[Array]:
        if mask is None:
            # Half precision is widened for both ways, and for the gradient's sums:
            # here it is once.
            x = x.astype(shift.dtype)
        return jax.lax.cond(is_near_zero, by_way_of_zero, around_shift, x, shift)

    return jax.lax.platform_dependent(x, shift, cpu=by_guess, default=around_shift)


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
    mask = jnp.broadcast_to(mask, deviation.shape)
    return [
        jnp.sum(deviation, axis=axes, where=mask),
        jnp.sum(squares, axis=axes, where=mask),
        jnp.sum(mask.astype(squares.dtype), axis=axes),
    ]
