"""Sums across the devices that share statistics, one all-reduce per call."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bn_jax.core.config import BatchNormConfig


class Devices(NamedTuple):
    """Devices that share statistics, as a hashable record. The default is one device.

    Attributes:
        axis_sizes: Name and size of each mapped axis whose devices share statistics.
        groups: Groups of device indices; the devices of one group share statistics.
            Each index is in exactly one group. None for one group of all devices.
    """

    axis_sizes: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the mapped axes."""
        return tuple(name for name, _ in self.axis_sizes)

    @property
    def number(self) -> int:
        """Number of devices that share statistics with each other."""
        if self.groups is not None:
            return len(self.groups[0])
        return math.prod(size for _, size in self.axis_sizes)


def make_devices(config: BatchNormConfig) -> Devices:
    """Returns the devices that `axis_name` and `axis_index_groups` describe.

    Args:
        config: The settings.

    Raises:
        NameError: If pmap, shard_map or vmap binds no axis of that name.
        ValueError: If `axis_name` repeats an axis, the groups differ in size, or they
            do not hold each index of the axis exactly once.
    """
    names, groups = config.axis_name, config.axis_index_groups
    devices = mapped_devices("batch_norm", names)
    if len(set(names)) < len(names):
        raise ValueError(
            f"batch_norm: axis_name must name each axis once, but is {names}."
        )
    if groups is None:
        return devices
    if len({len(group) for group in groups}) != 1:
        raise ValueError(
            "batch_norm: axis_index_groups must be groups of one size, but are "
            f"{groups}."
        )
    if sorted(index for group in groups for index in group) != [*range(devices.number)]:
        axis = names[0] if len(names) == 1 else names
        raise ValueError(
            "batch_norm: axis_index_groups must hold each of the indices 0 to "
            f"{devices.number - 1} of {axis!r} once, but are {groups}."
        )
    return devices._replace(groups=groups)


def mapped_devices(who: str, names: Sequence[str]) -> Devices:
    """Returns the devices of mapped axes.

    Args:
        who: Name of the function that needs them, for the error message.
        names: Names of the axes.

    Raises:
        NameError: If pmap, shard_map or vmap binds no axis of that name.
    """
    for name in names:
        if not _is_bound(name):
            raise NameError(
                f"{who}: axis_name={name!r} is not bound here ({_bound_axes()}). "
                "Call it inside pmap, shard_map or vmap with that axis name, or leave "
                "axis_name out: under jit, statistics of sharded arrays are global."
            )
    return Devices(tuple((name, jax.lax.axis_size(name)) for name in names))


def bind_axes(devices: Devices) -> AbstractContextManager[None]:
    """Returns a context in which the axes of the devices are bound.

    `jit(vmap(f))` evaluates derivative rules after vmap has exited, so the axes must be
    bound again.

    Args:
        devices: Devices whose axes are needed.
    """
    unbound = [pair for pair in devices.axis_sizes if not _is_bound(pair[0])]
    if not unbound:
        return nullcontext()
    # JAX has no public way to bind an axis.
    from jax._src.core import extend_axis_env_nd

    return extend_axis_env_nd(unbound)


def sum_across(
    devices: Devices, values: Sequence[Inexact[Array, "*features"]]
) -> list[Inexact[Array, "*features"]]:
    """Returns the sum of each value over the devices that share it, by one all-reduce.

    Each group has its own row in one sum over the whole axis, because JAX supports sums
    over parts of an axis only in some modes of mapping. The work grows with the number
    of groups.

    Args:
        devices: Devices to sum over.
        values: Arrays of one shape and precision, real or complex.

    Returns:
        The sums over this device's group, in the order and the dtypes of `values`.

    Raises:
        ValueError: For an axis of vmap together with an axis of a mesh whose types
            shard_map checks.
    """
    if not devices.axis_sizes:
        return list(values)
    dtype = jnp.result_type(*values)
    packed = jnp.stack([value.astype(dtype) for value in values])
    with _advice_on_unsupported_sums(devices):
        sums = _sum_of_group(devices, packed)
    pairs = zip(sums, values, strict=True)
    return [s if jnp.iscomplexobj(value) else s.real for s, value in pairs]


def _sum_of_group(devices: Devices, packed: Array) -> Array:
    names, groups = devices.axis_names, devices.groups
    if groups is None:
        return jax.lax.psum(packed, names)
    group_of = {index: n for n, group in enumerate(groups) for index in group}
    table = jnp.array([group_of[index] for index in range(len(group_of))])
    group = table[jax.lax.axis_index(names)]
    is_own_row = jnp.arange(len(groups), dtype=group.dtype) == group
    is_own_row = jnp.expand_dims(is_own_row, range(1, packed.ndim + 1))
    packed = jnp.where(is_own_row, packed[None], jnp.zeros((), packed.dtype))
    sums = jax.lax.psum(packed, names)
    return jax.lax.dynamic_index_in_dim(sums, group, keepdims=False)


@contextmanager
def _advice_on_unsupported_sums(devices: Devices) -> Iterator[None]:
    """Re-raises JAX's errors about unsupported sums, with advice."""
    try:
        yield
    # JAX raises an AssertionError without text if it cannot index such axes together.
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise ValueError(
            f"batch_norm: JAX cannot sum over the axes {devices.axis_names} here "
            f"({str(error) or 'it cannot index them together'}). To combine an axis of "
            "vmap with an axis of a mesh, use shard_map(check_vma=False)."
        ) from error


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def _bound_axes() -> str:
    try:
        # JAX has no public way to list the bound axes.
        from jax._src.core import get_axis_env

        names = [str(name) for name in get_axis_env().axis_sizes]
    except (ImportError, AttributeError):
        return "JAX does not list the bound axes"
    return f"bound axes: {', '.join(names) or 'none'}"
