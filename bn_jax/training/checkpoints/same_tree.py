"""Comparison of the leaves in a checkpoint with those of the state to restore."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from bn_jax.errors import UserError, shorten
from bn_jax.stats.collections import leaves_by_path


class CheckpointMismatchError(UserError):
    """Error for a checkpoint whose leaves, shapes or dtypes do not match the state.

    Attributes:
        differences: Description of the differences, without advice.
    """

    def __init__(self, differences: str) -> None:
        """Stores the differences; the message adds what to do.

        Args:
            differences: Sentence without its full stop.
        """
        super().__init__(differences)
        self.differences = differences

    def __str__(self) -> str:
        """Returns the message for the user."""
        return (
            f"{self.differences}. Choose another --workdir, or the configuration that "
            "the checkpoint was made with."
        )


def check_same_leaves(who: str, saved: PyTree, wanted: PyTree) -> None:
    """Checks that a checkpoint has the leaves of the state to restore.

    Orbax itself would silently cast a leaf of another dtype.

    Args:
        who: Name of the checkpoint, with which the message starts.
        saved: Shapes and dtypes in the checkpoint.
        wanted: Shapes and dtypes of the state.

    Raises:
        CheckpointMismatchError: If a leaf is missing in one of them, or has another
            shape or dtype.
    """
    there, here = _leaves(saved), _leaves(wanted)
    differing = [
        f"{name} is {there.get(name, 'missing')} in the checkpoint and "
        f"{here.get(name, 'missing')} in this configuration"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differing:
        shown = shorten(differing, separator="; ")
        raise CheckpointMismatchError(
            f"{who} holds another model or optimizer: {shown}"
        )


class _Leaf(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{np.dtype(self.dtype).name}{list(self.shape)}"


def _leaves(tree: PyTree) -> dict[str, _Leaf]:
    # Orbax saves a NamedTuple as a dictionary; the paths of the two are equal.
    return {
        path: _Leaf(tuple(leaf.shape), leaf.dtype)
        for path, leaf in leaves_by_path(tree).items()
    }
