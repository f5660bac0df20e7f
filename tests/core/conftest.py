"""Every way to map a function over devices."""

import jax
import pytest
from jax.sharding import PartitionSpec as P

MAPS = ("pmap", "vmap", "shard_map", "shard_map_unchecked")


@pytest.fixture(params=MAPS)
def over_devices(request, make_mesh):
    """Maps a function of the slices of arrays along their first axis, "devices"."""

    def over_devices(function):
        if request.param == "pmap":
            return jax.pmap(function, axis_name="devices")
        if request.param == "vmap":
            return jax.jit(jax.vmap(function, axis_name="devices"))

        def of_shards(*shards):
            results = function(*(shard[0] for shard in shards))
            return jax.tree.map(lambda result: result[None], results)

        def mapped(*arrays):
            return jax.shard_map(
                of_shards,
                mesh=make_mesh(devices=arrays[0].shape[0]),
                in_specs=P("devices"),
                out_specs=P("devices"),
                check_vma=request.param == "shard_map",
            )(*arrays)

        return jax.jit(mapped)

    return over_devices


@pytest.fixture
def optimized():
    """Compiles as for users: `make test` leaves most optimizations out."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)
