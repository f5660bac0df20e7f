"""Running statistics under gradient accumulation: one update for all microbatches."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bn_jax.core.collectives import Devices
from bn_jax.core.config import make_config
from bn_jax.core.groups import average_groups
from bn_jax.core.moments import merge_moments
from bn_jax.core.running import as_batch_stats, update_batch_stats
from bn_jax.core.types import Moments
from bn_jax.core.validation import check_momentum, errors_naming
from bn_jax.stats.collections import map_layers


def accumulate_batch_stats(
    batch_stats: Mapping[str, Any],
    moments: Mapping[str, Any],
    *,
    momentum: float | Float[Array, ""] | None = 0.99,
    group_size: int | None = None,
    variance_correction: int = 0,
    debias: bool = False,
    skip_nonfinite: bool = False,
) -> dict[str, Any]:
    """Returns the running statistics that one large batch would have given.

    If each microbatch updated them, the running average would take as many steps as
    there are microbatches, each with a variance that lacks the spread between
    microbatches. Each microbatch is still normalized by its own statistics. Pass the
    settings that the model's layers have.

    Layers that `nn.scan` or `nn.vmap` stacked along leading axes are updated
    separately. The shape of `count`, one number per layer, distinguishes these axes
    from feature axes. Without a `count`, `skip_nonfinite` skips either all layers of a
    stack or none.

    Args:
        batch_stats: The collection before the optimizer's step.
        moments: The `batch_moments` of all microbatches, stacked along a leading axis,
            as `lax.scan` over the microbatches returns them. The layers sow them where
            that collection is mutable. The microbatches must not update the running
            statistics: set `update_running_average=False`, or drop the `batch_stats`
            that they return.
        momentum: Fraction of the running statistics that one step keeps, in [0, 1);
            None averages all batches with equal weight.
        group_size: Number of consecutive examples that share statistics; None for a
            whole microbatch. With groups, the result is the statistics of the average
            group, and all microbatches have equal weight. That differs from one large
            batch only if a mask leaves some groups of a microbatch without a valid
            value.
        variance_correction: 0 keeps running averages of the biased variance, 1 of the
            unbiased variance.
        debias: True removes the initial values from the running statistics.
        skip_nonfinite: True leaves the running statistics unchanged if the moments are
            not finite.

    Returns:
        The collection after one step. A layer that is called several times takes one
        step per call.

    Raises:
        ValueError: If `moments` is empty, is not stacked or has a layer that
            `batch_stats` lacks; or if a setting lies outside its range or needs a
            `count` that a layer lacks (`bn_jax.with_counts` adds it).
    """

    def merge(parts: Moments) -> Moments:
        if group_size is None:
            return merge_moments(parts)
        return average_groups(parts, Devices())

    with errors_naming("accumulate_batch_stats"):
        config = make_config(
            axis=-1,
            epsilon=0.0,
            axis_name=None,
            axis_index_groups=None,
            group_size=group_size,
            variance_correction=variance_correction,
            debias=debias,
            skip_nonfinite=skip_nonfinite,
        )

    def update(calls: tuple[Moments, ...], old: Mapping[str, Array]) -> Any:
        with errors_naming("accumulate_batch_stats"):
            check_momentum(momentum, old, config)
        old = as_batch_stats(old)
        step = partial(update_batch_stats, config=config, momentum=momentum)
        for _ in range(jnp.ndim(old["count"]) if "count" in old else 0):
            step = jax.vmap(step)
        for call in calls:
            _check_stacked(call, old)
            old = step(old, merge(call))
        return old

    if batch_stats and not jax.tree.leaves(moments):
        raise ValueError(
            "accumulate_batch_stats: expected the batch_moments of the microbatches, "
            "got no moments. List 'batch_moments' in mutable, run the model in "
            "training mode, and use bn_jax.BatchNorm for its layers."
        )
    return map_layers(update, moments, batch_stats)


def _check_stacked(moments: Moments, batch_stats: Mapping[str, Array]) -> None:
    shape, features = jnp.shape(moments.mean), jnp.shape(batch_stats["mean"])
    if shape[1:] != features:
        raise ValueError(
            "accumulate_batch_stats: moments must have the shape (microbatches, "
            f"{', '.join(map(str, features))}) for statistics of the shape {features}, "
            f"but have {shape}; stack those of all microbatches, as lax.scan does."
        )
