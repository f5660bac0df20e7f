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
) -> nnx.State:
    """Returns population statistics of every layer, for `nnx.update` to write.

    `bn_jax.population_statistics` says what is computed and why.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        apply_fn: Takes a model and a batch and runs the model in training mode,
            preferably under `nnx.jit`; what it returns is dropped.
        model: The model; a copy of it runs, and it is not changed.
        batches: Training batches, each passed on as it is; of one size unless pooled.
        pooled: True for mean and biased variance of all values together.

    Returns:
        A state of `BatchStat`s: `mean` and `var`, and where the layer has it `count`,
        the number of batches averaged. Layers that normalized no batch have the
        statistics that they had.

    Raises:
        ValueError: If there is no batch, no layer normalized one by its own
            statistics, or batches differ in size and are not pooled.

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
        # What an earlier batch left behind, a NaN for example, reaches no other.
        nnx.update(copy, batch_stats)
        y, moments = forward(copy, batch)
        return y, {"batch_moments": _checked(moments, "population_statistics")}

    variables = {"batch_stats": nnx.to_pure_dict(batch_stats)}
    population = precise.population_statistics(apply, variables, batches, pooled=pooled)
    return nnx.State(jax.tree.map(nnx.BatchStat, population))


def accumulate_batch_stats(model: nnx.Module, moments: nnx.State) -> nnx.State:
    """Running statistics as the one large batch of all microbatches would leave them.

    `bn_jax.accumulate_batch_stats` says what is computed and why. Each layer's own
    momentum, correction and debiasing apply.

    Args:
        model: The model with the statistics from before the optimizer's step: let
            the microbatches run on a view that leaves them alone.
        moments: `BatchMoments` of all microbatches, stacked along a leading axis, as
            `nnx.capture` in an `nnx.scan` over them returns them.

    Returns:
        A state of `BatchStat`s after one step, for `nnx.update`. A layer that is
        called several times takes one step a call; layers that normalized nothing
        are not in it.

    Raises:
        ValueError: If no layer normalized a batch by its own statistics.

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
    collection = _checked(moments, "accumulate_batch_stats")
    leaves = {}
    for path, layer in _layers(model):
        sown = _at(collection, path)
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


def with_counts(model: nnx.Module, state: nnx.State) -> nnx.State:
    """A state with the counts that a model's layers need and the state lacks.

    Flax keeps no count of the batches behind its statistics. `nnx.update` leaves what
    a state lacks as it is, here a count of 0 that makes the first batch replace the
    statistics just loaded; `nnx.merge` refuses such a state.

    Args:
        model: The model that the state is for.
        state: Its state, or that of its Flax counterpart.

    Returns:
        The state; where a layer has a `count` and the state has statistics without
        one, they count as far advanced (debias) or as new (momentum=None).

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
        # Statistics without a count have long forgotten their initial values; a
        # cumulative average starts anew.
        batches = 0.0 if layer.momentum is None else LARGEST_COUNT
        leaves[count] = nnx.BatchStat(jnp.full_like(layer.count.get_value(), batches))
    return nnx.from_flat_state(leaves)


def _layers(model: nnx.Module) -> list[tuple[tuple[Any, ...], BatchNorm]]:
    modules = nnx.iter_modules(model)
    return [(path, module) for path, module in modules if isinstance(module, BatchNorm)]


def _checked(moments: nnx.State, who: str) -> dict[Any, Any]:
    """Captured moments as nested dictionaries, of which some hold something."""
    if not jax.tree.leaves(moments):
        raise ValueError(
            f"{who}: no layer has sown its moments. Run the model in training mode "
            "(model.train()), use bn_jax.nnx.BatchNorm for its layers, and capture "
            "bn_jax.nnx.BatchMoments."
        )
    return nnx.to_pure_dict(moments)


def _at(collection: dict[Any, Any], path: tuple[Any, ...]) -> dict[Any, Any]:
    for name in path:
        collection = collection.get(name, {})
    return collection
