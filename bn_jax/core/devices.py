"""Sums across the devices that share their statistics, in one all-reduce."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, PyTree, Shaped


class Devices(NamedTuple):
    """Which devices share their statistics; hashable, and by default one alone.

    Attributes:
        axis_sizes: Name and size of each mapped axis whose devices share them.
        axis_index_groups: Groups within those axes that share them among themselves.
        devices_per_group: The same for groups of consecutive devices of one size, in
            every mode of mapping. Values that are summed then have a leading axis of
            size 1, their sums one of all groups, which every device knows.
    """

    axis_sizes: tuple[tuple[str, int], ...] = ()
    axis_index_groups: tuple[tuple[int, ...], ...] | None = None
    devices_per_group: int | None = None

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the mapped axes."""
        return tuple(name for name, _ in self.axis_sizes)

    @property
    def num_groups(self) -> int:
        """Of how many groups of consecutive devices every device knows the sums."""
        if self.devices_per_group is None:
            return 1
        return math.prod(size for _, size in self.axis_sizes) // self.devices_per_group


def make_devices(
    axis_name: str | Sequence[str] | None,
    axis_index_groups: Sequence[Sequence[int]] | None,
) -> Devices:
    """The devices that two arguments of `jax.lax.psum` describe.

    Args:
        axis_name: Mapped axis or axes.
        axis_index_groups: Groups of devices within that axis.

    Raises:
        NameError: If an axis is not bound by pmap, shard_map or vmap.
        ValueError: If an axis is named twice, or the groups differ in size or do not
            hold each index of the axis once.
    """
    if axis_name is None:
        return Devices()
    names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
    check_bound("batch_norm", names)
    if len(set(names)) < len(names):
        raise ValueError(
            f"batch_norm: axis_name must name each axis once, and is {axis_name}."
        )
    sizes = tuple((name, jax.lax.axis_size(name)) for name in names)
    if axis_index_groups is None:
        return Devices(sizes)
    groups = tuple(tuple(group) for group in axis_index_groups)
    if len({len(group) for group in groups}) != 1:
        raise ValueError(
            "batch_norm: axis_index_groups must be groups of one size, and are "
            f"{axis_index_groups}."
        )
    size = math.prod(size for _, size in sizes)
    if sorted(index for group in groups for index in group) != list(range(size)):
        raise ValueError(
            "batch_norm: axis_index_groups must hold each of the indices 0 to "
            f"{size - 1} of {axis_name!r} once, and are {axis_index_groups}."
        )
    return Devices(sizes, groups)


def check_bound(who: str, names: Sequence[str]) -> None:
    """Makes sure that axes are mapped.

    Args:
        who: What needs them, for the message.
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


def number_of_devices(devices: Devices) -> int:
    """How many devices share their statistics.

    Args:
        devices: The devices.
    """
    if devices.devices_per_group is not None:
        return devices.devices_per_group
    if devices.axis_index_groups is not None:
        return len(devices.axis_index_groups[0])
    return math.prod(size for _, size in devices.axis_sizes)


def bound(devices: Devices) -> AbstractContextManager[None]:
    """A context in which the axes of the devices are bound.

    They are while a function is mapped. But `jit(vmap(f))` asks for derivative rules
    only when it is differentiated itself, after the map has been left.

    Args:
        devices: The devices.
    """
    lost = [pair for pair in devices.axis_sizes if not _is_bound(pair[0])]
    if not lost:
        return nullcontext()
    # JAX has no public way to say that an axis is bound.
    from jax._src.core import extend_axis_env_nd

    return extend_axis_env_nd(lost)


@contextmanager
def sums_refused_with_advice(devices: Devices) -> Iterator[None]:
    """A context in which JAX's refusal to sum over the devices says what to do.

    Args:
        devices: The devices.

    Raises:
        NotImplementedError: For groups within an axis where JAX has no such sum.
        ValueError: For an axis of vmap together with a checked one of a mesh.
    """
    try:
        yield
    # The last, which has no text, is for the index over two such axes.
    except (NotImplementedError, ValueError, AssertionError) as error:
        if not devices.axis_sizes:
            raise
        is_missing = isinstance(error, NotImplementedError)
        raise (NotImplementedError if is_missing else ValueError)(
            f"batch_norm: JAX cannot sum over {devices.axis_names} with "
            f"axis_index_groups={devices.axis_index_groups} here "
            f"({str(error) or 'there is no index over these axes'}). For "
            "groups use group_size, which every way of mapping takes; for an axis "
            "of vmap together with one of a mesh, shard_map(check_vma=False)."
        ) from error


def sum_across(
    devices: Devices, values: Sequence[Inexact[Array, "*features"]]
) -> list[Inexact[Array, "*sums"]]:
    """The sum of each value over the devices, all of them in one all-reduce.

    Args:
        devices: The devices.
        values: Arrays of one shape and precision, real or complex.

    Returns:
        The sums, in the order and the dtypes of the values; of groups of consecutive
        devices those of all groups, along the leading axis.
    """
    if not devices.axis_sizes:
        return list(values)
    parts = [
        part
        for value in values
        for part in ((value.real, value.imag) if jnp.iscomplexobj(value) else (value,))
    ]
    summed = iter(_psum(devices, jnp.stack(parts)))
    return [
        jax.lax.complex(next(summed), next(summed))
        if jnp.iscomplexobj(value)
        else next(summed)
        for value in values
    ]


def own_group(devices: Devices, sums: Shaped[Array, "*sums"]) -> Shaped[Array, "*own"]:
    """What belongs to the group of this device, with a leading axis of size 1.

    Args:
        devices: The devices.
        sums: What follows from sums over them, which is all theirs where they do not
            form groups of consecutive ones.
    """
    if devices.devices_per_group is None:
        return sums
    return jax.lax.dynamic_slice_in_dim(sums, _group_index(devices), 1)


def varying_with(values: PyTree, other: Array) -> PyTree:
    """The same values, of the type of what may differ wherever another one may.

    Only `shard_map` tells these types apart, when it checks them. The selection is
    gone when it is compiled.

    Args:
        values: Arrays of one shape.
        other: One of that shape, which may be another one on each device.
    """
    return jax.tree.map(lambda value: jnp.where(other == other, value, value), values)


def _is_bound(name: str) -> bool:
    try:
        jax.lax.axis_size(name)
    except NameError:
        return False
    return True


def _bound_axes() -> str:
    try:
        # Nor is there a public way to ask which are.
        from jax._src.core import get_axis_env

        names = [str(name) for name in get_axis_env().axis_sizes]
    except (ImportError, AttributeError):
        return "JAX does not tell which are"
    return f"bound are: {', '.join(names)}" if names else "none is"


def _psum(devices: Devices, packed: Array) -> Array:
    if devices.devices_per_group is not None:
        # Collectives over parts of an axis exist in some modes of mapping only. A sum
        # over all of it, with a place for each group, exists in all of them.
        index = _group_index(devices)
        places = jnp.arange(devices.num_groups, dtype=index.dtype) == index
        places = jnp.expand_dims(places, (0, *range(2, packed.ndim)))
        packed = jnp.where(places, packed, jnp.zeros((), packed.dtype))
    return jax.lax.psum(
        packed, devices.axis_names, axis_index_groups=devices.axis_index_groups
    )


def _group_index(devices: Devices) -> Array:
    return jax.lax.axis_index(devices.axis_names) // number_of_devices(devices)
