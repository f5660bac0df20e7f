"""Mean and variance of a batch: one pass on each device, then sums across devices."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.collectives import Devices, sum_across
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.types import Moments, ShiftedMoments

# The shift is the mean of at least one value in 16.
_STRIDE = 16
# With fewer examples than this, the shift is the mean of all. That costs little, and
# XLA need not move every 16th example between devices that hold only a few.
_FEW_EXAMPLES = _STRIDE**2
# Values are multiplied by this before they are summed, so that 2**32 values of 1e38
# have a finite sum. Multiplying by a power of two loses no digits.
_SUM_FACTOR = 2.0**-32
# Mapped axis over which `merge_moments` sums, as if each part were a device.
_PARTS = "bn_jax parts"


def batch_moments(
    x: Inexact[Array, "*shape"],
    *,
    mask: Bool[Array, "*#shape"] | None = None,
    feature_axes: Sequence[int],
    devices: Devices,
) -> ShiftedMoments:
    """Returns mean and biased variance of each feature, over every other axis.

    One pass sums `x - shift` and its square, where `shift` is the mean of a sixteenth
    of the values. The variance is the mean square minus the square of the mean. This
    difference loses digits if the shift is far from the mean, but it is always near:
    **the mean of any sixteenth of the values lies within sqrt(15) standard deviations
    of the mean of all values.** Proof: let a fraction f of the values have the mean s,
    the rest the mean t, and all values the mean m and the variance v. Then
    f (s - m) = -(1 - f)(t - m), and
    v >= f (s - m)^2 + (1 - f)(t - m)^2 = (s - m)^2 f / (1 - f). With f = 1/16 this
    gives (s - m)^2 <= 15 v. So the variance has at most 16 times the rounding error of
    the sum of squares: it loses four of float32's 24 bits.
    Source: Ioffe & Szegedy (2015), Algorithm 1; Samuelson (1968) for the bound, there
    for one value instead of a group; Chan, Golub & LeVeque (1983) for sums of shifted
    values.

    Args:
        x: Activations, zero where the mask is False.
        mask: True at valid positions; None if all are valid. With a mask, the shift is
            the mean of all valid values, because a sixteenth may hold none. A mask that
            is True everywhere may therefore change the last bit.
        feature_axes: Canonical axes that are not averaged over.
        devices: Devices that share the moments. They may hold different numbers of
            valid positions, or none.

    Returns:
        Moments of the shape of the feature axes, in float32 or wider. Number, mean and
        variance are 0 if there is no valid value: in an empty batch, or under a mask of
        False. The variance is infinite if its dtype cannot hold the sum of squares (in
        float32 from a sum of 3e38 on); the mean may then be infinite too.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> batch_moments(x, feature_axes=(1,), devices=Devices()).var
    Array([1., 4.], dtype=float32)
    """
    moments = _local_moments(x, mask, tuple(feature_axes))
    return merge_across(devices, moments) if devices.axis_sizes else moments


def merge_across(devices: Devices, moments: ShiftedMoments) -> ShiftedMoments:
    """Returns the moments of all devices' values together, by two all-reduces.

    The first all-reduce sums counts and values. Their quotient, the rounded mean of
    all, is the common shift. The second all-reduce sums the differences of the
    devices' means from this shift, and the mean squares around it.
    `moments.shift - shift` loses no digits, because neither number has an error: a
    shift need not be the exact mean. Memory and time grow linearly with the number of
    devices.
    Source: Chan, Golub & LeVeque (1983), Eq. 2.1.

    Args:
        devices: Devices that share the moments.
        moments: Moments of this device; a device without values adds nothing.
    """
    count = moments.num_samples
    num_samples, total = sum_across(
        devices, [count, count * _SUM_FACTOR * moments.mean]
    )
    shift = _mean_of_scaled_sum(total, num_samples)
    distance = (moments.shift - shift) + moments.offset
    # An offset that overflowed may be NaN. The variance, then infinite or NaN too,
    # replaces the distance.
    is_finite = jnp.isfinite(moments.offset)
    distance = jnp.where(is_finite, distance, moments.var.astype(distance.dtype))
    square = moments.var + abs_squared(distance)
    sums = sum_across(devices, [count * distance, count * square])
    return _moments_of_sums(num_samples, shift, *sums)


def merge_moments(moments: Moments) -> Moments:
    """Returns the moments of all parts of the data together.

    Args:
        moments: Moments with a leading axis of parts; a part without values adds
            nothing.
    """

    def merge(count: Array, mean: Array, var: Array) -> Moments:
        parts = Devices(((_PARTS, jax.lax.axis_size(_PARTS)),))
        part = ShiftedMoments(count, mean, jnp.zeros_like(mean), var)
        return merge_across(parts, part).rounded()

    return jax.vmap(merge, axis_name=_PARTS, out_axes=None)(*moments)


def abs_squared(x: Inexact[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns the squared absolute value, without the square root that `abs` takes.

    Args:
        x: Real or complex array.
    """
    return (jnp.conj(x) * x).real


def _local_moments(
    x: Array, mask: Array | None, feature_axes: tuple[int, ...]
) -> ShiftedMoments:
    axes = other_axes(x.ndim, feature_axes)
    wide = wide_dtype(x.dtype)
    expand = partial(expand_to_rank, feature_axes=feature_axes, rank=x.ndim)
    where = None if mask is None else jnp.broadcast_to(mask, x.shape)
    sample = _sample_for_shift(x, axes) if where is None else x
    total = jnp.sum(sample.astype(wide) * _SUM_FACTOR, axis=axes)
    if where is None:
        count = _number_of_values(x, axes, total.real)
        shift = _mean_of_scaled_sum(total, _number_of_values(sample, axes, total.real))
    else:
        count = jnp.sum(where.astype(total.real.dtype), axis=axes)
        shift = _mean_of_scaled_sum(total, count)
    values = x.astype(wide)
    # The difference is written in two ways on purpose: XLA would compute a common
    # expression once and materialize an array of x's size.
    difference = values - expand(shift)
    difference_again = values + expand(-shift)
    return _moments_of_sums(
        count,
        shift,
        jnp.sum(difference, axis=axes, where=where),
        jnp.sum(abs_squared(difference_again), axis=axes, where=where),
    )


def _sample_for_shift(x: Array, axes: Sequence[int]) -> Array:
    """Returns a sixteenth or more of the values of each feature.

    If an example has several positions, its first rows are taken, because they are
    contiguous in memory. If it has only one position, every 16th example is taken.
    """
    positions = [axis for axis in axes[1:] if x.shape[axis] != 1]
    if positions:
        size = -(-x.shape[positions[0]] // _STRIDE)
        return jax.lax.slice_in_dim(x, 0, size, axis=positions[0])
    # A size that `jax.export` leaves open is not an int; then all examples are taken.
    examples = x.shape[axes[0]] if axes else 0
    if not isinstance(examples, int) or examples < _FEW_EXAMPLES:
        return x
    return jax.lax.slice_in_dim(x, 0, examples, stride=_STRIDE, axis=axes[0])


def _number_of_values(x: Array, axes: Sequence[int], like: Array) -> Array:
    return jnp.full_like(like, math.prod(x.shape[axis] for axis in axes))


def _mean_of_scaled_sum(total: Array, count: Array) -> Array:
    """Returns the mean from a sum of values times `_SUM_FACTOR`; 0 if not finite.

    XLA may fuse this division with the later `x - mean` and skip the rounding of the
    mean; `jnp.where` prevents that. Otherwise the sums would use a slightly different
    shift than the one that is subtracted from x.
    """
    mean = total / (jnp.maximum(count, 1) * _SUM_FACTOR)
    return jnp.where(jnp.isfinite(mean), mean, jnp.zeros_like(mean))


def _moments_of_sums(
    count: Array, shift: Array, differences: Array, squares: Array
) -> ShiftedMoments:
    """Returns moments from the sums of `x - shift` and of its square.

    Finite values never give NaN: sums that overflow give an infinite variance.
    """
    divisor = jnp.maximum(count, 1)
    offset, square = differences / divisor, squares / divisor
    # The difference of two infinities would be NaN.
    loss = jnp.where(jnp.isfinite(square), abs_squared(offset), jnp.zeros_like(square))
    return ShiftedMoments(count, shift, offset, jnp.maximum(square - loss, 0))
