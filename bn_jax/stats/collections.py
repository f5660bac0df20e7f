"""Walking through a model's collections of statistics, layer by layer."""

from collections.abc import Callable
from typing import Any

from jaxtyping import PyTree

from bn_jax.core.types import BatchStats, Moments


def map_layers(
    function: Callable[..., BatchStats], moments: PyTree, *others: PyTree
) -> PyTree:
    """A collection of statistics, made from the moments that each layer has sown.

    Args:
        function: Takes the moments of a layer's calls, a tuple, and what the other
            collections hold for that layer.
        moments: A `batch_moments` collection.
        *others: Collections with the same layers.
    """
    if _is_layer(moments):
        return function(moments["moments"], *others)
    return {
        name: map_layers(function, child, *(other[name] for other in others))
        for name, child in moments.items()
    }


def _is_layer(node: Any) -> bool:
    calls = node.get("moments")
    return isinstance(calls, tuple) and all(isinstance(c, Moments) for c in calls)
