"""Average of neighbouring pixels, fast on a CPU as well."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

# Its annotations know no padding but a word.
_avg_pool: Callable[..., Array] = nn.avg_pool


def average_pool(
    x: Inexact[Array, "batch height width channels"],
    window: int,
    *,
    stride: int,
    padding: Sequence[tuple[int, int]],
) -> Inexact[Array, "batch output_height output_width channels"]:
    """Average of square windows, of which the zeros beyond the edges are part.

    The values and gradients are those of `flax.linen.avg_pool`. On a CPU shifted images
    are added up, rows first and then columns: XLA makes a loop of a window there that
    takes several times as long.

    Args:
        x: Pixels.
        window: Its height and width.
        stride: Pixels from one window to the next.
        padding: Zeros before the first and behind the last row and column.
    """
    return jax.lax.platform_dependent(
        x,
        cpu=partial(_add_up_shifted, window=window, stride=stride, padding=padding),
        default=lambda x: _avg_pool(
            x, (window, window), strides=(stride, stride), padding=padding
        ),
    )


def _add_up_shifted(
    x: Array, *, window: int, stride: int, padding: Sequence[tuple[int, int]]
) -> Array:
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    for axis in (1, 2):
        last = x.shape[axis] - window
        shifted = [
            jax.lax.slice_in_dim(x, i, i + last + 1, stride, axis)
            for i in range(window)
        ]
        x = sum(shifted[1:], shifted[0])
    return x / window**2
