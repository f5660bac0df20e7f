"""Number of values, mean and variance of each feature of a batch."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.agreement import are_equal, marks
from bn_jax.core.chunks import in_chunks, moments_of_chunks
from bn_jax.core.devices import (
    Devices,
    number_of_devices,
    own_group,
    sum_across,
    sums_refused_with_advice,
    varying_with,
)
from bn_jax.core.dtypes import wide_dtype
from bn_jax.core.flags import all_hold
from bn_jax.core.float64_moments import moments_in_float64
from bn_jax.core.memory_order import in_memory_order
from bn_jax.core.sums import abs_squared, sums_around, sums_around_guess
from bn_jax.core.types import Batch, Guess, ShiftedMoments

# A shift this many variances (squared distance) away from the mean makes the sums five
# times what they are around the mean. XLA adds up a million float32 values to 1e-6.
_FAR = 4
# A distance of no account: this fraction of the mean, beside which float32 tells no
# deviations apart, or, squared, this fraction of epsilon. Without them a feature that
# has no variance would ask for a second pass as long as its running mean moves.
_NEAR_MEAN = 1e-5
_NEAR_EPSILON = 1e-6
# Each pass leaves 1e-7 of the distance in float32.
_MAX_FURTHER_PASSES = 5


def batch_moments(
    x: Inexact[Array, "*shape"],
    guess: Guess,
    *,
    feature_axes: Sequence[int],
    mask: Bool[Array, "*#shape"] | None = None,
    epsilon: float = 0.0,
    devices: Devices,
) -> ShiftedMoments:
    """Mean and biased variance of each feature, over every other axis.

    One pass adds up `x - shift` and its square, in one all-reduce; the shift is the
    mean that is expected. That is exact but where it lies many standard deviations
    from the mean; then, and only then, a second pass shifts by the mean that the first
    one found, and so on while that mean was but a rough one. A running mean is a good
    shift after a few steps of training. GPUs, which cannot branch without the host,
    add up in float64 instead what is of float32 or narrower; TPUs have sums of bfloat16
    that are exact without a shift.
    Source: Ioffe & Szegedy (2015), Algorithm 1; Chan, Golub & LeVeque (1983), shifted
    sums.

    Args:
        x: Activations, zero where the mask is False.
        guess: What is expected of them, of the moments' shape. No guess is so bad that
            results feel it.
        feature_axes: Canonical axes that are not averaged over.
        mask: True at the positions that count; all of them by default.
        epsilon: What is added to the variance later; digits that are lost beside a
            hundred-millionth of it are not missed.
        devices: Devices that share the moments. Sums and counts are added up, so
            that devices may hold different numbers of valid positions, or none.

    Returns:
        Moments of the shape of the feature axes, in float32 or wider; where devices
        form groups, with all groups along the first. With no value to average (an
        empty batch, or a mask that leaves nothing) all three are 0. A variance beyond
        the range of the dtype is infinite; so may be that of a constant whose last
        digit has a square beyond it (from 1e27 on in float32), and on TPUs that of
        bfloat16 values beyond some 1e17. There their mean is not finite beyond some
        1e34, and squares of values below some 1e-16 may vanish.

    >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
    >>> batch_moments(x, Guess(jnp.zeros(2)), feature_axes=(1,), devices=Devices()).var
    Array([1., 4.], dtype=float32)
    """
    with sums_refused_with_advice(devices):
        return _batch_moments(x, guess, mask, tuple(feature_axes), epsilon, devices)


# Traced once for all layers of one shape, and compiled where nothing else is: a loop
# that runs op by op would be compiled each time.
@partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _batch_moments(
    x: Array,
    guess: Guess,
    mask: Array | None,
    feature_axes: tuple[int, ...],
    epsilon: float,
    devices: Devices,
) -> ShiftedMoments:
    # Running statistics that an earlier batch spoiled must not spoil this one.
    mean = jnp.where(
        jnp.isfinite(guess.mean), guess.mean, jnp.zeros((), guess.mean.dtype)
    )
    guess = guess._replace(mean=mean.astype(wide_dtype(x.dtype)))
    batch = Batch(x, feature_axes, mask)
    around = partial(_moments_around, devices=devices)

    # A loop may be given x in another order of axes.
    def in_passes(batch_of_loop: Batch = batch) -> ShiftedMoments:
        return _moments_in_passes(around, batch, batch_of_loop, guess, epsilon)

    def on_tpus() -> ShiftedMoments:
        chunks = in_chunks(batch)
        if chunks is None:
            return in_passes(in_memory_order(batch))
        return varying_with(moments_of_chunks(chunks, devices), guess.mean)

    def in_float64() -> ShiftedMoments:
        return moments_in_float64(around, batch, guess.mean)

    if jnp.finfo(guess.mean.dtype).bits == 64:
        return in_passes()
    return jax.lax.platform_dependent(
        cuda=in_float64, rocm=in_float64, tpu=on_tpus, default=in_passes
    )


def _moments_in_passes(
    around: Callable[..., ShiftedMoments],
    batch: Batch,
    batch_of_loop: Batch,
    guess: Guess,
    epsilon: float,
) -> ShiftedMoments:
    """Moments by one pass, and by further ones if the guess lay far from the mean.

    The further ones are a loop that may end at once, and no branch: XLA sends what a
    branch is given out of a TPU's fast memory, in every step, whether or not it is
    taken. A loop leaves it there, but is given arrays in the order of their axes: one
    that lies in another order XLA copies.
    """
    first = around(
        batch, guess.mean, compares_shifts=True, is_near_zero=guess.is_near_zero
    )
    first = varying_with(first, guess.mean)
    is_exact = _is_exact(first, epsilon)

    # The number of values is that of all passes: a loop would but carry it.
    found = _Found(*first[1:])
    end = _further_passes(partial(around, batch_of_loop), found, is_exact, epsilon)
    # Where the shift was near enough for the variance, it may still lie many deviations
    # from the mean, which the gradient would feel.
    mean = end.shift + end.offset
    rest = jnp.where(jnp.isfinite(mean), end.shift - mean + end.offset, 0)
    return ShiftedMoments(first.num_samples, mean, rest, end.var)


class _Found(NamedTuple):
    """Moments that a pass has found, as in `ShiftedMoments`."""

    shift: Array
    offset: Array
    var: Array


class _Pass(NamedTuple):
    """What a pass over x leaves for the next one.

    Attributes:
        number: Passes so far, after the first one.
        is_last: Whether it has come to exact moments, feature by feature.
        found: What it has come to.
    """

    number: Array
    is_last: Array
    found: _Found


def _further_passes(
    around: Callable[..., ShiftedMoments],
    found: _Found,
    is_exact: Array,
    epsilon: float,
) -> _Found:
    """Moments around the mean that the pass before has found, until they are exact."""

    def next_pass(before: _Pass) -> _Pass:
        number = before.number + 1
        mean = before.found.shift + before.found.offset
        # The sums may have overflowed.
        shift = jnp.where(jnp.isfinite(mean), mean, jnp.zeros((), mean.dtype))
        moments = around(shift, keeps_range=True)
        is_last = _is_exact(moments, epsilon) | ~jnp.isfinite(moments.offset)
        # What is exact stays: keeping the range loses the smallest squares.
        new = _with_overflow(_Found(*moments[1:]))
        found = jax.tree.map(partial(jnp.where, before.is_last), before.found, new)
        is_last |= before.is_last | (number >= _MAX_FURTHER_PASSES)
        return _Pass(number, is_last, found)

    begin = _Pass(jnp.zeros((), jnp.int32), is_exact, found)
    # Devices must go the same way, or an all-reduce in one waits for ever: all know
    # the moments of all groups that are summed together.
    end = jax.lax.while_loop(lambda now: ~all_hold(now.is_last), next_pass, begin)
    return end.found


def _is_exact(moments: ShiftedMoments, epsilon: float) -> Array:
    """Whether moments have all their digits, by how far the shift is from the mean."""
    distance = abs_squared(moments.offset)
    is_near = distance <= _FAR * moments.var
    # A feature that equals the shift everywhere has no variance, nor need it have a
    # mean.
    is_near |= distance <= _NEAR_EPSILON * epsilon
    is_near |= jnp.abs(moments.offset) <= _NEAR_MEAN * jnp.abs(moments.mean)
    return (is_near & jnp.isfinite(moments.var)) | (moments.num_samples == 0)


def _moments_around(
    batch: Batch,
    shift: Inexact[Array, "*features"],
    *,
    devices: Devices,
    compares_shifts: bool = False,
    is_near_zero: bool | Array = False,
    keeps_range: bool = False,
) -> ShiftedMoments:
    """Moments from sums of `x - shift` and of its square.

    Where shifts are compared, and devices turn out to have different ones, there are
    no moments yet: the variance is infinite, and the shift 0 on all of them.

    Sums of many values overflow before their mean does, unless the range is kept, at
    the price of further operations.
    """
    x, feature_axes, mask = batch
    axes = {"feature_axes": feature_axes, "mask": mask}
    own_shift = own_group(devices, shift)
    positions = x.size // max(own_shift.size, 1) * number_of_devices(devices)
    unit = 1.0
    if keeps_range:
        # A power of two near one over the root of their number costs no bit.
        # A size that `jax.export` leaves open is no integer: one for many values.
        count = max(positions, 1) if isinstance(positions, int) else 2**40
        unit = 2.0 ** -math.ceil(math.log2(count) / 2)
    if is_near_zero is False:
        values = sums_around(x, own_shift, **axes, unit=unit)
    else:
        values = sums_around_guess(x, own_shift, is_near_zero, **axes)
    if compares_shifts and devices.axis_sizes:
        values += marks(own_shift)
    deviations, squares, *others = sum_across(devices, values)
    num_samples = jnp.full_like(squares, positions) if mask is None else others.pop(0)
    divisor = jnp.maximum(num_samples, 1) * unit**2
    offset = deviations / divisor
    var = jnp.maximum(squares / divisor - abs_squared(offset), 0)
    if others:
        is_common = all_hold(are_equal(others, devices))
        shift = jnp.where(is_common, shift, jnp.zeros((), shift.dtype))
        is_usable = is_common | (num_samples == 0)
        var = jnp.where(is_usable, var, jnp.full((), jnp.inf, var.dtype))
    shift = jnp.where(num_samples > 0, shift, jnp.zeros((), shift.dtype))
    # Under a mapped axis the mean's two parts have one type.
    shift = varying_with(shift, offset)
    return ShiftedMoments(num_samples, shift, offset, var)


def _with_overflow(found: _Found) -> _Found:
    """The same with an infinite variance where it lies beyond the range of its dtype.

    It may have become a difference of infinities; a NaN in x would be in the mean too.
    """
    overflows = jnp.isnan(found.var) & jnp.isfinite(found.shift + found.offset)
    infinity = jnp.full((), jnp.inf, found.var.dtype)
    return found._replace(var=jnp.where(overflows, infinity, found.var))
