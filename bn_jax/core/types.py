"""Records that the functions of the core exchange."""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

# Flax keeps these for one layer in its mutable `batch_stats` collection: the running
# `mean` and `var` of each feature, and `count`, the number of batches behind them,
# for averages that need to know it.
BatchStats = dict[str, Array]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NumValues:
    """Number of values that share a mean, masked ones included, as shapes give it.

    It is static: part of a pytree's structure, and not one of its leaves.

    Attributes:
        value: The number; an expression where `jax.export` leaves a size open.
    """

    value: Hashable


class Moments(NamedTuple):
    """Mean and variance of each feature, with the number of values behind them.

    The three travel together: only with the number can the moments of two parts be
    merged exactly, or a variance be corrected.

    Attributes:
        num_samples: Values that were averaged, per feature; 0 where a mask left none.
        mean: Their mean; 0 where there are none.
        var: Their biased variance (divided by `num_samples`); 0 where there are none.
    """

    num_samples: Float[Array, "*features"]
    mean: Inexact[Array, "*features"]
    var: Float[Array, "*features"]


class ShiftedMoments(NamedTuple):
    """Moments whose mean is the sum of two numbers, which together have more digits.

    Beside a mean of 10 000 standard deviations a float32 has an error of 5e-4 standard
    deviations, and the normalized values would have that error too.

    Attributes:
        num_samples: Values that were averaged, per feature.
        shift: A number within a few standard deviations of the mean.
        offset: The mean minus `shift`.
        var: Their biased variance.
    """

    num_samples: Float[Array, "*features"]
    shift: Inexact[Array, "*features"]
    offset: Inexact[Array, "*features"]
    var: Float[Array, "*features"]

    @property
    def mean(self) -> Inexact[Array, "*features"]:
        """The mean as one number; infinite or NaN, as the variance, if it overflows."""
        mean = self.shift + self.offset
        return jnp.where(jnp.isfinite(self.offset), mean, self.var.astype(mean.dtype))

    def rounded(self) -> Moments:
        """Returns the moments with the mean as one number."""
        return Moments(self.num_samples, self.mean, self.var)

    def center(self) -> tuple[Inexact[Array, "*features"], ...]:
        """Returns shift and offset to subtract from x; 0 for an offset that overflowed.

        A difference from an infinite number would be NaN. The variance is infinite or
        NaN there too, and decides what the normalized values are.
        """
        is_finite, zero = jnp.isfinite(self.offset), jnp.zeros_like(self.shift)
        return tuple(jnp.where(is_finite, of, zero) for of in (self.shift, self.offset))
