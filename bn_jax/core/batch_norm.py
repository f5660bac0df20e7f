"""Batch Normalization as a pure function."""

from collections.abc import Mapping, Sequence

from jaxtyping import Array, Bool, Float, Inexact

from bn_jax.core.config import make_config
from bn_jax.core.operator import batch_norm_with_moments
from bn_jax.core.types import BatchStats


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
            needed; there is only one value a feature where the batch's statistics may
            be needed (a traced flag may be False); or for an axis of vmap together
            with one of a mesh under a shard_map that checks types, over which JAX has
            no sum.
        NameError: If `axis_name` is not bound.

    >>> import jax.numpy as jnp
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
