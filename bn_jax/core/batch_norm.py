"""Batch Normalization as a pure function, composed from the rest of the core."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.collectives import Devices, make_devices
from bn_jax.core.config import BatchNormConfig, check_groups_of_examples, make_config
from bn_jax.core.derivative import normalize_by_batch
from bn_jax.core.dtypes import as_stored
from bn_jax.core.explicit_sharding import in_manual_context, with_automatic_sharding
from bn_jax.core.groups import normalize_by_group
from bn_jax.core.normalize import normalize
from bn_jax.core.running import update_batch_stats, with_finite_count
from bn_jax.core.traced_flags import (
    Flags,
    differentiable_if,
    make_flags,
    negate,
    select,
)
from bn_jax.core.types import BatchStats, Moments, NumValues
from bn_jax.core.validation import (
    check_arrays,
    check_running_average,
    count_values,
    single_value_advice,
)


class BatchNormResult(NamedTuple):
    """Everything that one application of Batch Normalization computes.

    Attributes:
        y: Normalized activations.
        batch_stats: Running statistics after it; None if there were none before.
        moments: Moments of the batch; None if nothing needed them.
        num_values: Number of values behind each of them, if there are moments.
    """

    y: Inexact[Array, "..."]
    batch_stats: BatchStats | None
    moments: Moments | None
    num_values: NumValues | None


def batch_norm(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array] | None,
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
) -> tuple[Inexact[Array, "*shape"], BatchStats | None]:
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
            the number of batches behind them, one float (infinity counts as 2**24).
            None for use without running statistics, which returns None for them.
        use_running_average: True normalizes by `batch_stats` (inference), False by the
            batch's own statistics (training). May be traced.
        update_running_average: True if the batch moves `batch_stats`; by default it
            does if it is normalized by its own statistics. May be traced.
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
            default. A size below a device's batch makes ghost batches, a larger one
            joins devices; the result is the same on any number of devices.
        variance_correction: 0 for running averages of the biased variance (Flax), 1
            of the unbiased one, m / (m - 1) times it (Algorithm 2, PyTorch).
        debias: True if running statistics leave out their initial values.
        skip_nonfinite: True if a batch whose mean or variance is not finite leaves
            the running statistics alone.

    Returns:
        y, of x's shape and dtype (float32 for integers), and the new running
        statistics, in float32 at least, which a batch with nothing to average leaves
        alone.

    Raises:
        ValueError: If an axis does not exist; an array of features or the mask does
            not fit x; a setting lies outside its range or needs another one; groups
            do not fit the batch; running statistics are missing where they are
            needed; there is but one value a feature where the batch's statistics may
            be needed (a traced flag may be False); or for an axis of vmap together
            with one of a mesh under a shard_map that checks types, over which JAX has
            no sum.
        NameError: If `axis_name` is not bound.

    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> running = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> y, running = batch_norm(x, None, None, running, momentum=0.9)
    >>> y.round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> running["mean"]
    Array([0.2, 2. ], dtype=float32)
    """
    config = make_config(
        axis=axis,
        epsilon=epsilon,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
        group_size=group_size,
        variance_correction=variance_correction,
        debias=debias,
        skip_nonfinite=skip_nonfinite,
    )
    result = batch_norm_with_moments(
        x,
        scale,
        bias,
        batch_stats,
        config,
        use_running_average=use_running_average,
        update_running_average=update_running_average,
        momentum=momentum,
        mask=mask,
    )
    return result.y, result.batch_stats


def refuse(message: str) -> NoReturn:
    """Raises a message about the arguments as an error.

    Args:
        message: The message.

    Raises:
        ValueError: Always.
    """
    raise ValueError(message)


def batch_norm_with_moments(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array] | None,
    config: BatchNormConfig,
    *,
    use_running_average: bool | Bool[Array, ""],
    update_running_average: bool | Bool[Array, ""] | None,
    momentum: float | Float[Array, ""] | None,
    mask: Bool[Array, "*#shape"] | None,
    on_single_value: Callable[[str], Any] = refuse,
) -> BatchNormResult:
    """Returns the result of `batch_norm`, and the batch's moments.

    Args:
        x: As for `batch_norm`, and so are all arguments that it has too.
        scale: Learned factors, or None.
        bias: Learned offsets, or None.
        batch_stats: Running statistics, or None.
        config: The static settings.
        use_running_average: True for inference.
        update_running_average: True if the batch moves the running statistics.
        momentum: Fraction of them that one step keeps.
        mask: True at the positions that count.
        on_single_value: Called with a message if a batch has one value a feature. It
            is refused by default; a function that returns lets it pass, as
            initialization by a single example needs.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    scale = None if scale is None else jnp.asarray(scale)
    bias = None if bias is None else jnp.asarray(bias)
    config = config._replace(axis=canonical_axes(x.ndim, config.axis))
    check_groups_of_examples(config)
    check_arrays(
        x, config.axis, scale=scale, bias=bias, batch_stats=batch_stats, mask=mask
    )
    flags = make_flags(
        use_running_average,
        update_running_average,
        has_running_average=batch_stats is not None,
    )
    stats = None
    if batch_stats is not None:
        check_running_average(batch_stats, config, momentum=momentum)
        stats = {name: jnp.asarray(value) for name, value in batch_stats.items()}
        stats = with_finite_count(stats)
    devices, num_values = Devices(), None
    if flags.need_batch:
        devices = make_devices(config)
        num_values = count_values(x, config, devices)
        if mask is None and num_values.value == 1 and len(config.axis) < x.ndim:
            on_single_value(single_value_advice(x))

    given = {"momentum": momentum, **flags._asdict()}
    # Arguments of their own: an array that a function closes over keeps its sharding
    # on an explicit mesh.
    traced = {
        name: value for name, value in given.items() if isinstance(value, jax.Array)
    }
    arrays = in_manual_context((x, scale, bias, stats, mask, traced))
    compute = partial(_compute, config, devices, given)
    compute = with_automatic_sharding(compute, x, config.axis, stats, arrays[1:])
    return BatchNormResult(*compute(*arrays), num_values)


def _compute(
    config: BatchNormConfig,
    devices: Devices,
    given: Mapping[str, Any],
    x: Array,
    scale: Array | None,
    bias: Array | None,
    stats: BatchStats | None,
    mask: Array | None,
    traced: Mapping[str, Array],
) -> tuple[Array, BatchStats | None, Moments | None]:
    """Returns y, the new statistics and the moments, from arguments that are right."""
    settings = {**given, **traced}
    momentum = settings.pop("momentum")
    flags = Flags(**settings)
    if mask is not None:
        mask = jnp.array(mask, bool, ndmin=x.ndim)
        # Before any arithmetic: multiplying by zero would keep a NaN, in the value or
        # in the derivative.
        x = _zero_where_masked(x, mask)
    y, moments = x, None
    if flags.by_running is not False:
        arguments = differentiable_if(flags.by_running, (x, scale, bias, stats))
        y = _normalize_by_running(*arguments, config)
    if flags.need_batch:
        y_by_batch, moments = _normalize_by_batch(
            x, scale, bias, mask, config, devices, flags
        )
        y = select(flags.by_running, y, y_by_batch)
    if moments is not None and stats is not None:
        updated = update_batch_stats(stats, moments, config, momentum=momentum)
        stats = stats | {
            name: select(flags.updates, value, stats[name])
            for name, value in updated.items()
        }
    if mask is not None:
        y = _zero_where_masked(y, mask)
    return y, stats, moments


def _normalize_by_batch(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    mask: Array | None,
    config: BatchNormConfig,
    devices: Devices,
    flags: Flags,
) -> tuple[Array, Moments]:
    def normalize(
        x: Array, scale: Array | None, bias: Array | None
    ) -> tuple[Array, Moments]:
        arguments = (as_stored(x), scale, bias, mask, config, devices)
        if config.group_size is not None:
            return normalize_by_group(*arguments, group_size=config.group_size)
        y, moments = normalize_by_batch(*arguments)
        return y, moments.rounded()

    by_batch = negate(flags.by_running)
    y, moments = normalize(*differentiable_if(by_batch, (x, scale, bias)))
    if not flags.updates_follow and by_batch is not True:
        # Statistics may be wanted, with derivatives, where y is not.
        _, moments = normalize(x, None, None)
    return y, moments


# Rematerialized: a float32 copy of x would be saved for the transpose otherwise.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=4)
def _normalize_by_running(
    x: Array,
    scale: Array | None,
    bias: Array | None,
    batch_stats: BatchStats,
    config: BatchNormConfig,
) -> Array:
    return normalize(
        x,
        batch_stats["mean"],
        batch_stats["var"],
        scale=scale,
        bias=bias,
        feature_axes=config.axis,
        epsilon=config.epsilon,
    )


# Rematerialized: zeros of x's size would be saved for the transpose otherwise.
@partial(jax.checkpoint, prevent_cse=False)
def _zero_where_masked(x: Array, mask: Array) -> Array:
    return jnp.where(mask, x, jnp.zeros((), x.dtype))
