"""Sums of bfloat16 values that lose no digit, from which any pass can be made."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.axes import expand_to_rank, other_axes
from bn_jax.core.types import Batch

# A bfloat16 has 8 bits and its square 16, a float32 24. So many squares add up
# exactly, and so many halves of squares.
_SQUARES = 2**8
_HALVES = 2**14
# Sums of fewer values take up too much beside these.
_FEWEST = 32


class Chunks(NamedTuple):
    """A batch as sums over neighbours in an example; closed over, as that is.

    Attributes:
        total: Sum of each chunk.
        squares: Sum of its squares; where two, their sum is.
        num_samples: Values of each chunk, an array where there is a mask.
        feature_axes: Axes of these that are not averaged over.
        size: Number of all values; no integer where `jax.export` leaves it open.
    """

    total: Float[Array, "*chunks"]
    squares: list[Float[Array, "*chunks"]]
    num_samples: int | Float[Array, "*#chunks"]
    feature_axes: tuple[int, ...]
    size: Any

    @property
    def is_masked(self) -> bool:
        """Whether there is a mask."""
        return not isinstance(self.num_samples, int)


def in_chunks(batch: Batch) -> Chunks | None:
    """The sums of bfloat16 values over the positions of each example.

    They need no shift. Values whose mean is many standard deviations from 0 have
    nearly the same exponent, and their sums are exact. Where values differ by more,
    nothing cancels. The squares of some 1e17 overflow.

    Args:
        batch: Activations, with examples along the first axis that is averaged over.
            These stay apart, for devices share them out.

    Returns:
        None where the dtype is another, or an example has too few positions.
    """
    x, feature_axes, mask = batch
    positions = other_axes(x.ndim, feature_axes)[1:]
    chunk = dict.fromkeys(range(x.ndim), 1)
    for axis in reversed(positions):
        size = x.shape[axis]
        # A size that `jax.export` leaves open is no integer.
        if isinstance(size, int):
            most = _HALVES // math.prod(chunk.values())
            chunk[axis] = max(part for part in range(1, most + 1) if size % part == 0)
    num_samples = math.prod(chunk.values())
    if x.dtype != jnp.bfloat16 or num_samples < _FEWEST:
        return None
    whole = [axis for axis in positions if x.shape[axis] == chunk[axis]]
    kept = [axis for axis in chunk if axis not in whole]

    def sums(values: Array) -> Array:
        parts = zip(values.shape, chunk.values(), strict=True)
        split = [length for size, part in parts for length in (size // part, part)]
        within = [2 * axis + 1 for axis in chunk] + [2 * axis for axis in whole]
        return jnp.sum(values.reshape(split), axis=within)

    wide = x.astype(jnp.float32)
    squares = [jnp.square(wide)]
    if num_samples > _SQUARES:
        half = jax.lax.reduce_precision(squares[0], exponent_bits=8, mantissa_bits=7)
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
        x.size,
    )


def shift_of_chunks(shift: Float[Array, "*features"]) -> Float[Array, "*features"]:
    """The nearest bfloat16: no farther from the mean of such than they deviate.

    Args:
        shift: Of which dtype the result is.
    """
    return jax.lax.reduce_precision(shift, exponent_bits=8, mantissa_bits=7)


def sums_of_chunks(
    chunks: Chunks, shift: Float[Array, "*features"], unit: float = 1.0
) -> list[Float[Array, "*features"]]:
    """What `sums_around` gives of the values themselves.

    Args:
        chunks: Sums of the values.
        shift: With the digits of a bfloat16, so that each product has all of its own.
        unit: See there.
    """
    total, squares, num_samples, feature_axes, _ = chunks
    shift = expand_to_rank(shift, feature_axes, total.ndim)
    deviation = total - num_samples * shift
    twice = total + deviation
    half = jax.lax.reduce_precision(twice, exponent_bits=8, mantissa_bits=11)
    # Largest first: what is left of each difference is small, and exact.
    around = squares[0] - shift * half
    for part in squares[1:]:
        around += part
    around -= shift * (twice - half)
    axes = other_axes(total.ndim, feature_axes)
    sums = [jnp.sum(values * unit**2, axis=axes) for values in (deviation, around)]
    if chunks.is_masked:
        counts = jnp.broadcast_to(num_samples, total.shape)
        sums.append(jnp.sum(counts, axis=axes))
    return sums
