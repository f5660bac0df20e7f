"""Types of the values that core functions exchange."""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

# Running statistics of one layer, as in Flax's mutable `batch_stats` collection: `mean`
# and `var` of each feature. Averages that depend on the number of batches so far also
# keep it, as `count`.
BatchStats = dict[str, Array]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NumValues:
    """Number of values that share a mean, masked ones included, as shapes give it.

    The number is static: it is part of a pytree's structure, and not a leaf.

    Attributes:
        value: The number; a symbolic expression if `jax.export` leaves a size open.
    """

    value: Hashable


class Moments(NamedTuple):
    """Mean and variance of each feature, with the number of values behind them.

    The number belongs to them because an exact merge of moments, and the correction of
    a variance, need it.

    Attributes:
        num_samples: Number of averaged values per feature; 0 where a mask left none.
        mean: Mean of these values; 0 if there are none.
        var: Biased variance (divided by `num_samples`); 0 if there are no values.
    """

    num_samples: Float[Array, "*features"]
    mean: Inexact[Array, "*features"]
    var: Float[Array, "*features"]


class ShiftedMoments(NamedTuple):
    """Moments whose mean is the sum of two numbers, which together have more digits.

    A float32 mean of 10 000 standard deviations has an error of 5e-4 standard
    deviations, and the normalized values would have that error too.

    Attributes:
        num_samples: Number of averaged values per feature.
        shift: Number within a few standard deviations of the mean.
        offset: Mean minus `shift`.
        var: Biased variance.
    """

    num_samples: Float[Array, "*features"]
    shift: Inexact[Array, "*features"]
    offset: Inexact[Array, "*features"]
    var: Float[Array, "*features"]

    @property
    def mean(self) -> Inexact[Array, "*features"]:
        """Mean as one number; if the offset overflowed, infinite or NaN like `var`."""
        mean = self.shift + self.offset
        return jnp.where(jnp.isfinite(self.offset), mean, self.var.astype(mean.dtype))

    def rounded(self) -> Moments:
        """Returns the moments with the mean as one number."""
        return Moments(self.num_samples, self.mean, self.var)

    def finite_shift_and_offset(self) -> tuple[Inexact[Array, "*features"], ...]:
        """Returns the shift and the offset, or two zeros if the offset overflowed.

        Both are subtracted from x, and subtracting an infinite number would give NaN.
        After an overflow the variance is infinite or NaN too, and determines the
        normalized values.
        """
        is_finite, zero = jnp.isfinite(self.offset), jnp.zeros_like(self.shift)
        return tuple(jnp.where(is_finite, n, zero) for n in (self.shift, self.offset))
