"""Settings that are Python values or traced arrays, and helpers for flags."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, PyTree, Shaped

from bn_jax.core.types import BatchStats

Flag = bool | Bool[Array, ""]


class TracedSettings(NamedTuple):
    """Settings that may be traced.

    Attributes:
        by_running: True to normalize by the running statistics.
        updates: True to update the running statistics with the batch.
        updates_follow: True if the caller gave no `updates`, which is then the opposite
            of `by_running`. Never traced.
        momentum: Fraction of the running statistics that one step keeps; None weights
            all batches equally.
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
        """Returns the settings that are arrays, by name."""
        return {k: v for k, v in self._asdict().items() if isinstance(v, jax.Array)}


def make_settings(
    use_running_average: Any,
    update_running_average: Any,
    momentum: float | Array | None,
    batch_stats: BatchStats | None,
) -> TracedSettings:
    """Returns the settings, from the arguments of `batch_norm` that may be traced.

    Args:
        use_running_average: Flag that the caller gave.
        update_running_average: Flag that the caller gave, or None.
        momentum: Fraction that the caller gave, or None.
        batch_stats: Running statistics, or None.

    Raises:
        ValueError: If a flag is not one boolean, or needs running statistics while
            `batch_stats` is None. In that case, a traced flag to update them is
            accepted and has no effect.
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
                f"batch_norm: {name} needs running statistics, but batch_stats is "
                f"None; give {{'mean', 'var'}}, or set {name}=False."
            )
        updates = False
    return TracedSettings(by_running, updates, follows, momentum)


def as_flag(flag: Any, name: str) -> Flag:
    """Returns the flag, as a Python bool if its value is known.

    Args:
        flag: A boolean or a number, of Python, NumPy or JAX.
        name: Name of the argument, for the error.

    Raises:
        ValueError: If the flag is None, text, or more than one value.
    """
    if flag is None or isinstance(flag, str) or jnp.shape(flag) != ():
        raise ValueError(
            f"batch_norm: {name} must be one boolean for all of x, but is {flag!r}."
        )
    return flag.astype(bool) if isinstance(flag, Tracer) else bool(flag)


def is_off(flag: Any) -> bool:
    """Returns True only for a concrete False; None and traced flags give False.

    Args:
        flag: Flag that the caller gave, or None.
    """
    return not (flag is None or isinstance(flag, Tracer) or bool(flag))


def negate(flag: Flag) -> Flag:
    """Returns the opposite of a flag.

    Args:
        flag: Flag that `as_flag` returned.
    """
    return not flag if isinstance(flag, bool) else jnp.logical_not(flag)


def select(
    flag: Flag, if_true: Shaped[Array, "*shape"], if_false: Shaped[Array, "*shape"]
) -> Shaped[Array, "*shape"]:
    """Returns one of two arrays.

    Args:
        flag: Flag that `as_flag` returned.
        if_true: The result for True.
        if_false: The result for False.
    """
    if isinstance(flag, bool):
        return if_true if flag else if_false
    return jnp.where(flag, if_true, if_false)


def differentiable_if(flag: Flag, values: PyTree) -> PyTree:
    """Returns the values, as constants for differentiation where the flag is False.

    Without this, the result that `select` drops would still contribute to the
    derivative: 0 times its slope, which is NaN if the slope is infinite.

    Args:
        flag: Flag that `as_flag` returned.
        values: Arrays.
    """
    if flag is True:
        return values
    return jax.tree.map(
        lambda value: select(flag, value, jax.lax.stop_gradient(value)), values
    )
