"""Poolings that are fast on a CPU as well, with their gradients."""

from collections.abc import Callable, Sequence
from functools import reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def average_pool(
    x: Float[Array, "batch height width channels"],
    window: int,
    *,
    stride: int,
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "batch output_height output_width channels"]:
    """Average of square windows, of which the zeros beyond the edges are part.

    The values and gradients are those of `flax.linen.avg_pool`. XLA makes a loop of
    every window, which a CPU takes several times as long for as for the sum of shifted
    images that it gets here.

    Args:
        x: Pixels.
        window: Its height and width.
        stride: Pixels from one window to the next.
        padding: Zeros before the first and behind the last row and column.
    """

    def add_up(x: Array) -> Array:
        return _join_shifted(jnp.add, x, window, stride, padding, 0.0) / window**2

    return _on_cpu(add_up, nn.avg_pool, x, window, stride, padding)


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int,
    *,
    stride: int,
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "batch output_height output_width channels"]:
    """Largest value of square windows; what lies beyond the edges is smaller than any.

    The values and gradients are those of `flax.linen.max_pool`, also where several
    pixels are the largest: the first of them, row by row, gets the gradient. For a CPU
    see `average_pool`.

    Args:
        x: Pixels.
        window: Its height and width.
        stride: Pixels from one window to the next.
        padding: Pixels before the first and behind the last row and column.
    """

    def choose(x: Array) -> Array:
        return _join_shifted(_first_largest, x, window, stride, padding, -jnp.inf)

    return _on_cpu(choose, nn.max_pool, x, window, stride, padding)


def _on_cpu(
    ours: Callable[[Array], Array],
    of_flax: Callable[..., Array],
    x: Array,
    window: int,
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Array:
    def pool(x: Array) -> Array:
        return of_flax(x, (window,) * 2, strides=(stride,) * 2, padding=padding)

    return jax.lax.platform_dependent(x, cpu=ours, default=pool)


def _join_shifted(
    join: Callable[[Array, Array], Array],
    x: Array,
    window: int,
    stride: int,
    padding: Sequence[tuple[int, int]],
    beyond: float,
) -> Array:
    """The pixels of each window, joined within its rows first."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=beyond)
    for axis in (2, 1):
        last = x.shape[axis] - window
        shifted = [
            jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis)
            for i in range(window)
        ]
        x = reduce(join, shifted)
    return x


def _first_largest(one: Array, later: Array) -> Array:
    # NaN is larger than any.
    return jnp.where((one >= later) | jnp.isnan(one), one, later)
