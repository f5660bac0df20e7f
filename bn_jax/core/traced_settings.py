"""Settings that are either Python values or traced arrays, and flags among them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree, Shaped

from bn_jax.core.types import BatchStats

Flag = bool | Bool[Array, ""]


class TracedSettings(NamedTuple):
    """The settings that may be traced.

    Attributes:
        by_running: True to normalize by the running statistics.
        updates: True to move them by the batch's.
        updates_follow: True if `updates` is the opposite of `by_running` because it
            was not given. Never traced.
        momentum: Fraction of the running statistics that one step keeps; None for an
            average of all batches alike.
    """

    by_running: Flag
    updates: Flag
    updates_follow: bool
    momentum: float | Array | None

    @property
    def need_batch(self) -> bool:
        """True if the batch's own statistics may be needed."""
        return self.by_running is not True or self.updates is not False

    def traced(self) -> dict[str, Array]:
        """Returns those that are arrays, by name."""
        return {k: v for k, v in self._asdict().items() if isinstance(v, jax.Array)}


def make_settings(
    use_running_average: Any,
    update_running_average: Any,
    momentum: float | Array | None,
    batch_stats: BatchStats | None,
) -> TracedSettings:
    """Returns the settings that three arguments of `batch_norm` describe.

    Args:
        use_running_average: A flag as a caller gave it.
        update_running_average: A flag as a caller gave it, or None.
        momentum: The fraction as a caller gave it, or None.
        batch_stats: Running statistics, or None.

    Raises:
        ValueError: If a flag is not one boolean, or asks for running statistics that
            there are not. A traced flag to update them is allowed, and does nothing.
    """
    by_running = as_flag(use_running_average, "use_running_average")
    follows = update_running_average is None
    updates = negate(by_running)
    if not follows:
        updates = as_flag(update_running_average, "update_running_average")
    if batch_stats is None:
        if by_running is not False or (updates is True and not follows):
            name = f"{'use' if by_running is not False else 'update'}_running_average"
            raise ValueError(
                f"batch_norm: {name} needs running statistics, and batch_stats is "
                f"None; give {{'mean', 'var'}}, or {name}=False."
            )
        updates = False
    return TracedSettings(by_running, updates, follows, momentum)


def as_flag(flag: Any, name: str) -> Flag:
    """Returns the flag, as a Python boolean if its value is known.

    Args:
        flag: A boolean or a number, of Python, NumPy or JAX.
        name: Name of the argument, for the error.

    Raises:
        ValueError: If it is None, text, or more than one value.
    """
    if flag is None or isinstance(flag, str) or jnp.shape(flag) != ():
        raise ValueError(
            f"batch_norm: {name} must be one boolean, for all of x, and is {flag!r}."
        )
    return flag.astype(bool) if isinstance(flag, Tracer) else bool(flag)


def is_off(flag: Any) -> bool:
    """Returns True if a flag is known to be False: given, and not traced.

    Args:
        flag: A flag as a caller gave it, or None.
    """
    return not (flag is None or isinstance(flag, Tracer) or bool(flag))


def negate(flag: Flag) -> Flag:
    """Returns the opposite of a flag.

    Args:
        flag: A flag as `as_flag` gives it.
    """
    return not flag if isinstance(flag, bool) else jnp.logical_not(flag)


def select(
    flag: Flag, if_true: Shaped[Array, "*shape"], if_false: Shaped[Array, "*shape"]
) -> Shaped[Array, "*shape"]:
    """Returns one of two arrays.

    Args:
        flag: A flag as `as_flag` gives it.
        if_true: The result for True.
        if_false: The result for False.
    """
    if isinstance(flag, bool):
        return if_true if flag else if_false
    return jnp.where(flag, if_true, if_false)


def differentiable_if(flag: Flag, values: PyTree) -> PyTree:
    """Returns the values, as constants for every derivative if the flag is False.

    A result that `select` does not take would otherwise still have a part in the
    derivative: zero times its slope, which is NaN where the slope is infinite.

    Args:
        flag: A flag as `as_flag` gives it.
        values: Arrays.
    """
    if flag is True:
        return values
    return jax.tree.map(
        lambda value: select(flag, value, jax.lax.stop_gradient(value)), values
    )
