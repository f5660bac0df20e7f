"""The records that the functions of the core exchange."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Inexact

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


class Batch(NamedTuple):
    """Values of which moments are made; closed over, for its axes are no arrays.

    Attributes:
        x: Activations, zero where the mask is False.
        feature_axes: Canonical axes that are not averaged over.
        mask: True at the positions that count, of x's rank; None for all.
    """

    x: Inexact[Array, "*shape"]
    feature_axes: tuple[int, ...]
    mask: Bool[Array, "*#shape"] | None


class Guess(NamedTuple):
    """What is expected of a batch; no result depends on it but for rounding.

    Attributes:
        mean: A number near the mean of each feature, the same on all devices that take
            part in one all-reduce.
        is_near_zero: Whether all means are expected within a standard deviation of 0.
    """

    mean: Inexact[Array, "*features"]
    is_near_zero: bool | Bool[Array, ""] = False


class ShiftedMoments(NamedTuple):
    """Moments whose mean is the sum of two numbers, for the digits that one lacks.

    Beside a mean of 10 000 standard deviations a float32 keeps 5e-4 of one, and the
    normalized values could be no better.

    Attributes:
        num_samples: Values that were averaged, per feature.
        shift: A number near the mean.
        offset: What the mean is beyond it.
        var: Their biased variance.
    """

    num_samples: Float[Array, "*features"]
    shift: Inexact[Array, "*features"]
    offset: Inexact[Array, "*features"]
    var: Float[Array, "*features"]

    @property
    def mean(self) -> Inexact[Array, "*features"]:
        """The mean as one number."""
        return self.shift + self.offset

    def rounded(self) -> Moments:
        """The same with the mean as one number."""
        return Moments(self.num_samples, self.mean, self.var)
