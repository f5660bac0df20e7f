import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments

NUM_DEVICES = 4


def normal(*shape, seed=0):
    """Samples whose mean is 0, 1, 2, ... along the first axis."""
    values = np.random.default_rng(seed).normal(size=shape)
    index = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (values + index).astype(np.float32)


def train(x, mask=None, **settings):
    features = x.shape[-1]
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)}
    settings = {"axis_name": "devices", "momentum": 0.0} | settings
    return batch_norm(x, None, None, stats, mask=mask, **settings)


def assert_like_one_device(results, x, mask=None):
    """Compares with the oracle on what all devices hold together."""
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
    assert_like_one_device(over_devices(train)(jnp.asarray(x)), x)


def test_one_example_on_each_device_is_a_batch(over_devices):
    x = normal(8, 1, 3)
    assert_like_one_device(over_devices(train)(jnp.asarray(x)), x)


def test_a_large_mean_that_differs_between_devices_does_not_cancel(over_devices):
    x = normal(NUM_DEVICES, 8, 3) + np.float32(1e4)
    _, stats = over_devices(train)(jnp.asarray(x))
    _, mean, var = oracles.moments(np.reshape(x, (-1, 3)))
    np.testing.assert_allclose(stats["mean"][0], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"][0], var, rtol=1e-6)


def test_devices_with_more_valid_positions_weigh_more(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    mask = np.arange(8)[None, :, None] < np.array([8, 4, 2, 1])[:, None, None]
    x[~np.broadcast_to(mask, x.shape)] = np.nan
    results = over_devices(train)(jnp.asarray(x), jnp.asarray(mask))
    assert_like_one_device(results, x, mask)


def test_the_variance_of_means_belongs_to_the_variance(over_devices):
    x = jnp.array([[[-1.0], [1.0]], [[1.0], [3.0]]])
    _, stats = over_devices(train)(x)
    chex.assert_trees_all_equal(stats["mean"], jnp.ones((2, 1)))
    chex.assert_trees_all_equal(stats["var"], jnp.full((2, 1), 2.0))


def test_counts_that_differ_give_the_mean_of_all_values(over_devices):
    x = jnp.array([[[0.0]] * 4, [[4.0], [9.0], [9.0], [9.0]]])
    mask = jnp.array([[[True]] * 4, [[True], [False], [False], [False]]])
    _, stats = over_devices(train)(x, mask)
    np.testing.assert_allclose(stats["mean"], [[0.8], [0.8]], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [[2.56], [2.56]], rtol=1e-6)


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


def test_a_device_without_a_valid_position_adds_nothing(over_devices):
    x = jnp.array([[[0.0], [4.0]], [[jnp.nan], [9.0]]])
    mask = jnp.array([[[True], [True]], [[False], [False]]])
    y, stats = over_devices(train)(x, mask)
    chex.assert_trees_all_equal(stats["mean"], jnp.full((2, 1), 2.0))
    chex.assert_trees_all_equal(stats["var"], jnp.full((2, 1), 4.0))
    np.testing.assert_allclose(np.ravel(y), [-1, 1, 0, 0], rtol=1e-5)


def test_no_valid_position_on_any_device_leaves_the_statistics_alone(over_devices):
    x = jnp.full((2, 3, 1), jnp.inf)
    y, stats = over_devices(train)(x, jnp.zeros((2, 3, 1), bool))
    chex.assert_trees_all_equal(y, jnp.zeros((2, 3, 1)))
    chex.assert_trees_all_equal(stats["mean"], jnp.zeros((2, 1)))
    chex.assert_trees_all_equal(stats["var"], jnp.ones((2, 1)))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spread", [1e-6, 0.05, 4.0])
def test_devices_whose_running_means_differ_are_like_one_too(
    over_devices, spread, masked
):
    # As they do after training without an axis name, or in groups of devices.
    x = normal(NUM_DEVICES, 8, 3) + np.float32(100)
    mask = np.random.default_rng(2).random((NUM_DEVICES, 8, 1)) < (0.6 if masked else 2)
    means = np.full((NUM_DEVICES, 3), 100, np.float32)
    means[:, 1] += np.arange(NUM_DEVICES) * spread

    def train_from(x, mask, mean):
        stats = {"mean": mean, "var": jnp.ones(3)}
        return batch_norm(
            x, None, None, stats, mask=mask, momentum=0.0, axis_name="devices"
        )

    arguments = map(jnp.asarray, (x, mask, means))
    assert_like_one_device(over_devices(train_from)(*arguments), x, mask)


def test_groups_of_devices_whose_running_means_differ_are_like_one_device(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    means = np.arange(NUM_DEVICES, dtype=np.float32)[:, None] * np.ones(3, np.float32)

    def train_from(x, mean):
        stats = {"mean": mean, "var": jnp.ones(3)}
        return batch_norm(x, None, None, stats, axis_name="devices", group_size=16)

    y, _ = over_devices(train_from)(jnp.asarray(x), jnp.asarray(means))
    halves = np.reshape(x, (2, 16, 3))
    expected = [oracles.batch_norm(half) for half in halves]
    np.testing.assert_allclose(np.reshape(y, (2, 16, 3)), expected, atol=1e-5)


def test_a_running_mean_that_one_device_has_lost_spoils_no_other(over_devices):
    x = normal(NUM_DEVICES, 8, 3)
    means = np.ones((NUM_DEVICES, 3), np.float32)
    means[1, 2] = np.nan

    def train_from(x, mean):
        stats = {"mean": mean, "var": jnp.ones(3)}
        return batch_norm(x, None, None, stats, axis_name="devices")

    y, _ = over_devices(train_from)(jnp.asarray(x), jnp.asarray(means))
    expected = oracles.batch_norm(np.reshape(x, (-1, 3))).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_the_whole_are_like_those_of_one_device(over_devices, masked):
    x, dy = normal(NUM_DEVICES, 8, 3), normal(NUM_DEVICES, 8, 3, seed=1)
    mask = np.random.default_rng(2).random((NUM_DEVICES, 8, 1)) < 0.6
    mask[1] = False
    mask = mask if masked else np.ones_like(mask)
    forward = over_devices(lambda x, mask: train(x, mask)[0])

    def loss(x):
        return jnp.vdot(forward(x, jnp.asarray(mask)), dy)

    dx = jax.grad(loss)(jnp.asarray(x))
    x_flat, dy_flat, mask_flat = (
        np.reshape(v, (-1, v.shape[-1])) for v in (x, dy, mask)
    )
    expected, _, _ = oracles.batch_norm_gradients(x_flat, dy_flat, mask=mask_flat)
    np.testing.assert_allclose(dx, expected.reshape(x.shape), rtol=1e-5, atol=1e-5)


# Two examples on each of two devices, and the gradients of the mean over all four.
ROWS = jnp.array([[[0.0], [1.0]], [[2.0], [5.0]]])
TARGETS = jnp.array([[[1.0], [0.0]], [[0.0], [1.0]]])
DSCALE, DBIAS = 0.450935, -0.529360


def squared_error(params, x, targets):
    """Mean squared error of the rows of this device."""
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    y, _ = batch_norm(x, params["scale"], params["bias"], stats, axis_name="devices")
    return jnp.mean(jnp.square(jnp.tanh(y) - targets))


PARAMS = {"scale": jnp.ones(1), "bias": jnp.zeros(1)}


def assert_gradients_of_the_mean(gradients):
    np.testing.assert_allclose(gradients["scale"].ravel()[0], DSCALE, atol=1e-6)
    np.testing.assert_allclose(gradients["bias"].ravel()[0], DBIAS, atol=1e-6)


def test_averaged_gradients_of_local_losses_are_those_of_the_mean_in_pmap():
    def step(x, targets):
        gradients = jax.grad(squared_error)(PARAMS, x, targets)
        return jax.lax.pmean(gradients, "devices")

    assert_gradients_of_the_mean(jax.pmap(step, axis_name="devices")(ROWS, TARGETS))


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients_inside_shard_map_are_those_of_the_mean(check_vma, make_mesh):
    def step(params, x, targets):
        if check_vma:
            # Replicated parameters: their cotangents are summed over the devices.
            def loss(params):
                return jax.lax.pmean(squared_error(params, x[0], targets[0]), "devices")

            return jax.grad(loss)(params)
        gradients = jax.grad(squared_error)(params, x[0], targets[0])
        return jax.lax.pmean(gradients, "devices")

    mapped = jax.shard_map(
        step,
        mesh=make_mesh(devices=2),
        in_specs=(P(), P("devices"), P("devices")),
        out_specs=P(),
        check_vma=check_vma,
    )
    assert_gradients_of_the_mean(jax.jit(mapped)(PARAMS, ROWS, TARGETS))


def test_statistics_leave_shard_map_replicated(make_mesh):
    x = normal(NUM_DEVICES * 8, 3)
    mapped = jax.shard_map(
        train,
        mesh=make_mesh(devices=NUM_DEVICES),
        in_specs=P("devices"),
        out_specs=(P("devices"), P()),
    )
    y, stats = jax.jit(mapped)(jnp.asarray(x))
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
    y, stats = jax.jit(mapped)(jnp.asarray(x))
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
    y = jax.jit(mapped)(jnp.asarray(x))
    expected = np.concatenate([oracles.batch_norm(half) for half in (x[:8], x[8:])])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 3], [2, 1]], [[3, 1, 0, 2]]])
def test_groups_of_devices_share_statistics(over_devices, groups, masked):
    x = normal(4, 8, 3)
    mask = np.random.default_rng(2).random((4, 8, 1)) < (0.6 if masked else 2)
    mapped = over_devices(lambda x, mask: train(x, mask, axis_index_groups=groups))
    y, stats = mapped(jnp.asarray(x), jnp.asarray(mask))
    for group in map(np.array, groups):
        results = y[group], {name: value[group] for name, value in stats.items()}
        assert_like_one_device(results, x[group], mask[group])


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 3], [2, 1]]])
def test_gradients_of_groups_of_devices_are_those_of_each_group(over_devices, groups):
    x, dy = normal(4, 8, 3), normal(4, 8, 3, seed=1)
    forward = over_devices(lambda x: train(x, axis_index_groups=groups)[0])
    dx = jax.grad(lambda x: jnp.vdot(forward(x), dy))(jnp.asarray(x))
    for group in map(np.array, groups):
        flat = (np.reshape(values[group], (-1, 3)) for values in (x, dy))
        expected, _, _ = oracles.batch_norm_gradients(*flat)
        np.testing.assert_allclose(
            dx[group], expected.reshape(-1, 8, 3), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("mean", [1e4, 1e6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("optimized")
def test_a_large_mean_of_an_odd_number_of_values_keeps_all_digits(
    over_devices, masked, mean
):
    x = (np.random.default_rng(0).normal(size=(4, 43, 3)) + mean).astype(np.float32)
    # Each device has a constant feature of its own.
    x[..., 0] = mean + np.arange(4)[:, None]
    mask = np.random.default_rng(1).random((4, 43, 1)) < (0.6 if masked else 2)
    mapped = over_devices(lambda x, mask: train(x, mask if masked else None))
    y, _ = mapped(jnp.asarray(x), jnp.asarray(mask))
    flat, flat_mask = np.reshape(x, (-1, 3)), np.reshape(mask, (-1, 1))
    expected = oracles.batch_norm(flat, mask=flat_mask).reshape(x.shape)
    np.testing.assert_allclose(y, expected, atol=2e-6)


def test_a_mean_that_overflows_on_one_device_is_no_nan_on_the_others(over_devices):
    x = jnp.asarray(normal(4, 8, 3)).at[1].set(3e38).at[2].set(-3e38)
    y, stats = over_devices(lambda x: train(x, skip_nonfinite=True))(x)
    chex.assert_tree_all_finite((y, stats))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", ["stats", "scale", "bias", "mask", "momentum"])
@pytest.mark.parametrize("source", ["mesh", "pmap"])
def test_arrays_of_a_mesh_that_a_mapped_function_closes_over_are_differentiated(
    make_mesh, check_vma, name, source
):
    mesh, x = make_mesh(devices=4), normal(4, 8, 3).reshape(-1, 3)
    given = {
        "stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)},
        "scale": jnp.ones(3),
        "bias": jnp.zeros(3),
        "mask": jnp.ones((1, 1), bool),
        "momentum": jnp.asarray(0.9),
    }
    if source == "mesh":
        given[name] = jax.device_put(given[name], NamedSharding(mesh, P()))
    else:
        given[name] = jax.pmap(
            lambda _: given[name], axis_name="devices", out_axes=None
        )(jnp.zeros(4))

    def of_shard(x):
        arrays = (given[name] for name in ("scale", "bias", "stats"))
        y, _ = batch_norm(
            x,
            *arrays,
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
    dy = normal(4, 8, 3, seed=1).reshape(-1, 3)
    expected, _, _ = oracles.batch_norm_gradients(x, dy)
    for transform in (lambda f: f, jax.jit):
        dx = transform(jax.grad(lambda x: jnp.vdot(mapped(x), dy)))(jnp.asarray(x))
        np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("masked", [False, True])
def test_jit_on_sharded_arrays_is_like_one_device(axis_type, masked, make_mesh):
    x = normal(NUM_DEVICES, 2, 3).reshape(-1, 3)
    mask = np.arange(8)[:, None] < 5 if masked else None
    sharding = NamedSharding(make_mesh(axis_type, devices=NUM_DEVICES), P("devices"))
    sharded = jax.device_put((x, mask), sharding)
    y, stats = jax.jit(lambda x, mask: train(x, mask, axis_name=None))(*sharded)
    assert y.sharding.is_equivalent_to(sharding, ndim=2)
    _, mean, var = oracles.moments(x, mask=mask)
    np.testing.assert_allclose(y, oracles.batch_norm(x, mask=mask), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_gradients_of_sharded_arrays_are_like_one_device(axis_type, make_mesh):
    x, dy, one = normal(8, 3), normal(8, 3, seed=1), np.ones(3, np.float32)
    mesh = make_mesh(axis_type, devices=NUM_DEVICES)
    sharded = jax.device_put((x, dy), NamedSharding(mesh, P("devices")))
    params = jax.device_put((one, 0 * one), NamedSharding(mesh, P()))

    def pull_back(x, dy, scale, bias):
        stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        return jax.vjp(lambda *of: batch_norm(*of, stats)[0], x, scale, bias)[1](dy)

    actual = jax.jit(pull_back)(*sharded, *params)
    expected = oracles.batch_norm_gradients(x, dy)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
