"""Batch Normalization as a Flax Linen module."""

# Some fields accept more than Flax's: several axes, traced settings, momentum=None.
# pyright: reportIncompatibleVariableOverride=false

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
from bn_jax.core.validation import errors_naming, raise_value_error
from bn_jax.layers.precision import promote_without_rounding


class ImmutableBatchStatsError(flax.errors.ModifyScopeVariableError):
    """Error for running statistics that need an update but are not mutable.

    It is a `ModifyScopeVariableError`, which Flax raises, with remedies in its message.
    """

    def __init__(self, where: str) -> None:
        """Creates the error for one layer.

        Args:
            where: Path of the layer.
        """
        Exception.__init__(
            self,
            f"{where}: the layer must update its running statistics, but the "
            "collection 'batch_stats' is not mutable. Call apply with "
            "mutable=['batch_stats'] and keep the collections that it returns, or "
            "normalize by the running statistics (use_running_average=True), or do "
            "not update them (update_running_average=False).",
        )


class BatchNorm(nn.BatchNorm):
    """Drop-in replacement for `flax.linen.BatchNorm`, with accurate statistics.

    The layer is a subclass of Flax's, with its fields, call, variables and defaults.
    Flax's checkpoints load unchanged: `params` hold `scale` and `bias`, `batch_stats`
    hold `mean` and `var`. The layer behaves differently where Flax's is wrong:

    - The variance stays accurate when the mean is large.
    - With a mask, the number of valid values is exact, also across devices.
    - A batch that is masked completely does not change the running statistics.
    - Masked positions of the result are 0.
    - A batch with one value per feature, running statistics of the wrong shape and a
      momentum of 1 or more raise an error.

    If the caller lists `batch_moments` in `mutable`, the layer also sows its `Moments`
    there, as `moments`: a tuple with one entry per call.
    `bn_jax.population_statistics` and `bn_jax.accumulate_batch_stats` read them.

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2.

    The first five attributes are new; as arguments they come last.

    Attributes:
        update_running_average: True updates the running statistics from the batch,
            False does not. None updates them only if the batch is normalized by its
            own statistics. Without an update, `batch_stats` need not be mutable.
        group_size: Number of consecutive examples that share statistics, on any number
            of devices; None for the whole batch.
        variance_correction: 0 keeps running averages of the biased variance, 1 of the
            unbiased variance, which is m / (m - 1) times as large for m values.
        debias: True removes the initial values from the running statistics: the first
            batch replaces them. Both `debias` and `momentum=None` add a leaf `count`,
            the number of batches, to `batch_stats`. A checkpoint without `count` still
            loads: with `debias` its statistics count as the average of many batches,
            and with `momentum=None` a new average starts.
        skip_nonfinite: True leaves all running statistics unchanged if the batch's
            mean or variance of any feature is not finite.
        use_running_average: True normalizes by the running statistics (inference),
            False by the batch's statistics (training). Give it here or in the call.
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            0.99 is slow. None averages all batches with equal weight.
        epsilon: Added to the variance, inside the root.
        dtype: Dtype of the result; None promotes the dtypes of input and parameters.
        param_dtype: Dtype of scale and bias. Running statistics are always float32.
        use_bias: True adds a bias (beta) to the result.
        use_scale: True multiplies the result by a scale (gamma).
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Mapped axis or axes whose devices share one mean and variance.
        axis_index_groups: Groups of devices, as indices along `axis_name`; each group
            has its own statistics.
        use_fast_variance: Accepted for compatibility with Flax, and ignored: the
            variance is accurate either way.
        force_float32_reductions: Accepted for compatibility with Flax, and ignored:
            reductions are always in float32 or wider.
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
        """Normalizes x, and updates the running statistics in training.

        Initialization does not update the running statistics and needs no mapped axis.

        Args:
            x: Activations, of any shape with the feature axes.
            use_running_average: True normalizes by the running statistics (inference),
                False by the batch's (training). Give it here or as the field, not
                both. May be traced.
            mask: True at the valid positions, of a shape that broadcasts to x; None if
                all are valid. Other positions have no influence, not even as NaN, and
                are 0 in the result.

        Returns:
            Array of x's shape, in `dtype`.

        Raises:
            ValueError: If `use_running_average` is given twice or not at all, and in
                all cases that `bn_jax.batch_norm` lists. The message begins with the
                layer's path.
            NameError: If the batch's statistics are needed and no pmap, shard_map or
                vmap around the call has an axis `axis_name`.
            ImmutableBatchStatsError: If the running statistics must be updated and
                `batch_stats` is not mutable.
        """
        x = jnp.asarray(x)
        with errors_naming(_layer_name(self)):
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
            stats["count"] = self._batch_count(is_new=is_new)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, features, self.param_dtype)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, features, self.param_dtype)
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        initializing = self.is_initializing()
        on_single_value = _accept_single_value if initializing else raise_value_error
        with errors_naming(_layer_name(self)):
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
                promote_without_rounding(x, dtype),
                scale,
                bias,
                stats,
                config,
                use_running_average=use_running_average,
                update_running_average=self.update_running_average,
                momentum=self.momentum,
                mask=mask,
                on_single_value=on_single_value,
            )
        if moments is not None and not initializing:
            if batch_stats is not None and not is_off(self.update_running_average):
                self._store(batch_stats)
            if self._should_sow_moments():
                self.sow("batch_moments", "moments", moments)
                self.sow("batch_moments", "num_values", num_values)
        return y.astype(dtype)

    def _should_sow_moments(self) -> bool:
        # Sow only if the caller lists `batch_moments`. `mutable=True` and a `DenyList`
        # do not count: a loop that feeds all variables back would make them grow,
        # which does not happen with Flax's layer.
        mutable = self.scope.mutable if self.scope else False
        return mutable is not True and not isinstance(mutable, DenyList)

    def _batch_count(self, *, is_new: bool) -> Array:
        """Returns the number of batches behind the running statistics."""
        # New statistics have seen no batch. Statistics that were loaded without a count
        # have long forgotten their initial values, so debiasing must not change them.
        # A cumulative average (momentum=None) starts again from 0 batches.
        starts = is_new or self.momentum is None
        count = jnp.asarray(0.0 if starts else LARGEST_COUNT, jnp.float32)
        if self.is_mutable_collection("batch_stats"):
            return self.variable("batch_stats", "count", lambda: count).value
        return self.get_variable("batch_stats", "count", count)

    def _store(self, batch_stats: Mapping[str, Array]) -> None:
        if not self.is_mutable_collection("batch_stats"):
            raise ImmutableBatchStatsError(_layer_name(self))
        for name, value in batch_stats.items():
            self.put_variable("batch_stats", name, value)


def _accept_single_value(_: str) -> None:
    """Accepts a batch with one value per feature, as initialization needs."""


def _layer_name(layer: nn.Module) -> str:
    return "/".join(layer.path) or type(layer).__name__
