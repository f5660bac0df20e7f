"""Batch Normalization as a Flax Linen module."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax.numpy as jnp
from flax.core import DenyList
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype, Initializer
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.config import make_config
from bn_jax.core.operator import batch_norm_with_moments
from bn_jax.core.running import LARGEST_COUNT
from bn_jax.core.traced_settings import is_off
from bn_jax.core.validation import errors_naming, refuse
from bn_jax.layers.precision import unrounded


class ImmutableBatchStatsError(flax.errors.ModifyScopeVariableError):
    """Running statistics must be updated, and their collection is not mutable.

    Flax's own error for that, with the way out.
    """

    def __init__(self, where: str) -> None:
        """Says which layer it is.

        Args:
            where: Path of the layer.
        """
        Exception.__init__(
            self,
            f"{where}: batch_norm updates its running statistics in training, and the "
            "collection 'batch_stats' is not mutable. Call apply with "
            "mutable=['batch_stats'] and keep what it returns, normalize by the "
            "running statistics (use_running_average=True), or leave them as they are "
            "(update_running_average=False).",
        )


class BatchNorm(nn.Module):
    """Drop-in for `flax.linen.BatchNorm`: its fields, call, variables and defaults.

    A Flax checkpoint loads unchanged: `params` hold `scale` and `bias`,
    `batch_stats` hold `mean` and `var`. What differs is what Flax gets wrong: the
    variance does not cancel under a large mean, counts are exact under a mask, also
    across devices, a batch that is masked completely leaves the running statistics
    alone, masked positions come back as 0; and a batch with one value a feature,
    statistics of another shape and a momentum of 1 or more are refused.

    When `batch_moments` is named among the mutable collections, the layer also sows its
    `Moments` there as `moments`, a tuple with one entry a call;
    `bn_jax.population_statistics` and `bn_jax.accumulate_batch_stats` read them.

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2.

    Attributes:
        use_running_average: Normalize by the running statistics (inference) and not
            by the batch's; given here or in the call.
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            None averages over all batches alike.
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
        force_float32_reductions: Accepted for Flax's sake; reductions are in float32
            or wider.
        update_running_average: Whether a batch moves the running statistics; by
            default when it is normalized by its own. Without an update `batch_stats`
            need not be mutable.
        group_size: Consecutive examples that share statistics, on any number of
            devices; the whole batch by default.
        variance_correction: 0 for running averages of the biased variance, 1 of the
            unbiased one.
        debias: Whether the running statistics forget their initial values at the
            first batch. Adds a leaf `count` to `batch_stats`, as `momentum=None`
            does; a checkpoint without it loads and counts as far advanced
            (debias) or as new (momentum=None).
        skip_nonfinite: Whether a batch whose mean or variance is not finite leaves
            the running statistics alone.
    """

    use_running_average: bool | Bool[Array, ""] | None = None
    axis: int | Sequence[int] = -1
    momentum: float | Float[Array, ""] | None = 0.99
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
    update_running_average: bool | None = None
    group_size: int | None = None
    variance_correction: int = 0
    debias: bool = False
    skip_nonfinite: bool = False

    @nn.compact
    def __call__(
        self,
        x: Inexact[Array, "*shape"],
        use_running_average: bool | Bool[Array, ""] | None = None,
        *,
        mask: Bool[Array, "*#shape"] | None = None,
    ) -> Inexact[Array, "*shape"]:
        """Normalizes x, and updates the running statistics when training.

        Args:
            x: Activations.
            use_running_average: See the field; one of the two must be given. May be
                traced.
            mask: True at the positions that count; the others reach nothing and come
                back as 0.

        Returns:
            Array of x's shape, in `dtype`. Initialization leaves the running
            statistics alone and needs no mapped axis.

        Raises:
            ValueError: If `use_running_average` is given twice or not at all, or as
                for `bn_jax.batch_norm`; the message begins with the layer's path.
            NameError: If `axis_name` is not bound.
            ImmutableBatchStatsError: If the running statistics must be updated and
                `batch_stats` is not mutable.
        """
        x = jnp.asarray(x)
        with errors_naming(_where(self)):
            use_running_average = nn.merge_param(
                "use_running_average", self.use_running_average, use_running_average
            )
            axes = canonical_axes(x.ndim, self.axis)
        features = [x.shape[axis] for axis in axes]
        is_new = not self.has_variable("batch_stats", "mean")
        mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        stats = {"mean": mean.value, "var": var.value}
        if self.debias or self.momentum is None:
            stats["count"] = self._count(is_new=is_new)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        initializing = self.is_initializing()
        with errors_naming(_where(self)):
            config = make_config(
                axis=axes,
                epsilon=self.epsilon,
                axis_name=None if initializing else self.axis_name,
                axis_index_groups=None if initializing else self.axis_index_groups,
                group_size=None if initializing else self.group_size,
                variance_correction=self.variance_correction,
                debias=self.debias,
                skip_nonfinite=self.skip_nonfinite,
            )
            y, batch_stats, moments, num_values = batch_norm_with_moments(
                unrounded(x, dtype),
                scale,
                bias,
                stats,
                config,
                use_running_average=use_running_average,
                update_running_average=self.update_running_average,
                momentum=self.momentum,
                mask=mask,
                on_single_value=_accept if initializing else refuse,
            )
        if moments is not None and not initializing:
            if batch_stats is not None and not is_off(self.update_running_average):
                self._store(batch_stats)
            if self._is_asked_for_moments():
                self.sow("batch_moments", "moments", moments)
                self.sow("batch_moments", "num_values", num_values)
        return y.astype(dtype)

    def _is_asked_for_moments(self) -> bool:
        # Sow only if `batch_moments` is listed explicitly. `mutable=True` does not
        # count: in a loop with it the variables of Flax's layer do not grow.
        mutable = self.scope.mutable if self.scope else False
        return mutable is not True and not isinstance(mutable, DenyList)

    def _count(self, *, is_new: bool) -> Array:
        """Returns the batches behind the running statistics, known or assumed."""
        # New statistics start at 0. Statistics that a checkpoint brings without a count
        # have long forgotten their initial values; a cumulative average starts anew.
        starts = is_new or self.momentum is None
        count = jnp.asarray(0.0 if starts else LARGEST_COUNT, jnp.float32)
        if self.is_mutable_collection("batch_stats"):
            return self.variable("batch_stats", "count", lambda: count).value
        return self.get_variable("batch_stats", "count", count)

    def _store(self, batch_stats: Mapping[str, Array]) -> None:
        if not self.is_mutable_collection("batch_stats"):
            raise ImmutableBatchStatsError(_where(self))
        for name, value in batch_stats.items():
            self.put_variable("batch_stats", name, value)


def _accept(_: str) -> None:
    """Lets one value a feature pass, as initialization by a single example needs."""


def _where(layer: nn.Module) -> str:
    return "/".join(layer.path) or type(layer).__name__
