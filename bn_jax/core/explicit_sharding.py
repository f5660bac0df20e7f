"""Computation with explicitly sharded arrays; inside it, XLA decides the shardings."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped


def in_manual_context(arrays: PyTree) -> PyTree:
    """Returns the arrays as part of the program that shard_map or pmap traces.

    Inside shard_map, JAX refuses to differentiate a custom rule ("Context mesh ...") if
    one of its arguments lies on the mesh outside, as an array in a closure does. JAX
    accepts a copy that is made inside.

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
    """Returns a function like `compute`, in which XLA decides the shardings.

    Where mesh axes are explicit, each array's sharding is part of its type. One
    operation cannot combine x with feature arrays that are sharded over other devices,
    and no type describes a group that spans only some devices of an axis.

    Args:
        compute: Function with arrays as positional arguments. It returns an array like
            x, statistics like `batch_stats` and a tree of feature arrays.
        x: Activations.
        feature_axes: Canonical feature axes of x.
        batch_stats: Running statistics, or None.
        others: All other arguments of `compute`.

    Returns:
        A function whose results are sharded like x, like `batch_stats` and like the
        feature axes of x; `compute` itself if no array is sharded over explicit axes.
    """
    mesh = _explicit_mesh([x, batch_stats, others])
    if mesh is None:
        return compute

    def on_mesh(value: Array) -> NamedSharding:
        # An array that was made outside the mesh is replicated on it.
        return NamedSharding(mesh, jax.typeof(value).sharding.spec)

    like_x = on_mesh(x)
    stats = jax.tree.map(on_mesh, batch_stats)
    features = NamedSharding(mesh, P(*(like_x.spec[axis] for axis in feature_axes)))
    # Without jit, JAX would evaluate a derivative operation by operation, outside the
    # context in which the axes are automatic.
    return jax.jit(
        jax.sharding.auto_axes(
            compute, axes=mesh.explicit_axes, out_sharding=(like_x, stats, features)
        )
    )


def _explicit_mesh(arrays: PyTree) -> AbstractMesh | None:
    """Returns the mesh over whose explicit axes an array is sharded, or None."""
    for array in jax.tree.leaves(arrays):
        sharding = jax.typeof(array).sharding
        if any(sharding.spec) and AxisType.Explicit in sharding.mesh.axis_types:
            return sharding.mesh
    return None
