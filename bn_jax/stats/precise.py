"""Population statistics, computed anew from training batches (Algorithm 2)."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bn_jax.core.running import unbiased_variance
from bn_jax.core.types import BatchStats, Moments
from bn_jax.stats.collections import map_layers


def population_statistics(
    apply_fn: Callable[[Any, Any], tuple[Any, Mapping[str, Any]]],
    variables: Mapping[str, Any],
    batches: Iterable[Any],
) -> PyTree:
    """Population mean and variance of every layer, averaged over training batches.

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
        batches: Training batches of one size, each passed on as it is.

    Returns:
        The `batch_stats` collection to use at inference, in float32 or wider.

    Raises:
        ValueError: If there is no batch, the variables hold no `batch_stats`, or the
            model sows no `batch_moments`.
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
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *moments)
    return average_moments(stacked, variables["batch_stats"])


def average_moments(moments: PyTree, batch_stats: PyTree) -> PyTree:
    """Population statistics from the moments of several batches.

    The part of `population_statistics` after the network has run, for callers that
    run it in their own way, in a `lax.map` for example.

    Args:
        moments: A `batch_moments` collection, stacked along a leading axis of
            batches.
        batch_stats: The model's collection, for layers that have sown nothing.

    Returns:
        A `batch_stats` collection without the axis of batches. The calls of a layer
        that is called more than once count as further batches, those whose mask left
        nothing do not.
    """

    def average(calls: tuple[Moments, ...], _: BatchStats) -> BatchStats:
        merged = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *calls)
        # Without a value, because of a mask, a feature's moments are 0.
        num_batches = jnp.sum(merged.num_samples > 0, axis=0, dtype=merged.var.dtype)
        divisor = jnp.maximum(num_batches, 1)
        return {
            "mean": jnp.sum(merged.mean, axis=0) / divisor,
            "var": jnp.sum(unbiased_variance(merged), axis=0) / divisor,
        }

    return map_layers(average, moments, batch_stats)


def _moments_of(result: tuple[Any, Mapping[str, Any]]) -> PyTree:
    is_pair = isinstance(result, tuple) and len(result) == 2
    updates = result[1] if is_pair and isinstance(result[1], Mapping) else {}
    if not updates.get("batch_moments"):
        raise ValueError(
            "population_statistics: apply_fn must return the model's output and the "
            "collections that it changed, 'batch_moments' among them, and returned "
            f"{sorted(updates) or 'none'} of these; make it mutable, run the model in "
            "training mode, and use bn_jax.BatchNorm for its layers."
        )
    return updates["batch_moments"]
