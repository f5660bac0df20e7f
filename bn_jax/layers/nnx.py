"""Batch Normalization as a Flax NNX module."""

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from flax.typing import Dtype, Initializer, PromoteDtypeFn
from jax.nn import initializers
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.config import BatchNormConfig, make_config
from bn_jax.core.operator import batch_norm_with_moments
from bn_jax.core.traced_settings import is_off
from bn_jax.core.validation import check_momentum, errors_naming
from bn_jax.layers.precision import promote_without_rounding, promoted_dtype

# Flax's defaults are `zeros_init()` and `ones_init()`, which return these functions.
_zeros, _ones = initializers.zeros, initializers.ones


class BatchMoments(nnx.Intermediate):
    """Variable type of the moments that a layer sows: a tuple, one entry per call."""


class BatchNorm(nnx.BatchNorm):
    """Drop-in replacement for `flax.nnx.BatchNorm`, with accurate statistics.

    The layer is a subclass of Flax's, with its arguments, state and defaults. Flax's
    states load unchanged. Five arguments are new: `update_running_average`,
    `group_size`, `variance_correction`, `debias` and `skip_nonfinite`.
    `bn_jax.BatchNorm` lists the differences from Flax. In NNX there are two more:

    - A batch with one value per feature gives a warning instead of an error.
    - Input and statistics are not rounded to `dtype` before the normalization; only
      the result is.

    Under `nnx.capture(..., BatchMoments)` the layer also sows its `Moments`, as
    `moments`: a tuple with one entry per call. `bn_jax.nnx.population_statistics` and
    `bn_jax.nnx.accumulate_batch_stats` read them.

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2.

    Attributes:
        mean: Running mean, a `BatchStat` in float32 for any `dtype`.
        var: Running variance, a `BatchStat` in float32 for any `dtype`.
        count: Number of batches behind the running statistics, a `BatchStat` if
            `debias` or `momentum=None` needs it, else None.
        scale: Learned factor (gamma), a `Param`, or None.
        bias: Learned offset (beta), a `Param`, or None.

    >>> layer = BatchNorm(2, momentum=0.9, rngs=nnx.Rngs(0))
    >>> layer(jnp.array([[1.0, 10.0], [3.0, 30.0]])).round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> layer.mean[...]
    Array([0.2, 2. ], dtype=float32)
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: int | Sequence[int] = -1,
        momentum: float | None = 0.99,
        epsilon: float = 1e-5,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = _zeros,
        scale_init: Initializer = _ones,
        axis_name: str | Sequence[str] | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = True,
        promote_dtype: PromoteDtypeFn = dtypes.promote_dtype,
        rngs: nnx.Rngs,
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        scale_metadata: Mapping[str, Any] = MappingProxyType({}),
        update_running_average: bool | None = None,
        group_size: int | None = None,
        variance_correction: int = 0,
        debias: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        """Creates the parameters and the running statistics.

        Args:
            num_features: Size of the feature axis, or of several axes in x's order.
            use_running_average: True normalizes by the running statistics (inference),
                False by the batch's statistics (training). The argument of the call
                has precedence. `train()`, `eval()` and `nnx.view` set it.
            axis: Feature axis or axes; -1 for channels last.
            momentum: Fraction of the running statistics that one step keeps, in
                [0, 1); 0.99 is slow. None averages all batches with equal weight.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the result; None promotes input, statistics and parameters.
            param_dtype: Dtype of scale and bias.
            use_bias: True adds a bias (beta) to the result.
            use_scale: True multiplies the result by a scale (gamma).
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            axis_name: Mapped axis or axes whose devices share one mean and variance.
            axis_index_groups: Groups of devices, as indices along `axis_name`; each
                group has its own statistics.
            use_fast_variance: Accepted for compatibility with Flax, and ignored: the
                variance is accurate either way.
            promote_dtype: Function that promotes input, mean, var, scale and bias. The
                layer finds the result's dtype with it, but does not apply it to values.
            rngs: Random keys; the initializers use the stream `params`.
            bias_metadata: Metadata of the bias.
            scale_metadata: Metadata of the scale.
            update_running_average: True updates the running statistics from the batch,
                False does not. None updates them only if the batch is normalized by
                its own statistics.
            group_size: Number of consecutive examples that share statistics, on any
                number of devices; None for the whole batch.
            variance_correction: 0 keeps running averages of the biased variance, 1 of
                the unbiased variance, which is m / (m - 1) times as large for m values.
            debias: True removes the initial values from the running statistics: the
                first batch replaces them. The first batch also replaces statistics
                that were loaded without a count, such as Flax's, unless
                `bn_jax.nnx.with_counts` adds the count to the state.
            skip_nonfinite: True leaves all running statistics unchanged if the batch's
                mean or variance of any feature is not finite.

        Raises:
            ValueError: If a setting lies outside its range or contradicts another
                one. The call checks what depends on the input.
        """
        is_one = not isinstance(num_features, Sequence)
        features = (num_features,) if is_one else tuple(num_features)
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.count: nnx.BatchStat[Array] | None = nnx.data(None)
        if debias or momentum is None:
            self.count = nnx.BatchStat(jnp.zeros((), jnp.float32))
        # Scale comes before bias, as in Flax, so both layers draw the same keys.
        self.scale: nnx.Param[Array] | None = nnx.data(None)
        if use_scale:
            scale = scale_init(rngs.params(), features, param_dtype)
            self.scale = nnx.Param(scale, **scale_metadata)
        self.bias: nnx.Param[Array] | None = nnx.data(None)
        if use_bias:
            bias = bias_init(rngs.params(), features, param_dtype)
            self.bias = nnx.Param(bias, **bias_metadata)
        # NNX hashes static attributes. Lists are not hashable, so they become tuples.
        self.num_features = num_features if is_one else features
        self.use_running_average = use_running_average
        self.axis = tuple(axis) if isinstance(axis, Sequence) else int(axis)
        self.momentum = momentum
        self.epsilon = epsilon
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.use_bias = use_bias
        self.use_scale = use_scale
        if axis_name is not None and not isinstance(axis_name, str):
            axis_name = tuple(axis_name)
        self.axis_name = axis_name
        if axis_index_groups is not None:
            axis_index_groups = tuple(tuple(group) for group in axis_index_groups)
        self.axis_index_groups = axis_index_groups
        self.use_fast_variance = use_fast_variance
        self.promote_dtype = promote_dtype
        self.update_running_average = update_running_average
        self.group_size = group_size
        self.variance_correction = variance_correction
        self.debias = debias
        self.skip_nonfinite = skip_nonfinite
        with errors_naming(type(self).__name__):
            stats = nnx.to_pure_dict(nnx.state(self, nnx.BatchStat))
            check_momentum(momentum, stats, self._make_config())

    def __call__(
        self,
        x: Inexact[Array, "*shape"],
        use_running_average: bool | Bool[Array, ""] | None = None,
        *,
        mask: Bool[Array, "*#shape"] | None = None,
    ) -> Inexact[Array, "*shape"]:
        """Normalizes x, and updates the running statistics in training.

        Training on one value per feature gives a warning, and the result is the bias.

        Args:
            x: Activations, of any shape with the feature axes.
            use_running_average: True normalizes by the running statistics (inference),
                False by the batch's (training); None takes the layer's setting.
                May be traced.
            mask: True at the valid positions, of a shape that broadcasts to x; None if
                all are valid. Other positions have no influence, not even as NaN, and
                are 0 in the result.

        Returns:
            Array of x's shape, in the dtype that `promote_dtype` gives.

        Raises:
            ValueError: If `use_running_average` is set neither here nor in the layer,
                and in all other cases that `bn_jax.batch_norm` lists. The message
                begins with the layer's class.
            NameError: If the batch's statistics are needed and no pmap, shard_map or
                vmap around the call has an axis `axis_name`.
        """
        where = type(self).__name__
        use_running_average = nnx.module.first_from(
            use_running_average,
            self.use_running_average,
            error_msg=(
                f"{where}: use_running_average must be given to the constructor or in "
                "the call, or set by train(), eval() or nnx.view."
            ),
        )
        x = jnp.asarray(x)
        variables = {"mean": self.mean, "var": self.var}
        if self.count is not None:
            variables["count"] = self.count
        stats = {name: variable[...] for name, variable in variables.items()}
        scale = None if self.scale is None else self.scale[...]
        bias = None if self.bias is None else self.bias[...]
        dtype = promoted_dtype(
            self.promote_dtype,
            (x, stats["mean"], stats["var"], scale, bias),
            dtype=self.dtype,
        )
        messages: list[str] = []
        with errors_naming(where):
            self._check_num_features(x)
            y, batch_stats, moments, num_values = batch_norm_with_moments(
                promote_without_rounding(x, dtype),
                scale,
                bias,
                stats,
                self._make_config(),
                use_running_average=use_running_average,
                update_running_average=self.update_running_average,
                momentum=self.momentum,
                mask=mask,
                on_single_value=messages.append,
            )
        # A warning and not an error: NNX has no initialization call, and shapes must
        # be available from a single example (`nnx.tabulate`, `nnx.eval_shape`).
        for message in messages:
            text = message.removeprefix("batch_norm: ")
            warnings.warn(f"{where}: {text}", stacklevel=2)
        # There are no moments in inference: the running statistics did not change.
        if moments is None:
            return y.astype(dtype)
        # Outside of `nnx.capture`, `sow` would add variables to the layer's state.
        if hasattr(self, "__captures__"):
            self.sow(BatchMoments, "moments", moments)
            self.sow(BatchMoments, "num_values", num_values)
        # As in Flax, no gradient flows through the stored running statistics.
        if batch_stats is not None and not is_off(self.update_running_average):
            for name, variable in variables.items():
                variable.set_value(jax.lax.stop_gradient(batch_stats[name]))
        return y.astype(dtype)

    def set_view(
        self,
        use_running_average: bool | None = None,
        update_running_average: bool | None = None,
    ) -> None:
        """Sets the attributes that `nnx.view` may change.

        Args:
          use_running_average: True for inference; None changes nothing.
          update_running_average: True updates the statistics; None changes nothing.
        """  # `nnx.view_info` parses this indentation.
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if update_running_average is not None:
            self.update_running_average = update_running_average

    def _make_config(self) -> BatchNormConfig:
        return make_config(
            axis=self.axis,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            axis_index_groups=self.axis_index_groups,
            group_size=self.group_size,
            variance_correction=self.variance_correction,
            debias=self.debias,
            skip_nonfinite=self.skip_nonfinite,
        )

    def _check_num_features(self, x: Array) -> None:
        axes = canonical_axes(x.ndim, self.axis)
        sizes = tuple(x.shape[axis] for axis in axes)
        if sizes != self.mean.shape:
            raise ValueError(
                f"num_features={self.num_features} must be the size of x's feature "
                f"axis {self.axis}, which is {sizes[0] if len(sizes) == 1 else sizes}; "
                f"x has the shape {x.shape}."
            )
