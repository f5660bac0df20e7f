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
from bn_jax.layers.precision import unrounded

# Flax writes `zeros_init()`, which gives the same function.
_zeros, _ones = initializers.zeros, initializers.ones


class BatchMoments(nnx.Intermediate):
    """Moments of the batches that a layer was called with, a tuple of `Moments`."""


class BatchNorm(nnx.Module):
    """Drop-in for `flax.nnx.BatchNorm`: same arguments, state and defaults.

    A state of Flax's layer loads unchanged. What differs is what Flax gets wrong, as
    for `bn_jax.BatchNorm`, and that input and statistics are not rounded to `dtype`
    before the normalization; only the result is.

    Under `nnx.capture(..., BatchMoments)` the layer also sows its `Moments` as
    `moments`, a tuple with one entry a call; `bn_jax.nnx.population_statistics` and
    `bn_jax.nnx.accumulate_batch_stats` read them.

    Source: Ioffe & Szegedy (2015), Algorithms 1 and 2.

    Attributes:
        mean: Running mean, a `BatchStat` in float32 whatever `dtype` says.
        var: Running variance, a `BatchStat` in float32 too.
        count: Batches behind them, a `BatchStat` where `debias` or `momentum=None`
            needs it, else None.
        scale: Learned factor, a `Param`, or None.
        bias: Learned offset, a `Param`, or None.

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
        """Makes parameters and running statistics.

        Args:
            num_features: Size of the feature axis; of several, their sizes as they
                follow each other in the input.
            use_running_average: Normalize by the running statistics (inference) and
                not by the batch's; the call's has precedence. `train()`, `eval()`
                and `nnx.view` set it.
            axis: Feature axis or axes; -1 for channels last.
            momentum: Fraction of the running statistics that one step keeps, in
                [0, 1); None averages over all batches alike.
            epsilon: Added to the variance, inside the root.
            dtype: Dtype of the result; by default that of input, statistics and
                parameters promoted, as Flax has it.
            param_dtype: Dtype of scale and bias.
            use_bias: Whether a bias (beta) is added.
            use_scale: Whether the result is multiplied by a scale (gamma).
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            axis_name: Mapped axis or axes whose devices share one mean and variance.
            axis_index_groups: Groups of devices within that axis that share
                statistics.
            use_fast_variance: Accepted for Flax's sake; the variance is exact either
                way.
            promote_dtype: Says, by what it returns for input, mean, var, scale and
                bias, which dtype the result has; it is not applied to values.
            rngs: Key of the initializers, stream `params`.
            bias_metadata: Metadata of the bias.
            scale_metadata: Metadata of the scale.
            update_running_average: Whether a batch moves the running statistics; by
                default when it is normalized by its own.
            group_size: Consecutive examples that share statistics, on any number of
                devices; the whole batch by default.
            variance_correction: 0 for running averages of the biased variance, 1 of
                the unbiased one.
            debias: Whether the running statistics forget their initial values at the
                first batch. Statistics without a count, as Flax has them, are
                loaded by `bn_jax.nnx.with_counts`, or the first batch replaces them.
            skip_nonfinite: Whether a batch whose mean or variance is not finite
                leaves the running statistics alone.

        Raises:
            ValueError: If a setting lies outside its range or contradicts another
                one; what depends on the input is checked in the call.
        """
        is_one = not isinstance(num_features, Sequence)
        features = (num_features,) if is_one else tuple(num_features)
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.count: nnx.BatchStat[Array] | None = nnx.data(None)
        if debias or momentum is None:
            self.count = nnx.BatchStat(jnp.zeros((), jnp.float32))
        # In the order of Flax, for the same keys.
        self.scale: nnx.Param[Array] | None = nnx.data(None)
        if use_scale:
            scale = scale_init(rngs.params(), features, param_dtype)
            self.scale = nnx.Param(scale, **scale_metadata)
        self.bias: nnx.Param[Array] | None = nnx.data(None)
        if use_bias:
            bias = bias_init(rngs.params(), features, param_dtype)
            self.bias = nnx.Param(bias, **bias_metadata)
        # Static attributes are hashed by NNX, and a list cannot be.
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
        self._check_settings()

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
            use_running_average: See the constructor, over which it has precedence.
                May be traced.
            mask: True at the positions that count; the others reach nothing and come
                back as 0.

        Returns:
            Array of x's shape, in the dtype that `promote_dtype` gives.

        Raises:
            ValueError: If `use_running_average` is given nowhere, or as for
                `bn_jax.batch_norm`; the message begins with the layer's class.
            NameError: If `axis_name` is not bound.
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
        dtype = self._result_dtype(x, stats["mean"], stats["var"], scale, bias)
        messages: list[str] = []
        with errors_naming(where):
            self._check_num_features(x)
            y, batch_stats, moments, num_values = batch_norm_with_moments(
                unrounded(x, dtype),
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
        # NNX has no initialization call, in which one value a feature would be right.
        for message in messages:
            text = message.removeprefix("batch_norm: ")
            warnings.warn(f"{where}: {text}", stacklevel=2)
        # Without moments nothing has changed, and inference writes nothing.
        if moments is None:
            return y.astype(dtype)
        # Outside of nnx.capture sow would add to the layer's state.
        if hasattr(self, "__captures__"):
            self.sow(BatchMoments, "moments", moments)
            self.sow(BatchMoments, "num_values", num_values)
        # As in Flax no gradient flows through what is kept for later.
        if batch_stats is not None and not is_off(self.update_running_average):
            for name, variable in variables.items():
                variable.set_value(jax.lax.stop_gradient(batch_stats[name]))
        return y.astype(dtype)

    def set_view(
        self,
        use_running_average: bool | None = None,
        update_running_average: bool | None = None,
    ) -> None:
        """Sets what `nnx.view` may change.

        Args:
          use_running_average: See the constructor; None leaves it as it is.
          update_running_average: See the constructor; None leaves it as it is.
        """  # Indented as `nnx.view_info` reads it.
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

    def _check_settings(self) -> None:
        """Refuses early what no input could make right."""
        stats = nnx.to_pure_dict(nnx.state(self, nnx.BatchStat))
        with errors_naming(type(self).__name__):
            check_momentum(self.momentum, stats, self._make_config())

    def _check_num_features(self, x: Array) -> None:
        axes = canonical_axes(x.ndim, self.axis)
        sizes = tuple(x.shape[axis] for axis in axes)
        if sizes != self.mean.shape:
            raise ValueError(
                f"num_features={self.num_features} must be the size of x's feature "
                f"axis {self.axis}, which is {sizes[0] if len(sizes) == 1 else sizes}; "
                f"x has the shape {x.shape}."
            )

    def _result_dtype(self, *arrays: Array | None) -> Dtype:
        """Dtype of Flax's result for input, mean, var, scale and bias."""

        def promoted(arrays: tuple[Array | None, ...]) -> Array:
            x, _, _, scale, bias = self.promote_dtype(arrays, dtype=self.dtype)
            dtype = dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
            return jnp.zeros((), dtype)

        # Abstractly: only the dtype is wanted, and no value is to be rounded.
        return jax.eval_shape(promoted, arrays).dtype
