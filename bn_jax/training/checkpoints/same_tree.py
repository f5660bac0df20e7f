"""Whether what was saved has the leaves of what is to be restored."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from bn_jax.errors import UserError


class OtherModelError(UserError):
    """A checkpoint holds other leaves, or leaves of other shapes or dtypes.

    Attributes:
        differences: What is different, without what to do about it.
    """

    def __init__(self, differences: str) -> None:
        """What is different, for a message that also says what to do.

        Args:
            differences: A sentence without its full stop.
        """
        super().__init__(differences)
        self.differences = differences

    def __str__(self) -> str:
        """The message for the user."""
        return (
            f"{self.differences}. Choose another --workdir, or the configuration that "
            "it was made with."
        )


def check_same_leaves(who: str, saved: PyTree, wanted: PyTree) -> None:
    """Makes sure that both trees have the same leaves.

    Orbax would cast another dtype without a word.

    Args:
        who: What was saved, for the message.
        saved: Shapes and dtypes that are there.
        wanted: Shapes and dtypes that they should have.

    Raises:
        OtherModelError: If they differ.
    """
    there, here = _leaves(saved), _leaves(wanted)
    differing = [
        f"{name} is {there.get(name, 'missing')} there and "
        f"{here.get(name, 'missing')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if differing:
        shown = "; ".join(differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise OtherModelError(f"{who} holds another model or optimizer: {shown}{more}")


class _Leaf(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        return f"{np.dtype(self.dtype).name}{list(self.shape)}"


def _leaves(tree: PyTree) -> dict[str, _Leaf]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        "/".join(_name_of(key) for key in path): _Leaf(tuple(leaf.shape), leaf.dtype)
        for path, leaf in leaves
    }


def _name_of(key: Any) -> str:
    # Orbax writes the fields of a record as the keys of a dictionary.
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
