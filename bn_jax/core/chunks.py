"""Moments of bfloat16 values in one pass, from sums exact where any could cancel."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.axes import other_axes
from bn_jax.core.devices import Devices, number_of_devices, sum_across
from bn_jax.core.types import Batch, ShiftedMoments

# A bfloat16 has 8 bits and its square 16, a float32 24. So many squares add up
# exactly, and so many halves of squares, with two bits to spare.
_SQUARES = 2**8
_HALVES = 2**14
# Sums of fewer values take up too much beside these.
_FEWEST = 32
# Parts of 8 bits that a float32 has.
_PARTS = 3


class Chunks(NamedTuple):
    """A batch as sums over neighbours.

    Attributes:
        total: Sum of each chunk.
        squares: Sum of its squares; where two, their sum is.
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
    averaged = other_axes(x.ndim, feature_axes)
    chunk = dict.fromkeys(range(x.ndim), 1)
    for axis in reversed(averaged):
        size, most = x.shape[axis], _HALVES // math.prod(chunk.values())
        # A size that `jax.export` leaves open is no integer.
        if isinstance(size, int) and (size <= most or axis != averaged[0]):
            chunk[axis] = max(part for part in range(1, most + 1) if size % part == 0)
    num_samples = math.prod(chunk.values())
    if x.dtype != jnp.bfloat16 or num_samples < _FEWEST:
        return None
    whole = [axis for axis in averaged if x.shape[axis] == chunk[axis]]
    kept = [axis for axis in chunk if axis not in whole]

    def sums(values: Array) -> Array:
        parts = zip(values.shape, chunk.values(), strict=True)
        split = [length for size, part in parts for length in (size // part, part)]
        within = [2 * axis + 1 for axis in chunk] + [2 * axis for axis in whole]
        return jnp.sum(values.reshape(split), axis=within)

    wide = x.astype(jnp.float32)
    squares = [jnp.square(wide)]
    if num_samples > _SQUARES:
        half = _rounded(squares[0])
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


def moments_of_chunks(chunks: Chunks, devices: Devices) -> ShiftedMoments:
    """Mean and variance by one all-reduce, whatever the mean is.

    The sums are added up in parts of 8 bits, again exactly for 65,536 of them, over all
    examples and devices; what cancels is subtracted with all its digits thereafter.

    Args:
        chunks: Sums of the values on this device.
        devices: Devices that share the moments.
    """
    axes = other_axes(chunks.total.ndim, chunks.feature_axes)
    sums = [
        jnp.sum(part, axis=axes)
        for values in (chunks.total, *chunks.squares)
        for part in _parts(values)
    ]
    if chunks.is_masked:
        counts = jnp.broadcast_to(chunks.num_samples, chunks.total.shape)
        sums.append(jnp.sum(counts, axis=axes))
    chunks_of_each = chunks.total.size // max(sums[0].size, 1)
    sums = sum_across(devices, sums)
    if chunks.is_masked:
        num_samples = sums.pop()
    else:
        here = chunks.num_samples * chunks_of_each
        num_samples = jnp.full_like(sums[0], here * number_of_devices(devices))
    divisor = jnp.maximum(num_samples, 1)
    shift = _rounded(sum(sums[:_PARTS]) / divisor)
    shift = jnp.where(jnp.isfinite(shift), shift, jnp.zeros_like(shift))
    # TPUs have float64 as pairs of float32, which hold each of these products.
    with jax.enable_x64(True):
        wide = [part.astype(jnp.float64) for part in sums]
        total, squares = sum(wide[:_PARTS]), sum(wide[_PARTS:])
        around = shift.astype(jnp.float64)
        deviation = total - num_samples.astype(jnp.float64) * around
        squares = squares - around * (total + deviation)
        deviation, squares = (
            value.astype(shift.dtype) for value in (deviation, squares)
        )
    offset = deviation / divisor
    var = jnp.maximum(squares / divisor - jnp.square(offset), 0)
    # The squares have overflowed; a NaN in x would be in the mean too.
    overflows = jnp.isnan(var) & jnp.isfinite(offset)
    var = jnp.where(overflows, jnp.full_like(var, jnp.inf), var)
    return ShiftedMoments(num_samples, shift, offset, var)


def _parts(values: Array) -> list[Array]:
    """Numbers of 8 bits, the largest first, whose sum the values are."""
    parts = []
    for _ in range(_PARTS):
        parts.append(_rounded(values))
        values = values - parts[-1]
    return parts


def _rounded(values: Array) -> Array:
    """To the 8 bits of a bfloat16, of which one is not written down."""
    return jax.lax.reduce_precision(values, exponent_bits=8, mantissa_bits=7)
