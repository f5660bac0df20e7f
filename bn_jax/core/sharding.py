"""Explicit shardings of arrays, left to the compiler while they are computed with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped


def with_automatic_sharding(
    compute: Callable[..., Any],
    x: Shaped[Array, "*shape"],
    feature_axes: Sequence[int],
    batch_stats: Mapping[str, Array],
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

    Returns:
        A function whose results are sharded as what they are like; the same one where
        x lies on no explicit axes.
    """
    sharding = jax.typeof(x).sharding
    mesh = sharding.mesh
    explicit = tuple(
        name
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    )
    if not explicit:
        return compute
    stats = {
        # Statistics that were made without the mesh have no sharding on it.
        name: NamedSharding(mesh, jax.typeof(value).sharding.spec)
        for name, value in batch_stats.items()
    }
    features = NamedSharding(mesh, P(*(sharding.spec[axis] for axis in feature_axes)))
    return jax.sharding.auto_axes(
        compute, axes=explicit, out_sharding=(sharding, stats, features)
    )
