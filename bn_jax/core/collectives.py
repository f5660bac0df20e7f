"""Sums across the devices that share their statistics, in one all-reduce."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from bn_jax.core.config import BatchNormConfig


class Devices(NamedTuple):
    """The devices that share statistics; hashable. The default is one device.

    Attributes:
        axis_sizes: Name and size of each mapped axis whose devices share statistics.
        groups: Groups of device indices; the devices of one group share statistics.
            Each index is in one group. None for one group of all.
    """

    axis_sizes: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] | None = None

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the mapped axes."""
        return tuple(name for name, _ in self.axis_sizes)

    @property
    def number(self) -> int:
        """Number of devices that share their statistics with each other."""
        if self.groups is not None:
            return len(self.groups[0])
        return math.prod(size for _, size in self.axis_sizes)


def make_devices(config: BatchNormConfig) -> Devices:
    """Returns the devices that `axis_name` and `axis_index_groups` describe.

    Args:
        config: The settings.

    Raises:
        NameError: If an axis is not bound by pmap, shard_map or vmap.
        ValueError: If an axis is named twice, or the groups differ in size or do not
            hold each index of the axis once.
    """
    names, groups = config.axis_name, config.axis_index_groups
    devices = mapped_devices("batch_norm", names)
    if len(set(names)) < len(names):
        raise ValueError(
            f"batch_norm: axis_name must name each axis once, and is {names}."
        )
    if groups is None:
        return devices
    if len({len(group) for group in groups}) != 1:
        raise ValueError(
            "batch_norm: axis_index_groups must be groups of one size, and are "
            f"{groups}."
        )
    if sorted(index for group in groups for index in group) != [*range(devices.number)]:
        axis = names[0] if len(names) == 1 else names
        raise ValueError(
            "batch_norm: axis_index_groups must hold each of the indices 0 to "
            f"{devices.number - 1} of {axis!r} once, and are {groups}."
        )
    return devices._replace(groups=groups)


def mapped_devices(who: str, names: Sequence[str]) -> Devices:
    """Returns the devices of mapped axes.

    Args:
        who: The function that needs them, for the message.
        names: Names of the axes.

    Raises:
        NameError: If one is not bound by pmap, shard_map or vmap.
    """
    for name in names:
        if not _is_bound(name):
            raise NameError(
                f"{who}: axis_name={name!r} is not bound here ({_bound_axes()}). "
                "Call it inside pmap, shard_map or vmap with that axis name; under jit "
                "on sharded arrays statistics are global without one."
            )
    return Devices(tuple((name, jax.lax.axis_size(name)) for name in names))


def bound(devices: Devices) -> AbstractContextManager[None]:
    """Returns a context in which the axes of the devices are bound.

    `jit(vmap(f))` evaluates derivative rules after vmap has exited, so the axes are
    bound again.

    Args:
        devices: The devices.
    """
    lost = [pair for pair in devices.axis_sizes if not _is_bound(pair[0])]
    if not lost:
        return nullcontext()
    # JAX has no public way to bind an axis.
    from jax._src.core import extend_axis_env_nd

    return extend_axis_env_nd(lost)


def sum_across(
    devices: Devices, values: Sequence[Inexact[Array, "*features"]]
) -> list[Inexact[Array, "*features"]]:
    """Returns the sum of each value over the devices that share it, by one all-reduce.

    Groups have a place each in one sum over the whole axis, because JAX has sums over
    parts of an axis in some modes of mapping only. The work grows with the number of
    groups.

    Args:
        devices: The devices.
        values: Arrays of one shape and precision, real or complex.

    Returns:
        The sums over this device's group, in the order and the dtypes of the values.

    Raises:
        ValueError: For an axis of vmap together with one of a mesh whose types
            shard_map checks.
    """
    if not devices.axis_sizes:
        return list(values)
    dtype = jnp.result_type(*values)
    packed = jnp.stack([value.astype(dtype) for value in values])
    with _refused_with_advice(devices):
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
    places = jnp.arange(len(groups), dtype=group.dtype) == group
    places = jnp.expand_dims(places, range(1, packed.ndim + 1))
    packed = jnp.where(places, packed[None], jnp.zeros((), packed.dtype))
    sums = jax.lax.psum(packed, names)
    return jax.lax.dynamic_index_in_dim(sums, group, keepdims=False)


@contextmanager
def _refused_with_advice(devices: Devices) -> Iterator[None]:
    """Re-raises JAX's errors about sums that it does not have, with advice."""
    try:
        yield
    # An AssertionError, without a text, is how JAX refuses the index over such axes.
    except (NotImplementedError, ValueError, AssertionError) as error:
        raise ValueError(
            f"batch_norm: JAX cannot sum over {devices.axis_names} here "
            f"({str(error) or 'there is no index over these axes'}). For an axis of "
            "vmap together with one of a mesh, use shard_map(check_vma=False)."
        ) from error


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def _bound_axes() -> str:
    try:
        # JAX has no public way to list the bound axes either.
        from jax._src.core import get_axis_env

        names = [str(name) for name in get_axis_env().axis_sizes]
    except (ImportError, AttributeError):
        return "JAX does not tell which are"
    return f"bound are: {', '.join(names)}" if names else "none is"
