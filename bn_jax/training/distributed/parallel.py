"""One training step on many devices: jit, shard_map or pmap over one mesh axis."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from bn_jax.errors import UserError

MODES = ("jit", "shard_map", "pmap")
_AXIS = "batch"


class Parallel(NamedTuple):
    """Devices that share the work, and how the training step is spread over them.

    Attributes:
        mode: "jit" lets XLA divide the program, "shard_map" and "pmap" run it on each
            device's part of the batch.
        mesh: The devices, along one axis.
    """

    mode: str
    mesh: Mesh

    @property
    def num_devices(self) -> int:
        """Devices of all processes."""
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """The mapped axis that a training step may sum over; None where none is."""
        return None if self.mode == "jit" else _AXIS

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def split(self, axis: int) -> NamedSharding:
        """Each device its part.

        Args:
            axis: Axis of examples.
        """
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, _AXIS))

    @property
    def must_wait(self) -> bool:
        """Whether a computation must be complete before the next is begun.

        On CPU several devices of one process share a pool of threads. Two programs
        with collectives can then take threads from each other until none goes on.
        """
        mine = self.mesh.local_mesh.devices.flat
        return mine[0].platform == "cpu" and len(mine) > 1


def make_parallel(
    mode: str,
    *,
    num_devices: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Parallel:
    """The devices that a run uses.

    Args:
        mode: One of `MODES`.
        num_devices: How many of them, the first ones; None for all. Several
            processes use all.
        devices: Devices to choose from; by default those of all processes.

    Raises:
        UserError: If there is no such mode, or there are not as many devices.
    """
    if mode not in MODES:
        raise UserError(
            f"config.parallel.mode must be one of {', '.join(MODES)}, and is {mode!r}."
        )
    devices = jax.devices() if devices is None else devices
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise UserError(
            f"config.parallel.num_devices must lie in 1 to {len(devices)}, the number "
            f"of devices here, and is {count}."
        )
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.parallel.num_devices={count}: {jax.process_count()} processes "
            f"use all of their {len(devices)} devices; leave it out."
        )
    # JAX's own order of devices keeps those of a process together.
    mesh = Mesh(np.asarray(devices[:count]), (_AXIS,), axis_types=(AxisType.Auto,))
    return Parallel(mode, mesh)


def compile_chunk(
    parallel: Parallel, chunk: Callable[[PyTree, PyTree], PyTree]
) -> Callable[[PyTree, PyTree], PyTree]:
    """A stretch of training steps, compiled for the devices.

    The state is donated: what is passed in cannot be used afterwards.

    Args:
        parallel: Devices and mode.
        chunk: Function of a state, the same on all devices, and of batches
            `(steps, microbatches, examples, ...)`; its results are the same on all
            devices. In the modes that map, it sums over `parallel.axis_name`.

    Returns:
        Function of global arrays, the batches split along their examples.
    """
    mesh, everywhere = parallel.mesh, PartitionSpec()
    if parallel.mode == "jit":
        return jax.jit(chunk, donate_argnums=0, out_shardings=parallel.replicated)
    if parallel.mode == "shard_map":
        # Gradients are summed by the step itself, once and in float32; with
        # check_vma=True JAX would do it where the parameters are first used.
        mapped = jax.shard_map(
            chunk,
            mesh=mesh,
            in_specs=(everywhere, PartitionSpec(None, None, _AXIS)),
            out_specs=everywhere,
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    pmapped = jax.pmap(
        chunk,
        axis_name=_AXIS,
        in_axes=(None, 2),
        out_axes=None,
        donate_argnums=0,
        devices=None if jax.process_count() > 1 else list(mesh.devices.flat),
    )
    give_each_device_an_axis = jax.jit(
        lambda tree: jax.tree.map(
            lambda x: x.reshape(*x.shape[:2], mesh.size, -1, *x.shape[3:]), tree
        ),
        out_shardings=parallel.split(2),
    )

    def run(state: PyTree, batches: PyTree) -> PyTree:
        batches = give_each_device_an_axis(batches)
        if jax.process_count() == 1:
            return pmapped(state, batches)
        # Pmap takes and returns what this process holds.
        split = PartitionSpec(None, None, _AXIS)
        local = multihost_utils.global_array_to_host_local_array
        result = pmapped(local(state, mesh, everywhere), local(batches, mesh, split))
        return multihost_utils.host_local_array_to_global_array(
            result, mesh, everywhere
        )

    return run


def result_shapes(
    parallel: Parallel, function: Callable[..., PyTree], *arguments: Any
) -> Any:
    """Shapes and dtypes of what a function gives, where all devices hold it.

    Args:
        parallel: The devices.
        function: It is traced.
        arguments: Arrays or their shapes.
    """
    return jax.tree.map(
        lambda leaf: leaf.update(sharding=parallel.replicated),
        jax.eval_shape(function, *arguments),
    )


def put_split(
    parallel: Parallel, read: Callable[[np.ndarray], PyTree], indices: np.ndarray
) -> PyTree:
    """Examples on the devices that are to work on them.

    Args:
        parallel: The devices.
        read: Returns what belongs to an array of indices, arrays that begin with its
            axes; it is asked only for the indices of this process's devices.
        indices: Index of each example; the last axis is split.
    """
    sharding = parallel.split(indices.ndim - 1)
    places = sharding.addressable_devices_indices_map(indices.shape)
    parts = [
        jax.device_put(read(indices[place or ()]), device)
        for device, place in places.items()
    ]

    def join(*shards: Array) -> Array:
        shape = (*indices.shape, *shards[0].shape[indices.ndim :])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(join, *parts)
