"""Mask of the parameters that belong to normalization layers."""

from collections import defaultdict
from typing import Any

import jax
from jaxtyping import PyTree

# A layer's path, the keys of the nested dictionaries.
_Path = tuple[str, ...]


def norm_mask(params: PyTree, batch_stats: PyTree | None = None) -> PyTree:
    """Returns True for the scale and the bias of each normalization layer.

    Optax takes the mask, or this function, to choose parameters: for example to leave
    them without weight decay, or to leave them alone in fine-tuning.

    Args:
        params: Parameters of a Linen model, or the state of an NNX model
            (`nnx.state(model, nnx.Param)`).
        batch_stats: Running statistics of the same model. With them the mask is exact:
            it marks the BatchNorm layers, which have a running mean and variance. None
            decides by the names alone: a layer that has no parameters but `scale` and
            `bias`, or one of them, is a norm. That includes layer and group norms.

    Returns:
        Tree of booleans, with the structure of `params`.

    >>> params = {"dense": {"kernel": 1.0, "bias": 0.0}, "norm": {"scale": 1.0}}
    >>> norm_mask(params)
    {'dense': {'bias': False, 'kernel': False}, 'norm': {'scale': True}}
    >>> norm_mask(params, batch_stats={})
    {'dense': {'bias': False, 'kernel': False}, 'norm': {'scale': False}}
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [_keys(path) for path, _ in leaves]
    names = _names_by_layer(paths)
    norms = {layer for layer in names if names[layer] <= {"scale", "bias"}}
    if batch_stats is not None:
        statistics = jax.tree_util.tree_flatten_with_path(batch_stats)[0]
        stored = _names_by_layer([_keys(path) for path, _ in statistics])
        norms = {layer for layer in stored if stored[layer] >= {"mean", "var"}}
    return jax.tree.unflatten(
        structure,
        [
            bool(path) and path[:-1] in norms and path[-1] in ("scale", "bias")
            for path in paths
        ],
    )


def _keys(path: tuple[Any, ...]) -> _Path:
    # A leaf may be inside of a Flax variable or box, which adds an attribute's key.
    return tuple(str(key.key) for key in path if hasattr(key, "key"))


def _names_by_layer(paths: list[_Path]) -> dict[_Path, set[str]]:
    """Returns the names of the parameters and submodules in each module."""
    names: dict[_Path, set[str]] = defaultdict(set)
    for path in paths:
        for depth in range(len(path)):
            names[path[:depth]].add(path[depth])
    return names
