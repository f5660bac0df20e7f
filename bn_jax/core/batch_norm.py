"""Batch Normalization as a pure function, composed from the rest of the core."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact

from bn_jax.core.axes import canonical_axes
from bn_jax.core.moments import batch_moments, zero_where_masked
from bn_jax.core.normalize import normalize
from bn_jax.core.running import update_batch_stats
from bn_jax.core.types import BatchStats, Moments


class BatchNormResult(NamedTuple):
    """What one application of Batch Normalization computes.

    Attributes:
        y: Normalized activations.
        batch_stats: Running statistics after it.
        moments: Moments of the batch; None when the running statistics were used.
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
    use_running_average: bool = False,
    axis: int | Sequence[int] = -1,
    momentum: float = 0.99,
    epsilon: float = 1e-5,
    mask: Bool[Array, "*#shape"] | None = None,
    axis_name: str | Sequence[str] | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
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
        batch_stats: Running statistics `{"mean", "var"}`, one value a feature each,
            as Flax keeps them in its `batch_stats` collection.
        use_running_average: Normalize by `batch_stats` and leave them alone
            (inference), not by the batch's own statistics (training).
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            Flax's default 0.99 averages over about 100 steps.
        epsilon: Added to the variance, inside the root; the paper leaves its value
            open, 1e-5 is Flax's.
        mask: True at the positions that count; all of them by default. The others
            reach nothing, not even as NaN, and come back as 0.
        axis_name: Mapped axis or axes (pmap, shard_map, vmap) whose devices share
            one mean and variance. Under jit on sharded arrays statistics are global
            without it.
        axis_index_groups: Groups of devices within that axis that share statistics.

    Returns:
        y, of x's shape and dtype (float32 for integers), and the new running
        statistics: the moving average, of the biased variance as in Flax, in the
        dtypes that they had. A batch with nothing to average gives y = bias and
        leaves them alone.

    Raises:
        ValueError: If an axis does not exist, an array of features or the mask does
            not fit x, or momentum or epsilon lie outside their range.

    >>> x = jnp.array([[1.0, 10.0], [3.0, 30.0]])
    >>> running = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    >>> y, running = batch_norm(x, None, None, running, momentum=0.9)
    >>> y.round(3)
    Array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    >>> running["mean"]
    Array([0.2      , 2.       ], dtype=float32)
    """
    result = batch_norm_with_moments(
        x,
        scale,
        bias,
        batch_stats,
        use_running_average=use_running_average,
        axis=axis,
        momentum=momentum,
        epsilon=epsilon,
        mask=mask,
        axis_name=axis_name,
        axis_index_groups=axis_index_groups,
    )
    return result.y, result.batch_stats


def batch_norm_with_moments(
    x: Inexact[Array, "*shape"],
    scale: Inexact[Array, "*features"] | None,
    bias: Inexact[Array, "*features"] | None,
    batch_stats: Mapping[str, Array],
    *,
    use_running_average: bool,
    axis: int | Sequence[int],
    momentum: float,
    epsilon: float,
    mask: Bool[Array, "*#shape"] | None,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> BatchNormResult:
    """`batch_norm` for callers that need the batch's moments as well.

    Arguments and errors are those of `batch_norm`; everything is given, because the
    defaults stand there.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(jnp.float32)
    feature_axes = canonical_axes(x.ndim, axis)
    _check_arguments(x, feature_axes, scale, bias, batch_stats, mask)
    _check_settings(momentum, epsilon, axis_name, axis_index_groups)
    x = zero_where_masked(x, mask)
    if use_running_average:
        moments = None
        mean, var = batch_stats["mean"], batch_stats["var"]
        new_batch_stats = BatchStats(mean=mean, var=var)
    else:
        moments = batch_moments(
            x,
            axis=feature_axes,
            mask=mask,
            axis_name=axis_name,
            axis_index_groups=axis_index_groups,
        )
        mean, var = moments.mean, moments.var
        new_batch_stats = update_batch_stats(batch_stats, moments, momentum=momentum)
    y = normalize(
        x,
        mean,
        var,
        scale=scale,
        bias=bias,
        feature_axes=feature_axes,
        epsilon=epsilon,
    )
    return BatchNormResult(zero_where_masked(y, mask), new_batch_stats, moments)


def _check_arguments(
    x: Array,
    feature_axes: Sequence[int],
    scale: Array | None,
    bias: Array | None,
    batch_stats: Mapping[str, Array],
    mask: Array | None,
) -> None:
    """Raises ValueError for arrays that do not fit x."""
    missing = {"mean", "var"} - set(batch_stats)
    if missing:
        raise ValueError(
            f"batch_norm: batch_stats must hold 'mean' and 'var', and lacks "
            f"{sorted(missing)}; it has {sorted(batch_stats)}."
        )
    features = tuple(x.shape[axis] for axis in feature_axes)
    for name, values in {"scale": scale, "bias": bias, **batch_stats}.items():
        if values is not None and jnp.shape(values) != features:
            raise ValueError(
                f"batch_norm: {name} must have the shape {features} of x's feature "
                f"axes {tuple(feature_axes)}, and has {jnp.shape(values)}; x has "
                f"{x.shape}."
            )
    if mask is not None and not _broadcasts(jnp.shape(mask), x.shape):
        raise ValueError(
            f"batch_norm: mask of shape {jnp.shape(mask)} does not broadcast to x of "
            f"shape {x.shape}; to mask whole examples, give it "
            f"{x.shape[:1] + (1,) * (x.ndim - 1)}."
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    trailing = target[len(target) - len(shape) :]
    return len(shape) <= len(target) and all(
        size in (1, goal) for size, goal in zip(shape, trailing, strict=True)
    )


def _check_settings(
    momentum: float,
    epsilon: float,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> None:
    """Raises ValueError for settings that mean nothing."""
    if not 0 <= momentum < 1:
        raise ValueError(
            f"batch_norm: momentum must lie in [0, 1), and is {momentum}; it is the "
            "fraction of the old statistics that is kept (PyTorch's 0.1 is 0.9 here)."
        )
    if not epsilon >= 0:
        raise ValueError(f"batch_norm: epsilon must not be negative; it is {epsilon}.")
    if axis_index_groups is not None and axis_name is None:
        raise ValueError(
            "batch_norm: axis_index_groups needs axis_name, the mapped axis that the "
            "groups divide."
        )
