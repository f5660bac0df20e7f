"""Walking through a model's collections of statistics, layer by layer."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from bn_jax.core.types import BatchStats, Moments


def map_layers(
    function: Callable[[tuple[Moments, ...], BatchStats], BatchStats],
    moments: PyTree,
    batch_stats: PyTree,
) -> PyTree:
    """A collection of statistics, made anew for the layers that have sown moments.

    Args:
        function: Takes the moments of a layer's calls and its old statistics.
        moments: A `batch_moments` collection.
        batch_stats: The old collection; layers that are not in the other, frozen
            ones for example, keep what it holds for them.
    """
    if _is_layer(moments):
        return function(moments["moments"], batch_stats)
    return {
        name: map_layers(function, moments[name], old) if name in moments else old
        for name, old in batch_stats.items()
    }


def _is_layer(node: Any) -> bool:
    calls = node.get("moments")
    return isinstance(calls, tuple) and all(isinstance(c, Moments) for c in calls)
