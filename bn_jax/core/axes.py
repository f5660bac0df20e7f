"""Feature axes, reduction axes, and expansion of feature values to x's rank."""

from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def canonical_axes(rank: int, axes: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the axes as sorted, distinct, non-negative integers.

    Args:
        rank: Number of dimensions of the array that the axes belong to.
        axes: One axis or several; negative ones count from the end.

    Returns:
        Axes in increasing order, each of them once.

    Raises:
        ValueError: If the array has no dimension, or lacks one of the axes.

    >>> canonical_axes(4, (-1, 1))
    (1, 3)
    """
    if rank == 0:
        raise ValueError(
            "batch_norm: x must have a feature axis, but is a single number; give one "
            "example the shape (features,)."
        )
    given = tuple(axes) if isinstance(axes, Iterable) else (axes,)
    for axis in given:
        if not -rank <= axis < rank:
            raise ValueError(
                f"batch_norm: axis={axis} does not exist in an array of {rank} "
                f"dimensions; expected {-rank} to {rank - 1}."
            )
    return tuple(sorted({int(axis) % rank for axis in given}))


def other_axes(rank: int, axes: Sequence[int]) -> tuple[int, ...]:
    """Returns the axes that are not in `axes`, in increasing order.

    Args:
        rank: Number of dimensions.
        axes: Canonical axes to leave out.

    >>> other_axes(4, (3,))
    (0, 1, 2)
    """
    return tuple(axis for axis in range(rank) if axis not in axes)


def expand_to_rank(
    feature_values: Shaped[Array, "*features"],
    feature_axes: Sequence[int],
    rank: int,
) -> Shaped[Array, "..."]:
    """Returns an array of feature values in a shape that broadcasts against x.

    Args:
        feature_values: Array whose dimensions are x's feature axes, in x's order.
        feature_axes: Canonical feature axes of x.
        rank: Number of dimensions of x.

    Returns:
        The values with a dimension of size 1 for every other axis.
    """
    return jnp.expand_dims(feature_values, other_axes(rank, feature_axes))
