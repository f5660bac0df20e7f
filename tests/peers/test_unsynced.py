"""Statistics that devices kept apart."""

import jax
import jax.numpy as jnp
import pytest
from conformance.modes import AXIS, make_mesh
from jax.sharding import PartitionSpec as P
from peers import formulas
from peers.calls import is_close, train

import bn_jax

UNSYNCED = [[[-1.0], [1.0]], [[1.0], [3.0]]]


@pytest.mark.parametrize(
    ("x", "var"),
    [(UNSYNCED, 2.0), ([[[m - 1.0], [m + 1.0]] for m in (0, 2, 4, 6)], 6.0)],
    ids=["two", "four"],
)
def test_scenic_averages_the_variances_of_unsynced_statistics(x, var):
    kept = jax.jit(jax.vmap(lambda x: train(x, momentum=0.0)[1]))(jnp.array(x))
    assert is_close(bn_jax.merge_batch_stats(kept)["var"], [var])
    assert is_close(formulas.averaged_statistics(kept)["var"], [1.0])


def test_unsynced_statistics_do_not_leave_shard_map_as_if_they_were_synced():
    def mapped(merge):
        def of_shard(x):
            stats = train(x, momentum=0.0)[1]
            merged = bn_jax.merge_batch_stats(stats, axis_name=AXIS)
            return jax.lax.pmean(merged, AXIS) if merge else stats

        x = jnp.array(UNSYNCED).reshape(4, 1)
        mesh = make_mesh(2)
        sharded = jax.shard_map(of_shard, mesh=mesh, in_specs=P(AXIS), out_specs=P())
        return jax.jit(sharded)(x)

    assert is_close(mapped(True)["var"], [2.0])
    with pytest.raises(ValueError, match="replicat"):
        mapped(False)
