"""Distance between two sets of statistics of one layer."""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class Drift(NamedTuple):
    """Distance of statistics from a reference, as root mean square over features.

    Attributes:
        mean: Distance of the means, in standard deviations of the reference.
        log_std: Distance of the natural logarithms of the standard deviations.
    """

    mean: Float[Array, ""]
    log_std: Float[Array, ""]


def statistics_drift(
    batch_stats: Mapping[str, Array],
    reference: Mapping[str, Array],
    *,
    epsilon: float = 1e-5,
) -> Drift:
    """Computes the distance between two sets of statistics of one layer.

    Training normalizes by the batch, inference by the running statistics. If the two
    differ much, the network that is evaluated is not the network that was trained.

    Args:
        batch_stats: `mean` and `var`, one value per feature.
        reference: `mean` and `var` to compare with, of the same shape.
        epsilon: Added to both variances, so that a feature that is almost constant does
            not dominate the distance. The default is Flax's epsilon in BatchNorm.

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
