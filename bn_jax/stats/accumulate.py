"""Running statistics under gradient accumulation: one step for all microbatches."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from bn_jax.core.collectives import Devices
from bn_jax.core.config import make_config
from bn_jax.core.groups import average_group
from bn_jax.core.moments import merge_moments
from bn_jax.core.running import as_batch_stats, update_batch_stats
from bn_jax.core.types import Moments
from bn_jax.core.validation import check_momentum, errors_naming
from bn_jax.stats.collections import map_layers


def accumulate_batch_stats(
    batch_stats: PyTree,
    moments: PyTree,
    *,
    momentum: float | Float[Array, ""] | None = 0.99,
    group_size: int | None = None,
    variance_correction: int = 0,
    debias: bool = False,
    skip_nonfinite: bool = False,
) -> PyTree:
    """Returns running statistics as the one large batch would have left them.

    Updating in every microbatch would take as many steps of the moving average as
    there are microbatches, each with a variance that lacks the spread between them.
    What each microbatch is normalized by stays its own.

    Layers that `nn.scan` or `nn.vmap` stacked along leading axes are each their own:
    `count`, one number a layer, tells these axes from those of features. Without a
    count `skip_nonfinite` takes all layers of a stack, or none.

    Args:
        batch_stats: The collection before the optimizer's step.
        moments: `batch_moments` of all microbatches, stacked along a leading axis, as
            a `lax.scan` over them returns it. The layers sow it where that collection
            is mutable; let them leave the running statistics alone
            (`update_running_average=False`), or drop what they return.
        momentum: Fraction of the running statistics that one step keeps, as for
            `batch_norm`.
        group_size: Consecutive examples that share statistics, as for `batch_norm`.
            Statistics of groups are those of the average group, in one batch as in
            several, which all weigh alike: not those of the one large batch where a
            mask leaves whole groups of some microbatch without a value.
        variance_correction: 1 for running averages of the unbiased variance.
        debias: True if running statistics leave out their initial values.
        skip_nonfinite: True if moments that are not finite leave them alone.

    Returns:
        The collection after one step; a layer that is called several times takes
        one step a call.

    Raises:
        ValueError: If moments are not stacked, belong to no layer of the collection,
            or are missing altogether; or if a setting lies outside its range or needs
            a `count` that a layer does not have (`bn_jax.with_counts`).
    """

    def together(parts: Moments) -> Moments:
        if group_size is None:
            return merge_moments(parts)
        return average_group(parts, Devices())

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
            old = step(old, together(call))
        return old

    if batch_stats and not jax.tree.leaves(moments):
        raise ValueError(
            "accumulate_batch_stats: there are no moments. Name 'batch_moments' among "
            "the mutable collections, run the model in training mode, and use "
            "bn_jax.BatchNorm for its layers."
        )
    return map_layers(update, moments, batch_stats)


def _check_stacked(moments: Moments, batch_stats: Mapping[str, Array]) -> None:
    shape, features = jnp.shape(moments.mean), jnp.shape(batch_stats["mean"])
    if shape[1:] != features:
        raise ValueError(
            "accumulate_batch_stats: moments must have the shape (microbatches, "
            f"{', '.join(map(str, features))}) for statistics of the shape {features}, "
            f"and have {shape}; stack those of all microbatches, as lax.scan does."
        )
