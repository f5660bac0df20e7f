"""Fixtures: functions mapped over devices, and compilation as for users."""

import jax
import pytest
from jax.sharding import PartitionSpec as P


@pytest.fixture
def over_devices(make_mesh):
    """Maps a function of the slices of arrays along their first axis, "devices".

    The map is shard_map; tests/conformance compares pmap, vmap and shard_map.
    """

    def over_devices(function):
        def of_shards(*shards):
            results = function(*(shard[0] for shard in shards))
            return jax.tree.map(lambda result: result[None], results)

        def mapped(*arrays):
            return jax.shard_map(
                of_shards,
                mesh=make_mesh(devices=arrays[0].shape[0]),
                in_specs=P("devices"),
                out_specs=P("devices"),
            )(*arrays)

        return jax.jit(mapped)

    return over_devices


@pytest.fixture
def optimized():
    """Compiles with all optimizations, as for users; `make test` omits most of them."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)
