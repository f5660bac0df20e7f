"""Statistics that devices share through a named axis."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal_with_trend as normal
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments

NUM_DEVICES = 4


def train(x, mask=None, **settings):
    features = x.shape[-1]
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)}
    settings = {"axis_name": "devices", "momentum": 0.0} | settings
    return batch_norm(x, None, None, stats, mask=mask, **settings)


def assert_like_one_device(results, x, mask=None):
    """Compares with the oracle on the examples of all devices."""
    y, stats = results
    together = np.reshape(x, (-1, x.shape[-1]))
    mask = None if mask is None else np.reshape(mask, (-1, 1))
    _, mean, var = oracles.moments(together, mask=mask)
    for device in range(x.shape[0]):
        np.testing.assert_allclose(stats["mean"][device], mean, rtol=1e-5)
        np.testing.assert_allclose(stats["var"][device], var, rtol=1e-5)
    expected = oracles.batch_norm(together, mask=mask).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_devices_together_are_like_one(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    assert_like_one_device(over_devices(train)(x), x)


def test_one_example_on_each_device_is_a_batch(over_devices):
    x = normal(8, 1, 3)
    assert_like_one_device(over_devices(train)(x), x)


def test_a_large_mean_that_differs_between_devices_does_not_cancel(over_devices):
    x = normal(NUM_DEVICES, 8, 3) + np.float32(1e4)
    _, stats = over_devices(train)(x)
    _, mean, var = oracles.moments(np.reshape(x, (-1, 3)))
    np.testing.assert_allclose(stats["mean"][0], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"][0], var, rtol=1e-6)


def test_devices_with_more_valid_positions_weigh_more(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    mask = np.arange(8)[None, :, None] < np.array([8, 4, 0, 1])[:, None, None]
    results = over_devices(train)(jnp.where(mask, x, jnp.nan), jnp.asarray(mask))
    assert_like_one_device(results, x, mask)


def test_the_variance_of_means_belongs_to_the_variance(over_devices):
    x = jnp.array([[[-1.0], [1.0]], [[1.0], [3.0]]])
    _, stats = over_devices(train)(x)
    chex.assert_trees_all_equal(stats["mean"], jnp.ones((2, 1)))
    chex.assert_trees_all_equal(stats["var"], jnp.full((2, 1), 2.0))


def test_one_valid_position_on_all_devices_is_all_there_is(over_devices):
    mask = jnp.zeros((NUM_DEVICES, 2, 1), bool).at[1, 0].set(True)
    x = jnp.full((NUM_DEVICES, 2, 1), jnp.nan).at[1, 0].set(6.0)
    _, stats = over_devices(train)(x, mask)
    chex.assert_trees_all_equal(stats["mean"], jnp.full((NUM_DEVICES, 1), 6.0))
    chex.assert_trees_all_equal(stats["var"], jnp.zeros((NUM_DEVICES, 1)))


def test_the_number_of_samples_is_that_of_all_devices(over_devices):
    mask = np.arange(8)[None, :, None] < np.array([8, 0, 2, 1])[:, None, None]

    def count(x, mask):
        return batch_moments(
            x,
            feature_axes=(1,),
            mask=jnp.broadcast_to(mask, x.shape),
            devices=Devices((("devices", 4),)),
        ).num_samples

    counts = over_devices(count)(jnp.ones((4, 8, 3)), jnp.asarray(mask))
    chex.assert_trees_all_equal(counts, jnp.full((4, 3), 11.0))


def test_no_valid_position_on_any_device_leaves_the_statistics_alone(over_devices):
    x = jnp.full((2, 3, 1), jnp.inf)
    y, stats = over_devices(train)(x, jnp.zeros((2, 3, 1), bool))
    chex.assert_trees_all_equal(y, jnp.zeros((2, 3, 1)))
    chex.assert_trees_all_equal(stats["mean"], jnp.zeros((2, 1)))
    chex.assert_trees_all_equal(stats["var"], jnp.ones((2, 1)))


def test_running_means_that_differ_between_devices_reach_no_result(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    means = jnp.full((NUM_DEVICES, 3), 100.0).at[:, 1].set(jnp.arange(4.0))
    means = means.at[1, 2].set(jnp.nan)

    def train_from(x, mean):
        stats = {"mean": mean, "var": jnp.ones(3)}
        return batch_norm(x, None, None, stats, axis_name="devices")[0]

    expected = oracles.batch_norm(np.reshape(x, (-1, 3))).reshape(x.shape)
    np.testing.assert_allclose(over_devices(train_from)(x, means), expected, atol=1e-5)


def test_gradients_of_the_whole_are_like_those_of_one_device(over_devices):
    x, dy = normal(NUM_DEVICES, 8, 3), normal(NUM_DEVICES, 8, 3, seed=1)
    mask = np.random.default_rng(2).random((NUM_DEVICES, 8, 1)) < 0.6
    mask[1] = False
    forward = over_devices(lambda x, mask: train(x, mask)[0])
    dx = jax.grad(lambda x: jnp.vdot(forward(x, jnp.asarray(mask)), dy))(x)
    flat = [np.reshape(v, (-1, v.shape[-1])) for v in (x, dy, mask)]
    expected, _, _ = oracles.batch_norm_gradients(*flat[:2], mask=flat[2])
    np.testing.assert_allclose(dx, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)


def test_statistics_leave_shard_map_replicated(make_mesh):
    x = normal(NUM_DEVICES * 8, 3)
    mapped = jax.shard_map(
        train,
        mesh=make_mesh(devices=NUM_DEVICES),
        in_specs=P("devices"),
        out_specs=(P("devices"), P()),
    )
    y, stats = jax.jit(mapped)(x)
    chex.assert_shape(list(stats.values()), (3,))
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)


def test_axes_of_a_mesh_in_a_tuple_share_statistics(make_mesh):
    x = normal(16, 3)
    mapped = jax.shard_map(
        lambda x: train(x, axis_name=("rows", "columns")),
        mesh=make_mesh(rows=2, columns=4),
        in_specs=P(("rows", "columns")),
        out_specs=(P(("rows", "columns")), P()),
    )
    y, stats = jax.jit(mapped)(x)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_one_axis_of_a_mesh_makes_groups(make_mesh):
    x = normal(16, 3)
    mapped = jax.shard_map(
        lambda x: train(x, axis_name="members")[0],
        mesh=make_mesh(groups=2, members=4),
        in_specs=P(("groups", "members")),
        out_specs=P(("groups", "members")),
    )
    y = jax.jit(mapped)(x)
    expected = np.concatenate([oracles.batch_norm(half) for half in (x[:8], x[8:])])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("groups", "masked"),
    [([[0, 1], [2, 3]], True), ([[0, 3], [2, 1]], False), ([[3, 1, 0, 2]], False)],
)
def test_groups_of_devices_share_statistics(over_devices, groups, masked):
    x = normal(4, 8, 3)
    mask = np.random.default_rng(2).random((4, 8, 1)) < (0.6 if masked else 2)
    mapped = over_devices(lambda x, mask: train(x, mask, axis_index_groups=groups))
    y, stats = mapped(x, jnp.asarray(mask))
    for group in map(np.array, groups):
        results = y[group], {name: value[group] for name, value in stats.items()}
        assert_like_one_device(results, x[group], mask[group])


def test_gradients_of_groups_of_devices_are_those_of_each_group(over_devices):
    x, dy, groups = normal(4, 8, 3), normal(4, 8, 3, seed=1), [[0, 3], [2, 1]]
    forward = over_devices(lambda x: train(x, axis_index_groups=groups)[0])
    dx = jax.grad(lambda x: jnp.vdot(forward(x), dy))(x)
    for group in map(np.array, groups):
        flat = (np.reshape(values[group], (-1, 3)) for values in (x, dy))
        expected, _, _ = oracles.batch_norm_gradients(*flat)
        np.testing.assert_allclose(
            dx[group], expected.reshape(-1, 8, 3), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("optimized")
def test_a_large_mean_of_an_odd_number_of_values_keeps_all_digits(over_devices, masked):
    mapped = over_devices(lambda x, mask: train(x, mask if masked else None)[0])
    mask = np.random.default_rng(1).random((4, 43, 1)) < (0.6 if masked else 2)
    for mean in (1e4, 1e6):
        x = np.random.default_rng(0).normal(mean, 1, (4, 43, 3)).astype(np.float32)
        # Each device has a constant feature of its own.
        x[..., 0] = mean + np.arange(4)[:, None]
        flat, flat_mask = np.reshape(x, (-1, 3)), np.reshape(mask, (-1, 1))
        expected = oracles.batch_norm(flat, mask=flat_mask).reshape(x.shape)
        y = mapped(jnp.asarray(x), jnp.asarray(mask))
        np.testing.assert_allclose(y, expected, atol=2e-6)


def test_a_mean_that_overflows_on_one_device_is_no_nan_on_the_others(over_devices):
    x = normal(4, 8, 3).at[1].set(3e38).at[2].set(-3e38)
    y, stats = over_devices(lambda x: train(x, skip_nonfinite=True))(x)
    chex.assert_tree_all_finite((y, stats))


@pytest.mark.parametrize(
    ("source", "check_vma", "transform"),
    [
        ("mesh", True, jax.jit),
        ("mesh", False, jax.jit),
        ("pmap", True, jax.jit),
        ("pmap", False, jax.jit),
        pytest.param("mesh", True, lambda f: f, marks=pytest.mark.slow),
    ],
    ids=["mesh", "mesh-unchecked", "pmap", "pmap-unchecked", "mesh-eager"],
)
def test_arrays_of_a_mesh_that_a_mapped_function_closes_over_are_differentiated(
    make_mesh, source, check_vma, transform
):
    mesh = make_mesh(devices=4)
    given = {
        "stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        "scale": jnp.ones(3),
        "bias": jnp.zeros(3),
        "mask": jnp.ones((1, 1), bool),
        "momentum": jnp.asarray(0.9),
    }
    if source == "mesh":
        given = jax.device_put(given, NamedSharding(mesh, P()))
    else:
        replicate = jax.pmap(lambda _: given, axis_name="devices", out_axes=None)
        given = replicate(jnp.zeros(4))

    def of_shard(x):
        y, _ = batch_norm(
            x,
            given["scale"],
            given["bias"],
            given["stats"],
            axis_name="devices",
            mask=given["mask"],
            momentum=given["momentum"],
        )
        return y

    mapped = jax.shard_map(
        of_shard,
        mesh=mesh,
        in_specs=P("devices"),
        out_specs=P("devices"),
        check_vma=check_vma,
    )
    x, dy = normal(32, 3), normal(32, 3, seed=1)
    expected, _, _ = oracles.batch_norm_gradients(x, dy)
    dx = transform(jax.grad(lambda x: jnp.vdot(mapped(x), dy)))(x)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


def test_an_axis_of_vmap_and_one_of_an_unchecked_mesh_share_statistics(make_mesh):
    x = normal(2, 8, 3)
    mapped = jax.shard_map(
        jax.vmap(
            lambda x: train(x, axis_name=("devices", "slices"))[0], axis_name="slices"
        ),
        mesh=make_mesh(devices=2),
        in_specs=P(None, "devices"),
        out_specs=P(None, "devices"),
        check_vma=False,
    )
    expected = oracles.batch_norm(np.reshape(x, (16, 3))).reshape(x.shape)
    np.testing.assert_allclose(jax.jit(mapped)(x), expected, rtol=1e-5, atol=1e-5)
