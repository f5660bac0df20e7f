"""Statistics of all BatchNorm layers of an NNX model."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bn_jax.core.running import LARGEST_COUNT
from bn_jax.layers.nnx import BatchMoments, BatchNorm
from bn_jax.stats import accumulate, precise


def population_statistics(
    apply_fn: Callable[[Any, Any], Any],
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    pooled: bool = False,
) -> nnx.State[Any, Any]:
    """Returns population statistics of every layer, for `nnx.update` to write.

    `bn_jax.population_statistics` describes the computation and its purpose.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        apply_fn: Takes a model and a batch and runs the model in training mode,
            preferably under `nnx.jit`. Its result is ignored.
        model: The model; a copy of it runs, so the model does not change.
        batches: Training batches; each is passed to `apply_fn` unchanged. All must have
            the same size, unless `pooled`.
        pooled: True returns mean and biased variance of all valid values together.

    Returns:
        A state of `BatchStat` variables: `mean`, `var` and, if the layer has it,
        `count`, the number of batches averaged. Layers that normalized no batch keep
        their statistics.

    Raises:
        ValueError: If there is no batch, no layer normalized a batch by the batch's own
            statistics, or batches differ in size without `pooled`.

    >>> model = BatchNorm(1, rngs=nnx.Rngs(0))
    >>> batches = jnp.array([[[1.0], [3.0]], [[5.0], [9.0]]])
    >>> run = nnx.jit(lambda model, x: model(x))
    >>> nnx.update(model, population_statistics(run, model, batches))
    >>> model.mean[...], model.var[...]
    (Array([4.5], dtype=float32), Array([5.], dtype=float32))
    """
    copy = nnx.clone(model)
    forward = nnx.capture(apply_fn, BatchMoments)
    batch_stats = nnx.state(model, nnx.BatchStat)

    def apply(_: Any, batch: Any) -> tuple[Any, Mapping[str, Any]]:
        # Reset the statistics: a NaN from one batch must not affect the next one.
        nnx.update(copy, batch_stats)
        y, moments = forward(copy, batch)
        return y, {"batch_moments": _moments_as_dict(moments, "population_statistics")}

    variables = {"batch_stats": nnx.to_pure_dict(batch_stats)}
    population = precise.population_statistics(apply, variables, batches, pooled=pooled)
    return nnx.State(jax.tree.map(nnx.BatchStat, population))


def accumulate_batch_stats(
    model: nnx.Module, moments: nnx.State[Any, Any]
) -> nnx.State[Any, Any]:
    """Returns the running statistics that one large batch would have given.

    `bn_jax.accumulate_batch_stats` describes the computation and its purpose. Its
    settings, such as momentum and debiasing, come from each layer.

    Args:
        model: The model with its running statistics from before the optimizer's step.
            Run the microbatches on a view with `update_running_average=False`, so that
            they do not change these statistics.
        moments: `BatchMoments` of all microbatches, stacked along a leading axis, as
            `nnx.capture` in an `nnx.scan` over the microbatches returns them.

    Returns:
        A state of `BatchStat`s after one step, for `nnx.update`. A layer that is called
        several times takes one step per call. Layers that normalized no batch are not
        in the state.

    Raises:
        ValueError: If no layer normalized a batch by the batch's own statistics.

    >>> model = BatchNorm(1, momentum=0.9, rngs=nnx.Rngs(0))
    >>> frozen = nnx.view(model, update_running_average=False)
    >>> forward = nnx.capture(lambda model, x: model(x), BatchMoments)
    >>> microbatches = jnp.array([[[1.0], [3.0]], [[5.0], [7.0]]])
    >>> _, moments = nnx.scan(forward, in_axes=(None, 0), out_axes=0)(
    ...     frozen, microbatches
    ... )
    >>> nnx.update(model, accumulate_batch_stats(model, moments))
    >>> model.mean[...], model.var[...]
    (Array([0.4], dtype=float32), Array([1.4], dtype=float32))
    """
    collection = _moments_as_dict(moments, "accumulate_batch_stats")
    leaves = {}
    for path, layer in _layers(model):
        sown = _subtree(collection, path)
        if "moments" in sown:
            updated = accumulate.accumulate_batch_stats(
                nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat)),
                sown,
                momentum=layer.momentum,
                group_size=layer.group_size,
                variance_correction=layer.variance_correction,
                debias=layer.debias,
                skip_nonfinite=layer.skip_nonfinite,
            )
            for name, value in updated.items():
                leaves[*path, name] = nnx.BatchStat(value)
    return nnx.from_flat_state(leaves)


def with_counts(model: nnx.Module, state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
    """Returns a state with its missing batch counts added.

    Flax does not store the number of batches behind its running statistics.
    `nnx.update` does not change what a state lacks: the model keeps its count of 0, and
    the first batch replaces the statistics that were just loaded. `nnx.merge` rejects
    such a state.

    Args:
        model: The model that the state is for.
        state: A state of this model, or of the same model with Flax's layers.

    Returns:
        The state; counts that it already has are kept. An added count is 2**24 for a
        layer with `debias`, because trained statistics have long forgotten their
        initial values, and 0 with `momentum=None`, which starts a new average.

    >>> trained = nnx.BatchNorm(1, rngs=nnx.Rngs(0))
    >>> model = BatchNorm(1, debias=True, rngs=nnx.Rngs(0))
    >>> nnx.update(model, with_counts(model, nnx.state(trained)))
    >>> model.count[...]
    Array(1.6777216e+07, dtype=float32)
    """
    leaves = dict(nnx.to_flat_state(state))
    for path, layer in _layers(model):
        count = (*path, "count")
        if layer.count is None or count in leaves or (*path, "mean") not in leaves:
            continue
        # Statistics that were loaded without a count have long forgotten their initial
        # values, so debiasing must not change them. A cumulative average
        # (momentum=None) starts again from 0 batches.
        batches = 0.0 if layer.momentum is None else LARGEST_COUNT
        leaves[count] = nnx.BatchStat(jnp.full_like(layer.count.get_value(), batches))
    return nnx.from_flat_state(leaves)


def _layers(model: nnx.Module) -> list[tuple[tuple[Any, ...], BatchNorm]]:
    modules = nnx.iter_modules(model)
    return [(path, module) for path, module in modules if isinstance(module, BatchNorm)]


def _moments_as_dict(moments: nnx.State[Any, Any], who: str) -> dict[Any, Any]:
    """Returns captured moments as nested dictionaries, and raises if there are none."""
    if not jax.tree.leaves(moments):
        raise ValueError(
            f"{who}: no layer has sown its moments. Run the model in training mode "
            "(model.train()), use bn_jax.nnx.BatchNorm for its layers, and capture "
            "bn_jax.nnx.BatchMoments."
        )
    return nnx.to_pure_dict(moments)


def _subtree(collection: dict[Any, Any], path: tuple[Any, ...]) -> dict[Any, Any]:
    for name in path:
        collection = collection.get(name, {})
    return collection
