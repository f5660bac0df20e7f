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
    """Normalizes each feature by the batch's or the running mean and variance.

    In training, the gradient also flows through the batch's mean and variance. Without
    that, a bias before the normalization would grow without bound (section 2).
    Source: Ioffe & Szegedy (2015), Algorithm 1 (training) and Algorithm 2, line 11
    (inference).

    Args:
        x: Activations. Every axis except the feature axes is averaged over: the output
            of a convolution has one mean and variance per channel.
        scale: Learned factor of each feature, gamma in the paper; None for 1.
        bias: Learned offset of each feature, beta in the paper; None for 0.
        batch_stats: Running statistics `{"mean", "var"}`, one value per feature each,
            as in Flax's collection. With `debias` or `momentum=None` also `count`, the
            number of batches so far as one float (infinity counts as 2**24). If None,
            there are no running statistics, and the new ones are None too.
        use_running_average: True normalizes by `batch_stats` (inference), False by the
            batch's own statistics (training). May be traced.
        update_running_average: True updates `batch_stats` with the batch. By default
            the opposite of `use_running_average`. May be traced.
        axis: Feature axis or axes; -1 for channels last.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            Flax's default 0.99 averages over about 100 steps. None weights all batches
            equally. May be traced; a traced value is not checked.
        epsilon: Added to the variance before the square root. The paper gives no value;
            1e-5 is Flax's. With 0, a feature without variance becomes NaN.
        mask: True at valid positions; None if all are valid. The other positions affect
            no result, even if they hold NaN, and their output is 0.
        axis_name: Mapped axis or axes (pmap, shard_map, vmap) whose devices share one
            mean and variance. Under jit, the statistics of sharded arrays are global
            without it.
        axis_index_groups: Groups of device indices within that axis; the devices of one
            group share statistics.
        group_size: Number of consecutive examples that share statistics; None for the
            whole batch. Examples are counted along axis 0 and over all devices, in the
            order of the mapped axis. A size below a device's batch (ghost batches)
            must divide it; a larger one shares statistics between neighbouring devices.
            The result does not depend on the number of devices.
        variance_correction: 0 averages the biased variance (Flax). 1 averages the
            unbiased one, m / (m - 1) times the biased one of m values (Algorithm 2,
            PyTorch).
        debias: True gives the initial values of the running statistics no weight.
        skip_nonfinite: True keeps all running statistics unchanged if the batch's mean
            or variance of any feature is not finite.

    Returns:
        y, of x's shape and dtype (float32 for integers), and the new running
        statistics, in at least float32. A feature without valid values in the batch
        keeps its running statistics.

    Raises:
        ValueError: If an axis does not exist; an array of features or the mask does
            not fit x; a setting is out of range or needs another setting; groups do not
            fit the batch; running statistics are needed but missing; or the batch's
            statistics may be needed, but there is only one value per feature (a traced
            flag may need them). Also for an axis of vmap together with one of a mesh
            under a shard_map that checks types, because JAX cannot sum over both.
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
