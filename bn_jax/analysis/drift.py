"""How far two sets of a layer's statistics lie apart."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Drift(NamedTuple):
    """Distance of statistics from a reference, root mean square over features.

    Attributes:
        mean: Of the means, in standard deviations of the reference.
        log_std: Of the natural logarithms of the standard deviations.
    """

    mean: Float[Array, ""]
    log_std: Float[Array, ""]


def statistics_drift(
    batch_stats: Mapping[str, Array],
    reference: Mapping[str, Array],
    *,
    epsilon: float = 1e-5,
) -> Drift:
    """How far the statistics of one layer lie from others of the same layer.

    Training normalizes by the batch, inference by the running statistics: where they
    lie far apart, the network that is evaluated is not the one that was trained.

    Args:
        batch_stats: `mean` and `var`, one value a feature.
        reference: The same, to compare with.
        epsilon: Added to variances, so that a dead feature does not count as far
            away; Flax's for the normalization by default.

    >>> zero_one = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> moved = {"mean": jnp.array([3.0, 4.0]), "var": jnp.ones(2)}
    >>> round(float(statistics_drift(moved, zero_one, epsilon=0.0).mean), 3)
    3.536
    """
    reference_var = reference["var"] + epsilon
    square = jnp.square(jnp.abs(batch_stats["mean"] - reference["mean"]))
    log_ratio = jnp.log((batch_stats["var"] + epsilon) / reference_var) / 2
    return Drift(
        mean=jnp.sqrt(jnp.mean(square / reference_var)),
        log_std=jnp.sqrt(jnp.mean(jnp.square(log_ratio))),
    )
