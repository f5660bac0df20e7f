"""Moments of bfloat16 values in one pass, from sums exact where any could cancel."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.axes import other_axes
from bn_jax.core.devices import Devices, number_of_devices, sum_across
from bn_jax.core.dtypes import rounded_to_bfloat16
from bn_jax.core.types import Batch, ShiftedMoments

# A bfloat16 has 8 bits and its square 16, a float32 24. 2**7 squares add up exactly,
# and 2**15 halves of them, or values, with a bit to spare for values on both sides of a
# power of two.
_SQUARES = 2**7
_HALVES = 2**15
# Sums of fewer values take up too much beside these.
_FEWEST = 32
# Parts of 8 bits that a float32 has.
_PARTS = 3


class Chunks(NamedTuple):
    """A batch as sums over neighbours.

    Attributes:
        total: Sum of each chunk.
        squares: Sum of its squares, in one array or in two, to be added up.
        num_samples: Values of each chunk, an array where there is a mask.
        feature_axes: Axes of these that are not averaged over.
    """

    total: Float[Array, "*chunks"]
    squares: list[Float[Array, "*chunks"]]
    num_samples: int | Float[Array, "*#chunks"]
    feature_axes: tuple[int, ...]

    @property
    def is_masked(self) -> bool:
        """Whether there is a mask."""
        return not isinstance(self.num_samples, int)


def in_chunks(batch: Batch) -> Chunks | None:
    """The sums of bfloat16 values over the positions of each example, or of all.

    They need no shift. Values whose mean is many standard deviations from 0 have
    nearly the same exponent, and their sums are exact. Where values differ by more,
    nothing cancels. The squares of some 1e17 overflow.

    Args:
        batch: Activations, with examples along the first axis that is averaged over.
            These stay together or all apart, for devices share them out.

    Returns:
        None where the dtype is another, or there are too few values for a sum.
    """
    x, feature_axes, mask = batch
    if x.dtype != jnp.bfloat16:
        return None
    averaged = other_axes(x.ndim, feature_axes)
    sizes = _sizes_of_chunks(x, averaged)
    num_samples = math.prod(sizes)
    if num_samples < _FEWEST:
        return None
    whole = [axis for axis in averaged if x.shape[axis] == sizes[axis]]
    kept = [axis for axis in range(x.ndim) if axis not in whole]

    def sums(values: Array) -> Array:
        parts = zip(values.shape, sizes, strict=True)
        split = [length for size, part in parts for length in (size // part, part)]
        within = [2 * axis + 1 for axis in range(x.ndim)]
        within += [2 * axis for axis in whole]
        return jnp.sum(values.reshape(split), axis=within)

    wide = x.astype(jnp.float32)
    squares = [jnp.square(wide)]
    if num_samples > _SQUARES:
        half = rounded_to_bfloat16(squares[0])
        squares = [half, squares[0] - half]
    counts: int | Array = num_samples
    if mask is not None:
        of_positions = [
            size if axis in feature_axes else x.shape[axis]
            for axis, size in enumerate(mask.shape)
        ]
        counts = sums(jnp.broadcast_to(mask, of_positions).astype(jnp.float32))
    return Chunks(
        sums(wide),
        [sums(part) for part in squares],
        counts,
        tuple(kept.index(axis) for axis in feature_axes),
    )


def _sizes_of_chunks(x: Array, averaged: Sequence[int]) -> list[int]:
    """How many values along each axis a sum has, of at most `_HALVES` in all."""
    sizes = [1] * x.ndim
    for axis in reversed(averaged):
        size, most = x.shape[axis], _HALVES // math.prod(sizes)
        # A size that `jax.export` leaves open is no integer.
        if not isinstance(size, int):
            continue
        if axis != averaged[0]:
            sizes[axis] = max(part for part in range(1, most + 1) if size % part == 0)
        elif 0 < size <= most and all(x.shape[i] == sizes[i] for i in averaged[1:]):
            sizes[axis] = size
    return sizes


def moments_of_chunks(chunks: Chunks, devices: Devices) -> ShiftedMoments:
    """Mean and variance by one all-reduce, whatever the mean is.

    The sums are added up over all examples and devices in parts of 8 bits, which is
    exact for some 2**24 values and leaves 2**-32 of the total beyond; what cancels is
    subtracted with all these digits.

    Args:
        chunks: Sums of the values on this device.
        devices: Devices that share the moments.

    Returns:
        Moments of the shape of the feature axes, all 0 without a value. The variance
        is infinite where a sum of squares overflows; where a sum of values does, both
        are not finite.
    """
    axes = other_axes(chunks.total.ndim, chunks.feature_axes)
    chunks_here = math.prod(chunks.total.shape[axis] for axis in axes)
    number = chunks_here * number_of_devices(devices)
    # A power of two costs no bit, and their total overflows no sooner than one of them.
    # A number that `jax.export` leaves open is no integer: one for many of them.
    many = max(number, 1) if isinstance(number, int) else 2**20
    unit = 2.0 ** -math.ceil(math.log2(many))
    added = [chunks.total, *chunks.squares]
    if chunks.is_masked:
        added.append(jnp.broadcast_to(chunks.num_samples, chunks.total.shape))
    parts = [
        jnp.sum(unit * part, axis=axes) for values in added for part in _parts(values)
    ]
    sums = sum_across(devices, parts)
    # TPUs have float64 as pairs of float32, which hold each of these products.
    with jax.enable_x64(True):
        total, *squares = (
            _in_float64(sums[first : first + _PARTS])
            for first in range(0, len(sums), _PARTS)
        )
        if chunks.is_masked:
            count = squares.pop()
        else:
            count = unit * jnp.full_like(total, chunks.num_samples * number)
        num_samples = (count / unit).astype(chunks.total.dtype)
        divisor = unit * jnp.maximum(num_samples, 1)
        shift = rounded_to_bfloat16(total.astype(divisor.dtype) / divisor)
        shift = jnp.where(jnp.isfinite(shift), shift, jnp.zeros_like(shift))
        around = shift.astype(jnp.float64)
        deviation = total - count * around
        square = sum(squares) - around * (total + deviation)
        offset = deviation.astype(divisor.dtype) / divisor
        var = square.astype(divisor.dtype) / divisor - jnp.square(offset)
    # The squares have overflowed; a NaN in x would be in the mean too.
    overflows = jnp.isnan(var) & jnp.isfinite(offset)
    var = jnp.where(overflows, jnp.full_like(var, jnp.inf), jnp.maximum(var, 0))
    return ShiftedMoments(num_samples, shift, offset, var)


def _parts(values: Array) -> list[Array]:
    """Numbers of 8 bits, the largest first, whose sum the values are."""
    parts = []
    for _ in range(_PARTS):
        parts.append(rounded_to_bfloat16(values))
        values = values - parts[-1]
    return parts


def _in_float64(parts: list[Array]) -> Array:
    """The sum of parts, with all their digits."""
    first, *others = (part.astype(jnp.float64) for part in parts)
    return sum(others, first)
