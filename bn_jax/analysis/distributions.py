"""Percentiles of the inputs of a layer's units, and the choice of a typical unit."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# The percentiles of Figures 1b and 1c.
PERCENTILES = (15, 50, 85)


def unit_percentiles(
    inputs: Float[Array, "examples *units"],
    percentiles: Sequence[float] = PERCENTILES,
) -> Float[Array, "percentiles *units"]:
    """Returns percentiles over the examples, for each unit separately.

    Source: Ioffe & Szegedy (2015), Figures 1b and 1c.

    Args:
        inputs: Input of each unit for each example.
        percentiles: In [0, 100]; the default is the paper's 15, 50 and 85.

    Returns:
        One row per percentile, in the order of `percentiles`.

    >>> unit_percentiles(jnp.arange(101.0)[:, None])[:, 0].round()
    Array([15., 50., 85.], dtype=float32)
    """
    return jnp.percentile(inputs, jnp.asarray(percentiles, jnp.float32), axis=0)


def typical_unit(percentiles: Float[Array, "percentiles units"]) -> Int[Array, ""]:
    """Returns the index of the unit whose spread is the median of its layer.

    The paper shows "one typical sigmoid" and does not say how it was chosen. The
    spread is the difference between the last and the first percentile. For an even
    number of units the lower median is taken, so the result is always one of the units.

    Args:
        percentiles: Percentiles of one layer, as `unit_percentiles` returns them.

    >>> typical_unit(jnp.array([[0.0, 0.0, 0.0], [9.0, 1.0, 5.0]])).item()
    2
    """
    spread = percentiles[-1] - percentiles[0]
    return jnp.argsort(spread)[(spread.shape[0] - 1) // 2]
