"""The records that the functions of the core exchange."""

from typing import NamedTuple

from jaxtyping import Array, Float, Inexact

# What Flax keeps for one layer in its mutable `batch_stats` collection: the running
# `mean` and `var` of each feature, and `count`, the number of batches behind them,
# for averages that need to know it.
BatchStats = dict[str, Array]


class Moments(NamedTuple):
    """Mean and variance of each feature, with the number of values behind them.

    The three travel together because only with the number can the moments of two
    parts be merged exactly, or a variance be corrected.

    Attributes:
        num_samples: Values that were averaged, per feature; 0 where a mask left none.
        mean: Their mean; 0 where there are none.
        var: Their biased variance (divided by `num_samples`); 0 where there are none.
    """

    num_samples: Float[Array, "*features"]
    mean: Inexact[Array, "*features"]
    var: Float[Array, "*features"]
