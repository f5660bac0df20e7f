"""Traversal of a model's `batch_stats` and `batch_moments`, by layers or leaves."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from bn_jax.core.types import BatchStats, Moments


def map_layers(
    function: Callable[[tuple[Moments, ...], BatchStats], BatchStats],
    moments: Mapping[str, Any],
    batch_stats: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns `batch_stats` with new statistics for every layer that has moments.

    Args:
        function: Computes a layer's new statistics from the moments of its calls and
            its old statistics.
        moments: A `batch_moments` collection.
        batch_stats: The old collection. Layers without moments, such as frozen ones,
            keep their statistics.

    Raises:
        ValueError: If `moments` has a layer that `batch_stats` lacks: its moments would
            be lost.
    """

    def walk(moments: Any, batch_stats: Any, path: str) -> dict[str, Any]:
        if _is_layer(moments):
            return function(moments["moments"], batch_stats)
        unknown = set(moments) - set(batch_stats)
        if unknown:
            raise ValueError(
                f"{path or 'batch_moments'}: there are moments of {sorted(unknown)}, "
                f"but batch_stats has no such entry; it has {sorted(batch_stats)}. "
                "Pass the contents of both collections of one model, without the keys "
                "'batch_moments' and 'batch_stats'."
            )
        return {
            name: walk(moments[name], old, f"{path}/{name}".lstrip("/"))
            if name in moments
            else old
            for name, old in batch_stats.items()
        }

    return walk(moments, batch_stats, "")


def keep_layers(
    moments: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Returns new statistics, but the old ones of every layer that has moments.

    Args:
        moments: A `batch_moments` collection; may be empty.
        old: The `batch_stats` collection before an update.
        new: The collection after it.
    """
    if _is_layer(moments):
        return old
    return {
        name: keep_layers(moments[name], old[name], child) if name in moments else child
        for name, child in new.items()
    }


def leaves_by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, in the order of `jax.tree.leaves`.

    Args:
        tree: Any tree.

    >>> leaves_by_path({"norm": {"mean": 0.0}, "layers": [1.0]})
    {'layers/0': 1.0, 'norm/mean': 0.0}
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def layers_with_statistics(
    batch_stats: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the path and the statistics of each layer of a collection.

    Args:
        batch_stats: The collection.
        path: Prefix of every path.

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
    moments: Mapping[str, Any], path: str = ""
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields path and sown values of each layer of a `batch_moments` collection.

    Args:
        moments: The collection.
        path: Prefix of every path.
    """
    if _is_layer(moments):
        yield path, moments
        return
    for name, child in moments.items():
        yield from layers_with_moments(child, f"{path}/{name}".lstrip("/"))


def without_sizes(moments: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a `batch_moments` collection without its `num_values` entries.

    These entries are static, so they would make the trees of batches of different
    sizes unequal. Without them the trees can be stacked.

    Args:
        moments: The collection.
    """
    if _is_layer(moments):
        return {"moments": moments["moments"]}
    return {name: without_sizes(child) for name, child in moments.items()}


def _is_layer(node: Any) -> bool:
    calls = node.get("moments")
    return isinstance(calls, tuple) and all(isinstance(c, Moments) for c in calls)
