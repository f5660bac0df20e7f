"""Batch Normalization as a Flax Linen module."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.batch_norm import batch_norm_with_moments


class BatchNorm(nn.Module):
    """Drop-in for `flax.linen.BatchNorm`: same fields, call, variables and defaults.

    A Flax checkpoint loads unchanged: `params` hold `scale` and `bias`,
    `batch_stats` hold `mean` and `var`. What differs is what Flax gets wrong: the
    variance does not cancel under a large mean, counts are exact under a mask, also
    across devices, a batch that is masked completely leaves the running statistics
    alone, and masked positions come back as 0.

    When the collection `batch_moments` is mutable, the layer also sows its
    `Moments` there as `moments`, a tuple with one entry a call;
    `bn_jax.population_statistics` reads them.

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2.

    Attributes:
        use_running_average: Normalize by the running statistics (inference) and not
            by the batch's; given here or in the call.
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1).
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the result; by default that of input and parameters promoted.
        param_dtype: Dtype of scale and bias; running statistics are always float32.
        use_bias: Whether a bias (beta) is added.
        use_scale: Whether the result is multiplied by a scale (gamma).
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Mapped axis or axes whose devices share one mean and variance.
        axis_index_groups: Groups of devices within that axis that share statistics.
        use_fast_variance: Accepted for Flax's sake; the variance is exact either way.
        force_float32_reductions: Accepted likewise; reductions always are in float32
            or wider.
    """

    use_running_average: bool | None = None
    axis: int | Sequence[int] = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: str | Sequence[str] | None = None
    axis_index_groups: Any = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @nn.compact
    def __call__(
        self,
        x: Inexact[Array, "*shape"],
        use_running_average: bool | None = None,
        *,
        mask: Bool[Array, "*#shape"] | None = None,
    ) -> Inexact[Array, "*shape"]:
        """Normalizes x, and updates the running statistics when training.

        Args:
            x: Activations.
            use_running_average: See the field; one of the two must be given.
            mask: True at the positions that count; the others reach nothing and come
                back as 0.

        Returns:
            Array of x's shape, in `dtype`. Initialization leaves the running
            statistics alone and needs no mapped axis.

        Raises:
            ValueError: If `use_running_average` is given twice or not at all, or as
                for `bn_jax.batch_norm`.
        """
        use_running_average = nn.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        x = jnp.asarray(x)
        features = [x.shape[axis] for axis in canonical_axes(x.ndim, self.axis)]
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        initializing = self.is_initializing()
        y, batch_stats, moments = batch_norm_with_moments(
            x.astype(jnp.promote_types(x.dtype, dtype)),
            scale,
            bias,
            {"mean": mean.value, "var": var.value},
            use_running_average=use_running_average,
            axis=self.axis,
            momentum=self.momentum,
            epsilon=self.epsilon,
            mask=mask,
            axis_name=None if initializing else self.axis_name,
            axis_index_groups=None if initializing else self.axis_index_groups,
        )
        if moments is not None and not initializing:
            mean.value, var.value = batch_stats["mean"], batch_stats["var"]
            self.sow("batch_moments", "moments", moments)
        return y.astype(dtype)
