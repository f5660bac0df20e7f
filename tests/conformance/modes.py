"""Functions that run a test's function in each mode that shards a batch over devices.

The function receives the examples of its device and an axis name: `AXIS` in the modes
that map over devices, None under jit on sharded arrays. Its results have a leading axis
of devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "devices"
MAPPED = ("pmap", "shard_map", "shard_map_unchecked", "vmap")
MODES = ("jit", *MAPPED)
# Each map compiles all of its programs; the quick tests leave two of the five out.
QUICK_AND_SLOW_MODES = tuple(
    pytest.param(mode, marks=pytest.mark.slow)
    if mode in ("pmap", "shard_map_unchecked")
    else mode
    for mode in MODES
)


def first_devices(num_devices: int) -> list[jax.Device]:
    """Returns the first devices; skips the test if there are fewer."""
    devices = jax.devices()[:num_devices]
    if len(devices) < num_devices:
        pytest.skip(f"needs {num_devices} devices")
    return devices


def available_devices(mode: str, num_devices: int) -> int:
    """Returns the number, limited to the devices that exist except for `vmap`."""
    return num_devices if mode == "vmap" else min(num_devices, jax.device_count())


def make_mesh(num_devices: int) -> Mesh:
    return jax.make_mesh(
        (num_devices,),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=first_devices(num_devices),
    )


def over_devices(
    mode: str, num_devices: int, body: Callable[..., Any]
) -> Callable[..., Any]:
    """Returns a function that maps `body(axis_name, params, *arrays)` over devices."""

    def mapped(params: Any, *arrays: Any) -> Any:
        def of_device(params: Any, *local: Any) -> Any:
            return body(AXIS, params, *local)

        if mode == "jit":
            return jax.tree.map(lambda leaf: leaf[None], body(None, params, *arrays))
        if mode in ("pmap", "vmap"):
            split = [split_devices(array, num_devices) for array in arrays]
            in_axes = (None, *[0] * len(arrays))
            if mode == "vmap":
                return jax.vmap(of_device, in_axes=in_axes, axis_name=AXIS)(
                    params, *split
                )
            return jax.pmap(
                of_device,
                in_axes=in_axes,
                axis_name=AXIS,
                devices=first_devices(num_devices),
            )(params, *split)

        def of_shard(params: Any, *local: Any) -> Any:
            results = of_device(params, *local)
            return jax.tree.map(lambda leaf: leaf[None], results)

        return jax.shard_map(
            of_shard,
            mesh=make_mesh(num_devices),
            in_specs=(P(), *[P(AXIS)] * len(arrays)),
            out_specs=P(AXIS),
            check_vma=mode == "shard_map",
        )(params, *arrays)

    return mapped


def split_devices(array: jax.Array, num_devices: int) -> jax.Array:
    return jnp.reshape(array, (num_devices, -1, *array.shape[1:]))


def join_devices(array: jax.Array) -> np.ndarray:
    array = np.asarray(array)
    return array.reshape(-1, *array.shape[2:])


def place(mode: str, num_devices: int, params: Any, *arrays: Any) -> tuple[Any, ...]:
    """Returns the arguments, on the devices on which the mode needs them."""
    if mode == "vmap":
        return params, *arrays
    mesh = make_mesh(num_devices)
    sharded = jax.device_put(arrays, NamedSharding(mesh, P(AXIS)))
    return jax.device_put(params, NamedSharding(mesh, P())), *sharded
