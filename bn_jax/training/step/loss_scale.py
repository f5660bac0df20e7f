"""Scale of the loss in float16, whose small gradients would otherwise become 0."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# The largest power of two of a float16 is 2^15; the mean over a batch makes the
# gradients of the scores smaller than the scale. An overflow halves it.
_FIRST_SCALE = 2.0**16
# This factor brings gradients of 2^-48 into the range of a float16.
_LARGEST_SCALE = 2.0**24
_GROWTH_STEPS = 2_000


class LossScale(NamedTuple):
    """Factor of the loss, which the gradients are divided by before they are used.

    Attributes:
        scale: The factor, a power of two, so that the division is exact.
        finite_steps: Finite steps since the factor changed.
    """

    scale: Float[Array, ""]
    finite_steps: Int[Array, ""]


def new_loss_scale() -> LossScale:
    """Returns the scale before the first step."""
    return LossScale(jnp.float32(_FIRST_SCALE), jnp.zeros((), jnp.int32))


def next_loss_scale(old: LossScale, *, is_finite: Bool[Array, ""]) -> LossScale:
    """Returns the scale for the next step.

    It halves after a step that is not finite, down to 1, and doubles after 2,000 finite
    steps, up to 2^24. First scale, factors and number of steps are those of
    `flax.training.dynamic_scale.DynamicScale`, which cannot be used itself: it changes
    in each microbatch, and judges a step by its gradients alone.
    Source: Micikevicius et al. (2018), Mixed Precision Training, section 3.2.

    Args:
        old: Scale of the step.
        is_finite: True if all values of the step are finite.

    >>> scale = next_loss_scale(new_loss_scale(), is_finite=jnp.array(False))
    >>> float(scale.scale)
    32768.0
    """
    steps = jnp.where(is_finite, old.finite_steps + 1, 0)
    grows = steps == _GROWTH_STEPS
    kept = jnp.where(grows, jnp.minimum(old.scale * 2, _LARGEST_SCALE), old.scale)
    scale = jnp.where(is_finite, kept, jnp.maximum(old.scale / 2, 1.0))
    return LossScale(scale, jnp.where(grows, 0, steps))


def is_overflow(scale: LossScale, bad_value: Int[Array, ""]) -> Bool[Array, ""]:
    """Returns True if a smaller scale may mend a step that is not finite.

    The loss itself is finite then, and the scale is above 1.

    Args:
        scale: Scale of the step.
        bad_value: Result of `first_nonfinite`.
    """
    return (bad_value > 0) & (scale.scale > 1)
