"""Population statistics, computed anew from training batches (Algorithm 2)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bn_jax.core.moments import merge_moments
from bn_jax.core.running import unbiased_variance
from bn_jax.core.types import BatchStats, Moments
from bn_jax.stats.collections import layers_with_moments, map_layers, without_sizes


def population_statistics(
    apply_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    pooled: bool = False,
) -> PyTree:
    """Returns population mean and variance of every layer, from training batches.

    `E[x]` is the mean of the batch means, `Var[x]` is m / (m - 1) times the mean of
    the biased batch variances; the network runs in training mode, so that each
    layer sees what the layers under it produce with statistics of their own batch.
    Moving averages lag behind the weights; these statistics belong to them.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        apply_fn: Takes variables and a batch, runs the model in training mode and
            returns its output and the collections it changed, `batch_moments` among
            them. For a Linen model with `bn_jax.BatchNorm` layers that is
            `partial(model.apply, train=True, mutable=["batch_stats",
            "batch_moments"])`, preferably under `jax.jit`.
        variables: The model's variables; they are not changed.
        batches: Training batches, each passed on as it is. Algorithm 2 weighs them
            alike, and so needs batches of one size; how many values a mask leaves of
            each does not matter to it.
        pooled: True for mean and biased variance of all values of all batches
            together, which may then differ in size; every value weighs alike, also
            under a mask.

    Returns:
        The `batch_stats` collection to use at inference, in float32 or wider, of the
        structure that it has in `variables`: `count`, where a layer has it, is the
        number of batches averaged.

    Raises:
        ValueError: If there is no batch, the variables hold no `batch_stats`, the
            model sows no `batch_moments`, or batches differ in size and are not
            pooled.
    """
    if "batch_stats" not in variables:
        raise ValueError(
            "population_statistics: variables must hold the collection 'batch_stats', "
            f"as model.init makes them, and hold {sorted(variables)}; a model has it "
            "with bn_jax.BatchNorm for its layers."
        )
    moments = [_moments_of(apply_fn(variables, batch)) for batch in batches]
    if not moments:
        raise ValueError(
            "population_statistics: there must be at least one batch, and there is "
            "none; a generator that was used before is empty."
        )
    if not pooled:
        _check_sizes(moments)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *map(without_sizes, moments)
    )
    return average_moments(stacked, variables["batch_stats"], pooled=pooled)


def average_moments(
    moments: PyTree, batch_stats: PyTree, *, pooled: bool = False
) -> PyTree:
    """Returns population statistics from the moments of several batches.

    The part of `population_statistics` after the network has run, for callers that
    run it in their own way, in a `lax.map` for example.

    Args:
        moments: A `batch_moments` collection, stacked along a leading axis of
            batches.
        batch_stats: The model's collection, for layers that have sown nothing.
        pooled: True for mean and biased variance of all values together.

    Returns:
        A `batch_stats` collection without the axis of batches. The calls of a layer
        that is called more than once count as further batches; batches of which the
        mask left nothing do not count.
    """
    return map_layers(partial(_average, pooled=pooled), moments, batch_stats)


def _average(
    calls: tuple[Moments, ...], old: BatchStats, *, pooled: bool
) -> BatchStats:
    parts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *calls)
    # Without a value, because of a mask, a feature's moments are 0.
    num_batches = jnp.sum(parts.num_samples > 0, axis=0, dtype=parts.var.dtype)
    if pooled:
        merged = merge_moments(parts)
        mean, var = merged.mean, merged.var
    else:
        divisor = jnp.maximum(num_batches, 1)
        mean = jnp.sum(parts.mean, axis=0) / divisor
        var = jnp.sum(unbiased_variance(parts), axis=0) / divisor
    averaged = {"mean": mean, "var": var}
    if "count" in old:
        # One number for all features, and one for each layer of a stack.
        features = tuple(range(jnp.ndim(old["count"]), num_batches.ndim))
        count = jnp.max(num_batches, axis=features, initial=0)
        averaged["count"] = count.astype(old["count"].dtype)
    return averaged


def _check_sizes(moments: list[PyTree]) -> None:
    """Checks that each call of a layer has as many values in all batches."""
    first: dict[str, tuple[Any, ...]] = {}
    for of_batch in moments:
        for path, sown in layers_with_moments(of_batch):
            sizes = tuple(size.value for size in sown.get("num_values", ()))
            if sizes != first.setdefault(path, sizes):
                before, now = (", ".join(map(str, of)) for of in (first[path], sizes))
                raise ValueError(
                    "population_statistics: batches must be of one size, because "
                    f"Algorithm 2 weighs them alike; {path or 'the layer'} has "
                    f"{before} values a feature in the first batch and {now} in "
                    "another one. Leave out batches of other sizes, or give "
                    "pooled=True to weigh every value alike."
                )


def _moments_of(result: tuple[Any, Mapping[str, Any]]) -> PyTree:
    is_pair = isinstance(result, tuple) and len(result) == 2
    updates = result[1] if is_pair and isinstance(result[1], Mapping) else {}
    if not updates.get("batch_moments"):
        raise ValueError(
            "population_statistics: apply_fn must return the model's output and the "
            "collections that it changed, 'batch_moments' among them, and returned "
            f"{sorted(updates) or 'none'} of these. Make it mutable, run the model in "
            "training mode, and use bn_jax.BatchNorm for its layers; nn.vmap and "
            "nn.scan drop what a layer sows, unless variable_axes names "
            "'batch_moments' too."
        )
    return updates["batch_moments"]
