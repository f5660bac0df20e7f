from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import bn_jax

merge = jax.jit(bn_jax.merge_batch_stats)


def kept_apart(mean=0.0):
    """Returns the examples of eight devices, and the statistics that each kept."""
    x = (
        np.random.default_rng(0).normal(mean, 1, (8, 6, 3))
        + np.arange(8)[:, None, None]
    )
    moments = [oracles.moments(device) for device in x]
    _, means, variances = (np.stack(leaf) for leaf in zip(*moments, strict=True))
    stats = {"mean": jnp.float32(means), "var": jnp.float32(variances)}
    return x.reshape(48, 3), {"block": {"norm": stats}}


def test_the_variance_of_the_means_is_part_of_the_pooled_one():
    kept = {"mean": jnp.array([[0.0], [2.0]]), "var": jnp.array([[1.0], [1.0]])}
    pooled = merge(kept)
    expected = {"mean": jnp.array([1.0]), "var": jnp.array([2.0])}
    chex.assert_trees_all_close(pooled, expected, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_pooled_statistics_are_those_of_all_examples(mean):
    x, kept = kept_apart(mean)
    pooled = merge(kept)["block"]["norm"]
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(pooled["mean"], mean, rtol=1e-5)
    # float32 rounds means of 1e4 to 1e-3.
    np.testing.assert_allclose(pooled["var"], var, rtol=1e-5 if mean[0] < 100 else 1e-3)


@pytest.mark.parametrize("make_map", [jax.vmap, jax.pmap])
def test_pooling_inside_a_map_is_like_pooling_outside(make_map):
    _, kept = kept_apart()
    merge_inside = make_map(
        lambda stats: bn_jax.merge_batch_stats(stats, axis_name="devices"),
        axis_name="devices",
    )
    inside = jax.tree.map(np.asarray, jax.jit(merge_inside)(kept))
    outside = merge(kept)
    for device in (0, 7):
        of_device = jax.tree.map(lambda leaf, i=device: leaf[i], inside)
        chex.assert_trees_all_close(of_device, outside, rtol=1e-6)


@pytest.mark.parametrize("check_vma", [False, True])
def test_pooled_statistics_leave_shard_map_as_the_same_on_all_devices(check_vma):
    _, kept = kept_apart(mean=100.0)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))

    def pool(stats):
        own = jax.tree.map(lambda values: values[0], stats)
        return bn_jax.merge_batch_stats(own, axis_name="devices")

    mapped = jax.shard_map(
        pool, mesh=mesh, in_specs=P("devices"), out_specs=P(), check_vma=check_vma
    )
    pooled = jax.jit(mapped)(kept)
    chex.assert_trees_all_close(pooled, merge(kept), rtol=1e-6)


def test_a_mean_of_a_million_costs_no_digit_of_the_pooled_variance():
    # Near a million, float32 holds eighths exactly, but not their mean.
    stats = {"mean": 1e6 + jnp.arange(8.0)[:, None] / 8, "var": jnp.zeros((8, 1))}
    expected = np.var(np.arange(8) / 8)
    pool = partial(bn_jax.merge_batch_stats, axis_name="i")
    assert merge(stats)["var"] == expected
    np.testing.assert_array_equal(
        jax.vmap(pool, axis_name="i")(stats)["var"], np.full((8, 1), expected)
    )


def test_two_mapped_axes_are_pooled_together():
    _, kept = kept_apart()
    pool = partial(bn_jax.merge_batch_stats, axis_name=("a", "b"))
    split = jax.tree.map(lambda values: values.reshape(2, -1, *values.shape[1:]), kept)
    pooled = jax.jit(jax.vmap(jax.vmap(pool, axis_name="b"), axis_name="a"))(split)
    expected = merge(kept)
    chex.assert_trees_all_close(
        jax.tree.map(lambda values: values[0, 0], pooled), expected, rtol=1e-6
    )


def test_a_count_is_averaged_and_dtypes_stay():
    kept = {"mean": jnp.zeros((2, 3), jnp.bfloat16), "var": jnp.ones((2, 3))}
    pooled = merge(kept | {"count": jnp.array([3.0, 5.0])})
    assert pooled["count"].item() == 4
    chex.assert_type([pooled["mean"], pooled["var"]], [jnp.bfloat16, jnp.float32])


def test_a_tree_without_layers_is_refused():
    with pytest.raises(ValueError, match="expected a batch_stats collection"):
        bn_jax.merge_batch_stats({"dense": {"kernel": jnp.ones((2, 3))}})


def test_an_axis_that_is_not_mapped_is_named():
    _, kept = kept_apart()
    with pytest.raises(NameError, match="merge_batch_stats: axis_name='devices' is no"):
        bn_jax.merge_batch_stats(kept, axis_name="devices")


def test_a_count_of_infinity_is_pooled_as_a_finite_one():
    stats = {"mean": jnp.zeros((2, 1)), "var": jnp.ones((2, 1))}
    pooled = merge(stats | {"count": jnp.array([jnp.inf, 2.0**24])})
    assert pooled["count"] == 2**24


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_pooled_in_float32(dtype):
    kept = {"mean": jnp.array([[0.0], [2.0]], dtype), "var": jnp.ones((2, 1), dtype)}
    pooled = merge(kept)
    assert pooled["var"].dtype == dtype
    assert (pooled["mean"].item(), pooled["var"].item()) == (1, 2)
