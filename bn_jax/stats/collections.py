"""Walking through a model's collections of statistics, layer by layer."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxtyping import PyTree

from bn_jax.core.types import BatchStats, Moments


def map_layers(
    function: Callable[[tuple[Moments, ...], BatchStats], BatchStats],
    moments: PyTree,
    batch_stats: PyTree,
) -> PyTree:
    """Returns a collection of statistics, new for the layers that have sown moments.

    Args:
        function: Takes the moments of a layer's calls and its old statistics.
        moments: A `batch_moments` collection.
        batch_stats: The old collection; layers without moments, such as
            frozen ones, keep what it holds for them.

    Raises:
        ValueError: If there are moments of a layer that is not in the old collection,
            which would be lost.
    """

    def walk(moments: PyTree, batch_stats: PyTree, path: str) -> PyTree:
        if _is_layer(moments):
            return function(moments["moments"], batch_stats)
        unknown = set(moments) - set(batch_stats)
        if unknown:
            raise ValueError(
                f"{path or 'batch_moments'}: batch_stats has no {sorted(unknown)}, of "
                f"which there are moments, but {sorted(batch_stats)}; give the two "
                "collections of one model, without the names of the collections."
            )
        return {
            name: walk(moments[name], old, f"{path}/{name}".lstrip("/"))
            if name in moments
            else old
            for name, old in batch_stats.items()
        }

    return walk(moments, batch_stats, "")


def layers_with_statistics(
    batch_stats: PyTree, path: str = ""
) -> Iterator[tuple[str, BatchStats]]:
    """Yields path and statistics of each layer of a collection.

    Args:
        batch_stats: The collection.
        path: Put in front of each path.

    >>> stats = {"block": {"norm": {"mean": 0.0, "var": 1.0}}}
    >>> [path for path, _ in layers_with_statistics(stats)]
    ['block/norm']
    """
    if {"mean", "var"} <= set(batch_stats):
        yield path, batch_stats
        return
    for name, child in batch_stats.items():
        if hasattr(child, "items"):
            yield from layers_with_statistics(child, f"{path}/{name}".lstrip("/"))


def layers_with_moments(
    moments: PyTree, path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the path of each layer of a `batch_moments` collection, and what it holds.

    Args:
        moments: The collection.
        path: Put in front of each path.
    """
    if _is_layer(moments):
        yield path, moments
        return
    for name, child in moments.items():
        yield from layers_with_moments(child, f"{path}/{name}".lstrip("/"))


def without_sizes(moments: PyTree) -> PyTree:
    """Returns a `batch_moments` collection without sizes, which are static.

    Collections of batches that differ in size can then be stacked.

    Args:
        moments: The collection.
    """
    if _is_layer(moments):
        return {"moments": moments["moments"]}
    return {name: without_sizes(child) for name, child in moments.items()}


def _is_layer(node: Any) -> bool:
    calls = node.get("moments")
    return isinstance(calls, tuple) and all(isinstance(c, Moments) for c in calls)
