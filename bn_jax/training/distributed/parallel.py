"""One training step on many devices: jit, shard_map or pmap over one mesh axis."""

import math
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
    """The devices of a run, and how a training step uses them.

    Attributes:
        mode: "jit" lets XLA partition the program; "shard_map" and "pmap" run the
            program on each device, with that device's shard of the batch.
        mesh: The devices, along one axis.
    """

    mode: str
    mesh: Mesh

    @property
    def num_devices(self) -> int:
        """Number of devices of all processes."""
        return self.mesh.size

    @property
    def axis_name(self) -> str | None:
        """Mapped axis that a training step may sum over; None in mode "jit"."""
        return None if self.mode == "jit" else _AXIS

    @property
    def replicated(self) -> NamedSharding:
        """Sharding of an array that is whole on each device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def sharded(self, axis: int) -> NamedSharding:
        """Returns the sharding of an array over its axis of examples.

        Args:
            axis: Axis of examples.
        """
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, _AXIS))

    @property
    def must_wait(self) -> bool:
        """True if a computation must be complete before the next one starts.

        Several CPU devices of one process share a pool of threads. Two programs with
        collectives can block each other for ever, because each holds threads that the
        other one needs.
        """
        local_devices = self.mesh.local_mesh.devices.flat
        return local_devices[0].platform == "cpu" and len(local_devices) > 1

    def wait_if_needed(self, result: PyTree) -> Any:
        """Returns a program's result, once it is complete if `must_wait` is set.

        Args:
            result: Arrays that the program returned.
        """
        return jax.block_until_ready(result) if self.must_wait else result


def make_parallel(
    mode: str,
    *,
    num_devices: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Parallel:
    """Returns the devices that a run uses.

    Args:
        mode: One of `MODES`.
        num_devices: Number of devices, counted from the first; None for all. Several
            processes must use all.
        devices: Devices to choose from; by default those of all processes.

    Raises:
        UserError: If `mode` is not one of `MODES`, or if `num_devices` is out of range
            or leaves out devices of several processes.
    """
    if mode not in MODES:
        raise UserError(
            f"config.parallel.mode must be one of {', '.join(MODES)}, but is {mode!r}."
        )
    devices = jax.devices() if devices is None else devices
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise UserError(
            f"config.parallel.num_devices must lie in 1 to {len(devices)}, the number "
            f"of devices here, but is {count}."
        )
    if count < len(devices) and jax.process_count() > 1:
        raise UserError(
            f"config.parallel.num_devices must be {len(devices)} or None with several "
            f"processes, because they use all devices, but is {count}."
        )
    # In JAX's order the devices of one process are next to each other.
    mesh = Mesh(np.asarray(devices[:count]), (_AXIS,), axis_types=(AxisType.Auto,))
    return Parallel(mode, mesh)


def make_local_parallel(*batch_sizes: int) -> Parallel:
    """Returns as many of this process's devices as all batches can be divided among.

    Args:
        batch_sizes: Numbers of examples, at least one.
    """
    devices = jax.local_devices()
    size = math.gcd(*batch_sizes)
    number = max(n for n in range(1, len(devices) + 1) if size % n == 0)
    return make_parallel("jit", num_devices=number, devices=devices)


def compile_stretch(
    parallel: Parallel, stretch: Callable[[PyTree, PyTree], PyTree]
) -> Callable[[PyTree, PyTree], PyTree]:
    """Returns a stretch of training steps, compiled for the devices.

    The state is donated: the caller cannot use it after the call.

    Args:
        parallel: Devices and mode.
        stretch: Function of a replicated state and of batches `(steps, microbatches,
            examples, ...)`; its results are replicated. In modes "shard_map" and
            "pmap" it sums over `parallel.axis_name`.

    Returns:
        Function of global arrays; the batches are sharded over their examples.
    """
    mesh, everywhere = parallel.mesh, PartitionSpec()
    if parallel.mode == "jit":
        return jax.jit(stretch, donate_argnums=0, out_shardings=parallel.replicated)
    if parallel.mode == "shard_map":
        # The step itself sums the gradients, once and in float32. With check_vma=True
        # JAX would sum them where the parameters are first used.
        mapped = jax.shard_map(
            stretch,
            mesh=mesh,
            in_specs=(everywhere, PartitionSpec(None, None, _AXIS)),
            out_specs=everywhere,
            check_vma=False,
        )
        return jax.jit(mapped, donate_argnums=0)
    pmapped = jax.pmap(
        stretch,
        axis_name=_AXIS,
        in_axes=(None, 2),
        out_axes=None,
        donate_argnums=0,
        devices=None if jax.process_count() > 1 else list(mesh.devices.flat),
    )
    add_device_axis = jax.jit(
        lambda tree: jax.tree.map(
            lambda x: x.reshape(*x.shape[:2], mesh.size, -1, *x.shape[3:]), tree
        ),
        out_shardings=parallel.sharded(2),
    )

    def run(state: PyTree, batches: PyTree) -> PyTree:
        batches = add_device_axis(batches)
        if jax.process_count() == 1:
            return pmapped(state, batches)
        # pmap takes and returns only the shards of this process's devices.
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
    """Returns shapes and dtypes of a function's result, replicated on all devices.

    Args:
        parallel: The devices.
        function: Function, which is traced and not run.
        arguments: Arrays or their shapes.
    """
    return jax.tree.map(
        lambda leaf: leaf.update(sharding=parallel.replicated),
        jax.eval_shape(function, *arguments),
    )


def put_sharded(
    parallel: Parallel, read: Callable[[np.ndarray], PyTree], indices: np.ndarray
) -> PyTree:
    """Reads examples, and returns them as arrays that are sharded over the devices.

    Args:
        parallel: The devices.
        read: Function of an array of indices that returns arrays, whose first axes
            are those of the indices. It is called only with the indices for the
            devices of this process.
        indices: Index of each example; the last axis is sharded.
    """
    sharding = parallel.sharded(indices.ndim - 1)
    slices_of = sharding.addressable_devices_indices_map(indices.shape)
    own_shards = [
        jax.device_put(read(indices[slices or ()]), device)
        for device, slices in slices_of.items()
    ]

    def join(*shards: Array) -> Array:
        shape = (*indices.shape, *shards[0].shape[indices.ndim :])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(join, *own_shards)
