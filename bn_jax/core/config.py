"""The static settings of Batch Normalization, as one hashable record."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class BatchNormConfig(NamedTuple):
    """Settings that are known before tracing, as a hashable record.

    `batch_norm` and the layers take these settings as separate arguments with defaults.
    They build the record once; all functions that they call take the record.

    Attributes:
        axis: Feature axes.
        epsilon: Added to the variance before the square root.
        axis_name: Mapped axes whose devices share one mean and variance.
        axis_index_groups: Groups of device indices; each group shares statistics.
        group_size: Number of consecutive examples that share statistics; None for all.
        variance_correction: 0 averages the biased variance, 1 the unbiased one.
        debias: True gives the initial values of the running statistics no weight.
        skip_nonfinite: True keeps all running statistics unchanged if the batch's mean
            or variance of any feature is not finite.
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
    """Returns the record of settings, from the arguments of `batch_norm`.

    Args:
        axis: Feature axis or axes.
        epsilon: Number to add to the variance; not traced.
        axis_name: Mapped axis or axes whose devices share statistics; None for none.
        axis_index_groups: Groups of device indices of that axis; None for one group.
        group_size: Number of examples that share statistics; None for all.
        variance_correction: 0 averages the biased variance, 1 the unbiased one.
        debias: True gives the initial values of the running statistics no weight.
        skip_nonfinite: True keeps all running statistics unchanged if the batch's mean
            or variance of any feature is not finite.

    Raises:
        ValueError: If a setting is out of range or contradicts another setting.
    """
    axes = tuple(axis) if isinstance(axis, Iterable) else (axis,)
    _check_epsilon(epsilon)
    if variance_correction not in (0, 1):
        raise ValueError(
            "batch_norm: variance_correction must be 0 (biased) or 1 (unbiased), but "
            f"is {variance_correction}."
        )
    if axis_index_groups is not None and axis_name is None:
        raise ValueError(
            "batch_norm: axis_index_groups needs axis_name, the mapped axis whose "
            "devices the groups list."
        )
    is_whole = isinstance(group_size, int | np.integer)
    if group_size is not None and (not is_whole or group_size < 1):
        raise ValueError(
            "batch_norm: group_size must be a whole number of examples, at least 1, "
            f"but is {group_size!r}."
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
    """Checks that axis 0 is not a feature axis if `group_size` is set.

    Args:
        config: The settings; axes may be canonical or as the caller gave them.

    Raises:
        ValueError: If `group_size` is set and axis 0 is a feature axis.
    """
    if config.group_size is not None and 0 in config.axis:
        raise ValueError(
            "batch_norm: group_size counts examples along axis 0, which is a feature "
            f"axis here (axis={config.axis}). Move the features to another axis, or "
            "leave group_size out."
        )


def check_is_number(name: str, value: Any) -> None:
    """Checks that a setting is one number, which may be traced.

    Args:
        name: Name of the setting.
        value: Value that the caller gave.

    Raises:
        ValueError: If the value is not one number.
    """
    is_numeric = isinstance(value, float | int | np.generic | np.ndarray | jax.Array)
    if not is_numeric or jnp.shape(value) != ():
        raise ValueError(
            f"batch_norm: {name} must be one number for all features, but is {value!r}."
        )


def _check_epsilon(epsilon: Any) -> None:
    check_is_number("epsilon", epsilon)
    if isinstance(epsilon, Tracer):
        raise ValueError(
            "batch_norm: epsilon must be a number that is known before tracing, but is "
            f"{epsilon}; make it static."
        )
    if not float(epsilon) >= 0:
        raise ValueError(f"batch_norm: epsilon must not be negative, but is {epsilon}.")
