"""Explicit shardings of arrays, left to the compiler while they are computed with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped


def in_manual_context(arrays: PyTree) -> PyTree:
    """Returns the arrays as part of a program that shard_map or pmap traces.

    JAX refuses to differentiate a custom rule inside shard_map if one of its arguments
    is an array that lies on the mesh outside ("Context mesh ..."), as an array does
    that a function closes over. JAX accepts a copy that is made inside.

    Args:
        arrays: Arrays, traced or not.
    """
    if AxisType.Manual not in jax.sharding.get_abstract_mesh().axis_types:
        return arrays
    return jax.tree.map(
        lambda array: array if isinstance(array, Tracer) else jnp.copy(array), arrays
    )


def with_automatic_sharding(
    compute: Callable[..., Any],
    x: Shaped[Array, "*shape"],
    feature_axes: Sequence[int],
    batch_stats: Mapping[str, Array] | None,
    others: PyTree,
) -> Callable[..., Any]:
    """Returns the function, with the shardings inside it left to XLA.

    Where mesh axes are explicit, each array's sharding is part of its type. Arrays of
    features that are sharded over other devices than x cannot meet it in one
    operation, and a group that spans some of the devices of an axis has no type.

    Args:
        compute: Takes arrays by position, and returns an array like x, statistics like
            `batch_stats` and a tree of arrays of features.
        x: Activations.
        feature_axes: Canonical feature axes of x.
        batch_stats: Running statistics, or None.
        others: All other arguments.

    Returns:
        A function whose results are sharded like x, `batch_stats` and features of x;
        `compute` itself if no array lies on explicit axes.
    """
    mesh = _explicit_mesh([x, batch_stats, others])
    if mesh is None:
        return compute

    def on_mesh(value: Array) -> NamedSharding:
        # An array that was made without the mesh is replicated on it.
        return NamedSharding(mesh, jax.typeof(value).sharding.spec)

    like_x = on_mesh(x)
    stats = jax.tree.map(on_mesh, batch_stats)
    features = NamedSharding(mesh, P(*(like_x.spec[axis] for axis in feature_axes)))
    # Compiled, because a derivative that is evaluated operation by operation would
    # leave the context in which the axes are automatic.
    return jax.jit(
        jax.sharding.auto_axes(
            compute, axes=mesh.explicit_axes, out_sharding=(like_x, stats, features)
        )
    )


def _explicit_mesh(arrays: PyTree) -> AbstractMesh | None:
    """Returns the mesh over whose explicit axes one of the arrays is sharded."""
    for array in jax.tree.leaves(arrays):
        sharding = jax.typeof(array).sharding
        if any(sharding.spec) and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None
