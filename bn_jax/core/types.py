"""The records that the functions of the core exchange."""

from typing import NamedTuple, TypedDict

from jaxtyping import Array, Float, Inexact


class BatchStats(TypedDict):
    """What Flax keeps for one layer in its mutable `batch_stats` collection.

    Attributes:
        mean: Running mean of each feature.
        var: Running variance of each feature.
    """

    mean: Inexact[Array, "*features"]
    var: Float[Array, "*features"]


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
