"""The static settings of Batch Normalization, as one hashable record."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class BatchNormConfig(NamedTuple):
    """Every setting that is known before tracing; hashable.

    `batch_norm` and the layers take these as separate arguments, whose defaults stand
    there. They build the record once, and everything below takes the record.

    Attributes:
        axis: Feature axes.
        epsilon: Added to the variance, inside the root.
        axis_name: Mapped axes whose devices share one mean and variance.
        axis_index_groups: Groups of indices of that axis that share statistics.
        group_size: Consecutive examples that share statistics; None for all.
        variance_correction: 0 keeps the biased variance, 1 the unbiased one.
        debias: True if running statistics leave out their initial values.
        skip_nonfinite: True if a batch with a mean or variance that is not finite
            leaves the running statistics alone.
    """

    axis: tuple[int, ...]
    epsilon: float
    axis_name: tuple[str, ...]
    axis_index_groups: tuple[tuple[int, ...], ...] | None
    group_size: int | None
    variance_correction: int
    debias: bool
    skip_nonfinite: bool


def make_config(
    *,
    axis: int | Sequence[int],
    epsilon: float,
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
    group_size: int | None,
    variance_correction: int,
    debias: bool,
    skip_nonfinite: bool,
) -> BatchNormConfig:
    """Returns the record of settings as a user gives them to `batch_norm`.

    Args:
        axis: One feature axis, or several.
        epsilon: A number that is not traced.
        axis_name: One mapped axis, several, or None.
        axis_index_groups: Groups of indices of that axis, or None.
        group_size: A number of examples, or None.
        variance_correction: 0 or 1.
        debias: True or False.
        skip_nonfinite: True or False.

    Raises:
        ValueError: If a setting lies outside its range, or contradicts another one.
    """
    axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    _check_epsilon(epsilon)
    if variance_correction not in (0, 1):
        raise ValueError(
            "batch_norm: variance_correction must be 0 (biased) or 1 (unbiased), and "
            f"is {variance_correction}."
        )
    if axis_index_groups is not None and axis_name is None:
        raise ValueError(
            "batch_norm: axis_index_groups needs axis_name, the mapped axis that the "
            "groups divide."
        )
    is_whole = isinstance(group_size, int | np.integer)
    if group_size is not None and (not is_whole or group_size < 1):
        raise ValueError(
            "batch_norm: group_size must be a whole number of examples, at least 1; "
            f"it is {group_size!r}."
        )
    if group_size is not None and axis_index_groups is not None:
        raise ValueError(
            "batch_norm: group_size and axis_index_groups both say which examples "
            "share statistics; give one of them."
        )
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name or ())
    groups = None
    if axis_index_groups is not None:
        groups = tuple(tuple(map(int, group)) for group in axis_index_groups)
    config = BatchNormConfig(
        axis=tuple(int(one) for one in axes),
        epsilon=float(epsilon),
        axis_name=names,
        axis_index_groups=groups,
        group_size=None if group_size is None else int(group_size),
        variance_correction=int(variance_correction),
        debias=bool(debias),
        skip_nonfinite=bool(skip_nonfinite),
    )
    check_groups_of_examples(config)
    return config


def check_groups_of_examples(config: BatchNormConfig) -> None:
    """Checks that `group_size` does not count along a feature axis.

    Args:
        config: The settings, with axes as a user gave them or canonical ones.

    Raises:
        ValueError: If it does.
    """
    if config.group_size is not None and 0 in config.axis:
        raise ValueError(
            "batch_norm: group_size counts examples along axis 0, which is a feature "
            f"axis here (axis={config.axis})."
        )


def check_is_number(name: str, value: Any) -> None:
    """Checks that a setting is one number, which may be traced.

    Args:
        name: Name of the setting.
        value: What a user gave for it.

    Raises:
        ValueError: If it is not.
    """
    is_numeric = isinstance(value, float | int | np.generic | np.ndarray | jax.Array)
    if not is_numeric or jnp.shape(value) != ():
        raise ValueError(
            f"batch_norm: {name} must be one number, for all features, and is "
            f"{value!r}."
        )


def _check_epsilon(epsilon: Any) -> None:
    check_is_number("epsilon", epsilon)
    if isinstance(epsilon, Tracer):
        raise ValueError(
            "batch_norm: epsilon must be a number that is known before tracing, and is "
            f"{epsilon}; make it static."
        )
    if not float(epsilon) >= 0:
        raise ValueError(f"batch_norm: epsilon must not be negative; it is {epsilon}.")
