"""Population statistics, computed anew from training batches (Algorithm 2)."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

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
) -> dict[str, Any]:
    """Returns population mean and variance of every layer, from training batches.

    `E[x]` is the mean of the batch means. `Var[x]` is m / (m - 1) times the mean of the
    biased batch variances, for m values per batch. The network runs in training mode,
    so each layer receives what the earlier layers compute with their batch statistics.
    Running statistics lag behind the parameters; population statistics belong to the
    parameters in `variables`.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        apply_fn: Takes variables and a batch, runs the model in training mode and
            returns its output and the collections that it updated, including
            `batch_moments`. For a Linen model with `bn_jax.BatchNorm` layers that is
            `partial(model.apply, train=True, mutable=["batch_stats",
            "batch_moments"])`, preferably under `jax.jit`.
        variables: The model's variables; they are not changed.
        batches: Training batches; each is passed to `apply_fn` unchanged. Algorithm 2
            gives each batch equal weight, so all batches must have the same size. A
            mask may leave a different number of valid values in each.
        pooled: True returns mean and biased variance of all valid values of all batches
            together. Every value then has equal weight, and batches may differ in
            size.

    Returns:
        The `batch_stats` collection for inference, in float32 or wider, with the
        structure that it has in `variables`. A layer's `count` is the number of batches
        averaged.

    Raises:
        ValueError: If there is no batch, `variables` has no `batch_stats`, the model
            sows no `batch_moments`, or batches differ in size without `pooled`.
    """
    if "batch_stats" not in variables:
        raise ValueError(
            "population_statistics: variables must hold the collection 'batch_stats', "
            f"but hold only {sorted(variables)}. Pass all collections that model.init "
            "returns, of a model with bn_jax.BatchNorm for its layers."
        )
    moments = [_extract_moments(apply_fn(variables, batch)) for batch in batches]
    if not moments:
        raise ValueError(
            "population_statistics: expected at least one batch, got none. A "
            "generator that was used before is empty; create a new one."
        )
    if not pooled:
        _check_sizes(moments)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *map(without_sizes, moments)
    )
    return average_moments(stacked, variables["batch_stats"], pooled=pooled)


def average_moments(
    moments: Mapping[str, Any], batch_stats: Mapping[str, Any], *, pooled: bool = False
) -> dict[str, Any]:
    """Returns population statistics from the moments of several batches.

    `population_statistics` runs the network and then calls this function. Callers that
    run the network themselves, for example in `lax.map`, call it directly.

    Args:
        moments: A `batch_moments` collection, stacked along a leading axis of batches.
        batch_stats: The model's collection. Layers without moments keep their
            statistics.
        pooled: True returns mean and biased variance of all valid values together.

    Returns:
        A `batch_stats` collection without the axis of batches. If a layer is called
        several times, each call counts as a batch. A batch that is masked completely
        does not count.
    """
    return map_layers(partial(_average, pooled=pooled), moments, batch_stats)


def _average(
    calls: tuple[Moments, ...], old: BatchStats, *, pooled: bool
) -> BatchStats:
    parts = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *calls)
    # The moments of a feature without a valid value are 0 and add nothing to the sums.
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
        # `count` is one number per layer of a stack, for all features of the layer.
        features = tuple(range(jnp.ndim(old["count"]), num_batches.ndim))
        count = jnp.max(num_batches, axis=features, initial=0)
        averaged["count"] = count.astype(old["count"].dtype)
    return averaged


def _check_sizes(moments: list[Mapping[str, Any]]) -> None:
    """Checks that each call of a layer has the same number of values in all batches."""
    first: dict[str, tuple[Any, ...]] = {}
    for batch_moments in moments:
        for path, sown in layers_with_moments(batch_moments):
            sizes = tuple(size.value for size in sown.get("num_values", ()))
            if sizes != first.setdefault(path, sizes):
                before, now = (", ".join(map(str, s)) for s in (first[path], sizes))
                raise ValueError(
                    "population_statistics: batches must be of one size, because "
                    "Algorithm 2 gives them equal weight; "
                    f"{path or 'the layer'} has {before} values per feature in the "
                    f"first batch and {now} in another one. Leave out batches of other "
                    "sizes, or pass pooled=True to give every value equal weight."
                )


def _extract_moments(result: tuple[Any, Mapping[str, Any]]) -> Mapping[str, Any]:
    is_pair = isinstance(result, tuple) and len(result) == 2
    updates = result[1] if is_pair and isinstance(result[1], Mapping) else {}
    if not updates.get("batch_moments"):
        raise ValueError(
            "population_statistics: apply_fn must return the model's output and the "
            "collections that it updated, including 'batch_moments', but it returned "
            f"{sorted(updates) or 'no collections'}. List 'batch_moments' in mutable, "
            "run the model in training mode, and use bn_jax.BatchNorm for its layers. "
            "nn.vmap and nn.scan drop what a layer sows unless variable_axes names "
            "'batch_moments'."
        )
    return updates["batch_moments"]
