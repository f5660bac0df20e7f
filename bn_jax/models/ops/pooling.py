"""Average and max pooling that are fast on a CPU too, as are their gradients."""

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
    """Averages square windows, including the zeros beyond the edges.

    Values and gradients equal those of `flax.linen.avg_pool`. On a CPU, XLA compiles
    Flax's pooling to a loop over each window, which takes several times as long as the
    sum of shifted images that is used there instead.

    Args:
        x: Pixels.
        window: Height and width of a window, in pixels.
        stride: Pixels from one window to the next.
        padding: Numbers of zeros before the first and after the last pixel, for rows
            and for columns.
    """

    def add_up(x: Array) -> Array:
        return _reduce_windows(jnp.add, x, window, stride, padding, 0.0) / window**2

    return _pool_by_platform(add_up, nn.avg_pool, x, window, stride, padding)


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: int,
    *,
    stride: int,
    padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
) -> Float[Array, "batch output_height output_width channels"]:
    """Returns the largest value of each square window, ignoring the padding.

    Values and gradients equal those of `flax.linen.max_pool`. If several pixels of a
    window are the largest, the first of them, row by row, gets the gradient. On a CPU,
    the maximum of shifted images replaces XLA's slow loop over each window.

    Args:
        x: Pixels.
        window: Height and width of a window, in pixels.
        stride: Pixels from one window to the next.
        padding: Numbers of ignored pixels before the first and after the last pixel,
            for rows and for columns.
    """

    def choose(x: Array) -> Array:
        return _reduce_windows(_first_largest, x, window, stride, padding, -jnp.inf)

    return _pool_by_platform(choose, nn.max_pool, x, window, stride, padding)


def _pool_by_platform(
    cpu_pool: Callable[[Array], Array],
    flax_pool: Callable[..., Array],
    x: Array,
    window: int,
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Array:
    def pool(x: Array) -> Array:
        return flax_pool(x, (window,) * 2, strides=(stride,) * 2, padding=padding)

    return jax.lax.platform_dependent(x, cpu=cpu_pool, default=pool)


def _reduce_windows(
    combine: Callable[[Array, Array], Array],
    x: Array,
    window: int,
    stride: int,
    padding: Sequence[tuple[int, int]],
    pad_value: float,
) -> Array:
    """Combines shifted images, first within the rows of each window, then its rows."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)), constant_values=pad_value)
    for axis in (2, 1):
        last = x.shape[axis] - window
        shifted = [
            jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis)
            for i in range(window)
        ]
        x = reduce(combine, shifted)
    return x


def _first_largest(one: Array, later: Array) -> Array:
    # NaN counts as larger than any number.
    return jnp.where((one >= later) | jnp.isnan(one), one, later)
