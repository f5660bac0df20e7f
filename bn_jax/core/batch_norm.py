"""Batch Normalization as a pure function, composed from the rest of the core."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.arguments import (
    check_arrays,
    check_number_of_values,
    check_settings,
)
from bn_jax.core.axes import canonical_axes
from bn_jax.core.derivative import Layout, normalize_by_batch
from bn_jax.core.devices import Devices, make_devices
from bn_jax.core.dtypes import as_stored
from bn_jax.core.flags import Flag, as_flag, differentiable_if, negate, select
from bn_jax.core.groups import normalize_by_group
from bn_jax.core.guess import guess_from
from bn_jax.core.normalize import normalize
from bn_jax.core.running import update_batch_stats
from bn_jax.core.sharding import with_automatic_sharding
from bn_jax.core.types import BatchStats, Moments


class BatchNormResult(NamedTuple):
    """What one application of Batch Normalization computes.

    Attributes:
        y: Normalized activations.
        batch_stats: Running statistics after it.
        moments: Moments of the batch; None when nothing needed them.
    """

    y: Inexact[Array, "..."]
    batch_stats: BatchStats
    moments: Moments | None


def batch_norm(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array],
    *,
    use_running_average: bool | Bool[Array, ""] = False,
    update_running_average: bool | Bool[Array, ""] | None = None,
    axis: int | Sequence[int] = -1,
    momentum: float | Float[Array, ""] | None = 0.99,
    epsilon: float = 1e-5,
    mask: Bool[Array, "*#shape"] | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    group_size: int | None = None,
    variance_correction: int = 0,
    debias: bool = False,
    skip_nonfinite: bool = False,
) -> tuple[Inexact[Array, "*shape"], BatchStats]:
    """Normalizes each feature by the batch's, or the running, mean and variance.

    The gradient flows through the batch's statistics, as the paper demands (section
    2): without that, a bias in front of the normalization grows for ever.
    Source: Ioffe & Szegedy (2015), Algorithm 1 (training) and Algorithm 2, line 11
    (inference).

    Args:
        x: Activations. For a convolution's output all axes but the channels are
            averaged over: one mean and variance a feature map.
        scale: Learned factor of each feature, gamma in the paper; None for 1.
        bias: Learned offset of each feature, beta in the paper; None for 0.
        batch_stats: Running statistics `{"mean", "var"}`, one value a feature each, as
            Flax's collection has them; with `debias` or `momentum=None` also `count`,
            the number of batches behind them, one float. Devices that share statistics
            may hold different ones: some platforms then take a further pass each step.
        use_running_average: Normalize by `batch_stats` (inference), not by the
            batch's own statistics (training). May be traced.
        update_running_average: Whether the batch moves `batch_stats`; by default
            when it is normalized by its own. May be traced.
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            Flax's default 0.99 averages over about 100 steps. None averages over all
            batches alike. May be traced, and is then not checked.
        epsilon: Added to the variance, inside the root; the paper leaves its value
            open, 1e-5 is Flax's. With 0, a feature without variance becomes NaN.
        mask: True at the positions that count; all of them by default. The others
            reach nothing, not even as NaN, and come back as 0.
        axis_name: Mapped axis or axes (pmap, shard_map, vmap) whose devices share
            one mean and variance. Under jit on sharded arrays statistics are global
            without it.
        axis_index_groups: Groups of devices within that axis that share statistics.
        group_size: Consecutive examples (along axis 0, and over all devices in the
            order of the mapped axis) that share statistics; the whole batch by
            default. Smaller than a device's batch it makes ghost batches, larger it
            joins devices, whose mapped axis then sums all groups in one all-reduce;
            the result is the same on any number of devices.
        variance_correction: 0 for running averages of the biased variance (Flax), 1
            of the unbiased one, m / (m - 1) times it (Algorithm 2, PyTorch).
        debias: Whether running statistics leave out their initial values.
        skip_nonfinite: Whether a batch whose mean or variance is not finite leaves
            the running statistics alone.

    Returns:
        y, of x's shape and dtype (float32 for integers), and the new running
        statistics, in float32 at least, which a batch with nothing to average leaves
        alone. Of the variance digits below a millionth of epsilon may be missing.

    Raises:
        ValueError: If an axis does not exist; an array of features or the mask does
            not fit x; a setting lies outside its range or needs another one; groups
            do not fit the batch; or there is but one value a feature where the
            batch's statistics may be needed (a traced flag may be False).
        NameError: If `axis_name` is not bound.
        NotImplementedError: If JAX has no sum over these groups of devices here.

    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> running = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> y, running = batch_norm(x, None, None, running, momentum=0.9)
    >>> y.round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> running["mean"]
    Array([0.2, 2. ], dtype=float32)
    """
    result = batch_norm_with_moments(
        x,
        scale,
        bias,
        batch_stats,
        use_running_average=use_running_average,
        update_running_average=update_running_average,
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        group_size=group_size,
        variance_correction=variance_correction,
        debias=debias,
        skip_nonfinite=skip_nonfinite,
    )
    return result.y, result.batch_stats


def batch_norm_with_moments(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array],
    *,
    use_running_average: bool | Bool[Array, ""],
    update_running_average: bool | Bool[Array, ""] | None,
    axis: int | Sequence[int],
    momentum: float | Float[Array, ""] | None,
    epsilon: float,
    mask: Bool[Array, "*#shape"] | None,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: int | None,
    variance_correction: int,
    debias: bool,
    skip_nonfinite: bool,
    allow_single_value: bool = False,
) -> BatchNormResult:
    """`batch_norm` for callers that need the batch's moments as well.

    Arguments and errors are those of `batch_norm`; everything is given, because the
    defaults stand there. `allow_single_value` lifts the demand for more than one
    value a feature, which initialization by a single example could not meet.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    scale = None if scale is None else jnp.asarray(scale)
    bias = None if bias is None else jnp.asarray(bias)
    feature_axes = canonical_axes(x.ndim, axis)
    check_arrays(
        x, feature_axes, scale=scale, bias=bias, batch_stats=batch_stats, mask=mask
    )
    check_settings(
        batch_stats,
        feature_axes,
        momentum=momentum,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        group_size=group_size,
        variance_correction=variance_correction,
        debias=debias,
    )
    by_running = as_flag(use_running_average, "use_running_average")
    follows = update_running_average is None
    updates = negate(by_running)
    if not follows:
        updates = as_flag(update_running_average, "update_running_average")
    needs_batch = by_running is not True or updates is not False
    devices = Devices()
    if needs_batch:
        devices = make_devices(axis_name, axis_index_groups)
        if mask is None and not allow_single_value:
            check_number_of_values(
                x, feature_axes, devices=devices, group_size=group_size
            )
    layout = Layout(feature_axes, feature_axes, float(epsilon), devices)

    given = {"by_running": by_running, "updates": updates, "momentum": momentum}
    # An argument of its own: what is closed over keeps the type of an explicit mesh.
    traced = {name: of for name, of in given.items() if isinstance(of, jax.Array)}

    def compute(
        x: Array,
        scale: Array | None,
        bias: Array | None,
        batch_stats: BatchStats,
        mask: Array | None,
        traced: dict[str, Array],
    ) -> tuple[Array, BatchStats, Moments | None]:
        settings: dict[str, Any] = given | traced
        by_running: Flag = settings["by_running"]
        if mask is not None:
            mask = jnp.array(mask, bool, ndmin=x.ndim)
            # Before any arithmetic: multiplying by zero would keep a NaN, in the
            # value or in the derivative.
            x = _zero_where_masked(x, mask)
        y = x
        if by_running is not False:
            y = _normalize_by_running(
                *differentiable_if(by_running, (x, scale, bias, batch_stats)), layout
            )
        new_batch_stats, moments = batch_stats, None
        if needs_batch:
            by_batch = negate(by_running)

            def normalize_batch(
                x: Array, scale: Array | None, bias: Array | None
            ) -> tuple[Array, Moments]:
                x, guess = as_stored(x), guess_from(batch_stats)
                batch = (x, scale, bias, guess, mask, layout)
                if group_size is not None:
                    return normalize_by_group(*batch, group_size=group_size)
                y, shifted = normalize_by_batch(*batch)
                return y, shifted.rounded()

            y_by_batch, moments = normalize_batch(
                *differentiable_if(by_batch, (x, scale, bias))
            )
            y = select(by_running, y, y_by_batch)
            if not follows and by_batch is not True:
                # Statistics may be wanted, with derivatives, where y is not.
                _, moments = normalize_batch(x, None, None)
            updated = update_batch_stats(
                batch_stats,
                moments,
                momentum=settings["momentum"],
                variance_correction=variance_correction,
                debias=debias,
                skip_nonfinite=skip_nonfinite,
            )
            new_batch_stats = batch_stats | {
                name: select(settings["updates"], value, batch_stats[name])
                for name, value in updated.items()
            }
        if mask is not None:
            y = _zero_where_masked(y, mask)
        return y, new_batch_stats, moments

    stats = {name: jnp.asarray(value) for name, value in batch_stats.items()}
    others = (scale, bias, stats, mask, traced)
    compute = with_automatic_sharding(compute, x, feature_axes, stats, others)
    return BatchNormResult(*compute(x, *others))


# Rematerialized, or a float32 copy of x would be saved for the transpose.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=4)
def _normalize_by_running(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    batch_stats: BatchStats,
    layout: Layout,
) -> Array:
    return normalize(
        x,
        batch_stats["mean"],
        batch_stats["var"],
        scale=scale,
        bias=bias,
        moment_axes=layout.moment_axes,
        feature_axes=layout.feature_axes,
        epsilon=layout.epsilon,
    )


# Rematerialized, or zeros of x's size would be saved for the transpose.
@partial(jax.checkpoint, prevent_cse=False)
def _zero_where_masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))
