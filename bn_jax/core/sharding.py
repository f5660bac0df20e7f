"""Explicit shardings of arrays, left to the compiler while they are computed with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree, Shaped


def with_automatic_sharding(
    compute: Callable[..., Any],
    x: Shaped[Array, "*shape"],
    feature_axes: Sequence[int],
    batch_stats: Mapping[str, Array],
    others: PyTree,
) -> Callable[..., Any]:
    """The function, with the sharding between its arguments and results left to XLA.

    Where mesh axes are explicit, each array's sharding is part of its type, and
    arrays of features that are spread over other devices than x cannot meet it in one
    operation; a group that spans some of the devices of an axis has no type at all.

    Args:
        compute: Takes arrays by position, and gives an array like x, statistics like
            `batch_stats` and a tree of arrays of features.
        x: Activations.
        feature_axes: Canonical feature axes of x.
        batch_stats: Running statistics.
        others: What else it takes.

    Returns:
        A function whose results are sharded as what they are like; the same one where
        no array lies on explicit axes.
    """
    mesh = _explicit_mesh([x, batch_stats, others])
    if mesh is None:
        return compute
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )

    def on_mesh(value: Array) -> NamedSharding:
        # What was made without the mesh is replicated on it.
        return NamedSharding(mesh, jax.typeof(value).sharding.spec)

    like_x = on_mesh(x)
    stats = {name: on_mesh(value) for name, value in batch_stats.items()}
    features = NamedSharding(mesh, P(*(like_x.spec[axis] for axis in feature_axes)))
    return jax.sharding.auto_axes(
        compute, axes=explicit, out_sharding=(like_x, stats, features)
    )


def _explicit_mesh(arrays: PyTree) -> AbstractMesh | None:
    """The mesh with explicit axes that one of the arrays lies on."""
    for array in jax.tree.leaves(arrays):
        mesh = jax.typeof(array).sharding.mesh
        if AxisType.Explicit in mesh.axis_types:
            return mesh
    return None
