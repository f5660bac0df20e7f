"""Groups of examples that share statistics, on one device and on several."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal as without_trend
from arrays import normal_with_trend as normal
from core.jitted import compiled
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm

SHAPES = [(12, 3), (12, 4, 4, 3)]


def step(x, scale=None, bias=None, **settings):
    features = x.shape[-1]
    stats = {"mean": jnp.zeros(features), "var": jnp.ones(features)}
    return compiled(x, scale, bias, stats, **({"momentum": 0.0} | settings))


def chunks(group_size, *arrays):
    """Cuts the arrays into groups of consecutive examples."""
    num_groups = len(arrays[0]) // group_size
    return zip(*(np.split(np.asarray(a), num_groups) for a in arrays), strict=True)


def assert_grouped(results, x, group_size, mask=None):
    """Compares with the oracle, applied to each group separately."""
    y, stats = results
    if mask is None:
        mask = np.ones((len(x), *[1] * (x.ndim - 1)), bool)
    pairs = list(chunks(group_size, x, mask))
    expected = np.concatenate([oracles.batch_norm(g, mask=m) for g, m in pairs])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    moments = [oracles.moments(g, mask=m) for g, m in pairs if m.any()]
    for index, name in enumerate(("mean", "var"), start=1):
        average = np.mean([m[index] for m in moments], axis=0)
        np.testing.assert_allclose(stats[name], average, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "group_size"), [((12, 3), 2), ((12, 3), 12), ((12, 4, 4, 3), 4)]
)
def test_each_group_is_normalized_by_itself(shape, group_size):
    x = normal(*shape)
    assert_grouped(step(x, group_size=group_size), x, group_size)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_each_group(shape):
    x, dy, scale = normal(*shape), normal(*shape, seed=1), normal(3, seed=2) + 1

    @jax.jit
    def pull_back(dy):
        return jax.vjp(lambda *of: step(*of, group_size=4)[0], x, scale, scale)[1](dy)

    groups = [oracles.batch_norm_gradients(*pair, scale) for pair in chunks(4, x, dy)]
    dx, dscale, dbias = zip(*groups, strict=True)
    expected = np.concatenate(dx), np.sum(dscale, axis=0), np.sum(dbias, axis=0)
    for got, want in zip(pull_back(dy), expected, strict=True):
        # The sums have some hundred terms, which partly cancel.
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_masked_group_has_no_weight(shape):
    x = normal(*shape)
    mask = np.random.default_rng(1).random((12, *[1] * (len(shape) - 1))) < 0.7
    mask[4:8] = False
    mask[[0, 1, 8, 9]] = True
    hidden = jnp.where(mask, x, jnp.nan)
    results = step(hidden, group_size=4, mask=jnp.asarray(mask))
    assert_grouped(results, x, 4, mask)


def test_gradients_of_masked_groups_are_those_of_each_group():
    x, dy = normal(12, 3), normal(12, 3, seed=1)
    mask = np.arange(12)[:, None] % 4 < np.array([3, 0, 4]).repeat(4)[:, None]

    def loss(x):
        return jnp.vdot(step(x, group_size=4, mask=jnp.asarray(mask))[0], dy)

    actual = jax.jit(jax.grad(loss))(x)
    groups = chunks(4, x, dy, mask)
    expected = [oracles.batch_norm_gradients(g, d, mask=m)[0] for g, d, m in groups]
    np.testing.assert_allclose(actual, np.concatenate(expected), rtol=1e-4, atol=1e-5)


def test_the_variance_between_groups_is_not_kept():
    x = jnp.array([[-1.0], [1.0], [99.0], [101.0]])
    _, stats = step(x, group_size=2)
    np.testing.assert_allclose(stats["mean"], [50.0], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [1.0], rtol=1e-6)


def test_the_correction_is_that_of_a_group():
    x = jnp.array([[0.0], [2.0], [10.0], [12.0]])
    _, stats = step(x, group_size=2, variance_correction=1)
    np.testing.assert_allclose(stats["var"], [2.0], rtol=1e-6)


def test_features_may_lie_on_any_axis_behind_the_examples():
    x = normal(8, 5, 3)
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    y, _ = compiled(x, None, None, stats, axis=1, group_size=2)
    expected = [oracles.batch_norm(g, axis=1) for (g,) in chunks(2, x)]
    np.testing.assert_allclose(y, np.concatenate(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("group_size", "masked"), [(1, False), (8, True), (16, False)])
def test_groups_are_the_same_on_eight_devices(over_devices, group_size, masked):
    x = normal(16, 5, 3)
    mask = np.random.default_rng(1).random((16, 5, 1)) < 0.8
    mask[:2] = False
    mask = mask if masked else np.ones_like(mask)
    settings = {"axis_name": "devices", "group_size": group_size}
    mapped = over_devices(lambda x, mask: step(x, mask=mask, **settings))
    y, stats = mapped(x.reshape(8, 2, 5, 3), jnp.asarray(mask).reshape(8, 2, 5, 1))
    for device in (0, 7):
        of_device = {name: value[device] for name, value in stats.items()}
        assert_grouped((y.reshape(x.shape), of_device), x, group_size, mask)


def test_devices_agree_when_one_group_is_far_from_the_shift(over_devices):
    x = without_trend(16, 3).at[4:8].add(1e3)
    mapped = over_devices(lambda x: step(x, axis_name="devices", group_size=4))
    y, stats = mapped(x.reshape(8, 2, 3))
    of_device = {name: value[-1] for name, value in stats.items()}
    # float32 rounds a value near 1000 by 3e-5 of a standard deviation.
    expected = [oracles.batch_norm(group) for (group,) in chunks(4, x)]
    np.testing.assert_allclose(y.reshape(16, 3), np.concatenate(expected), atol=1e-4)
    var = np.mean([oracles.moments(group)[2] for (group,) in chunks(4, x)], axis=0)
    np.testing.assert_allclose(of_device["var"], var, rtol=1e-4)


def test_gradients_are_the_same_on_eight_devices(over_devices):
    x, dy = normal(16, 5, 3), normal(16, 5, 3, seed=1)
    settings = {"axis_name": "devices", "group_size": 8}
    forward = over_devices(lambda x: step(x, **settings)[0])

    def loss(x):
        return jnp.vdot(forward(x.reshape(8, 2, 5, 3)), dy)

    expected = [oracles.batch_norm_gradients(*pair)[0] for pair in chunks(8, x, dy)]
    # dy is as large as 15, and the gradient subtracts its mean.
    np.testing.assert_allclose(
        jax.jit(jax.grad(loss))(x), np.concatenate(expected), rtol=1e-4, atol=5e-5
    )


every_axis_type = pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, AxisType.Explicit]
)


@pytest.mark.parametrize(("group_size", "masked"), [(2, False), (8, True), (16, False)])
@every_axis_type
def test_groups_of_sharded_arrays_are_those_of_one_device(
    make_mesh, axis_type, group_size, masked
):
    x = normal(16, 5, 4)
    mask = jax.random.bernoulli(jax.random.key(1), 0.8, (16, 5, 1)) if masked else None
    mesh = make_mesh(axis_type, devices=4, features=2)
    sharding = NamedSharding(mesh, P("devices", None, "features"))
    sharded = jax.device_put(x, sharding)
    if masked:
        mask = jax.device_put(mask, NamedSharding(mesh, P("devices")))
    results = step(sharded, mask=mask, group_size=group_size)
    assert results[0].sharding.is_equivalent_to(sharding, ndim=3)
    assert_grouped(results, x, group_size, mask)


@every_axis_type
def test_gradients_of_groups_of_sharded_arrays_are_those_of_each(make_mesh, axis_type):
    x, dy = normal(16, 5, 3), normal(16, 5, 3, seed=1)
    sharding = NamedSharding(make_mesh(axis_type, devices=8), P("devices"))

    def pull_back(x, dy):
        return jax.vjp(lambda x: step(x, group_size=8)[0], x)[1](dy)[0]

    actual = jax.jit(pull_back)(*jax.device_put((x, dy), sharding))
    expected = [oracles.batch_norm_gradients(*pair)[0] for pair in chunks(8, x, dy)]
    # dy is as large as 15, and the gradient subtracts its mean.
    np.testing.assert_allclose(actual, np.concatenate(expected), rtol=1e-4, atol=5e-5)


def test_statistics_leave_shard_map_replicated(make_mesh):
    x = normal(16, 3)
    mapped = jax.shard_map(
        lambda x: step(x, axis_name="devices", group_size=4),
        mesh=make_mesh(devices=8),
        in_specs=P("devices"),
        out_specs=(P("devices"), P()),
    )
    assert_grouped(jax.jit(mapped)(x), x, 4)


@pytest.mark.parametrize(("group_size", "fitting"), [(5, "4 or 6"), (48, "6 or 12")])
def test_a_size_that_does_not_divide_is_refused_with_those_that_do(group_size, fitting):
    with pytest.raises(
        ValueError, match=rf"group_size={group_size} .*; {fitting} would"
    ):
        step(normal(12, 3), group_size=group_size)


def test_groups_that_straddle_devices_are_refused():
    mapped = jax.vmap(
        lambda x: step(x, axis_name="devices", group_size=6), axis_name="devices"
    )
    with pytest.raises(ValueError, match=r"whole batch of 24; 4 or 8 would"):
        mapped(normal(6, 4, 3))


def test_groups_of_devices_and_of_examples_are_refused_together():
    settings = {"axis_name": "devices", "axis_index_groups": ((0, 1),)}
    with pytest.raises(ValueError, match="give one of them"):
        step(normal(4, 3), group_size=2, **settings)


def test_examples_that_are_features_are_refused():
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"axis 0, which is a feature axis"):
        batch_norm(normal(4, 3), None, None, stats, axis=0, group_size=2)


def test_groups_of_one_value_are_refused():
    with pytest.raises(ValueError, match="one value per feature"):
        step(normal(4, 3), group_size=1)


def test_one_group_is_the_whole_batch():
    x = normal(12, 3)
    chex.assert_trees_all_close(step(x, group_size=12), step(x), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("unchecked_types")
def test_a_size_may_be_one_of_numpys_integers():
    x = normal(12, 3)
    y, _ = jax.jit(lambda x: batch_norm(x, None, None, None, group_size=np.int64(4)))(x)
    chex.assert_trees_all_close(y, step(x, group_size=4)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 0, 2), (4, 0)])
def test_groups_of_examples_without_a_value_leave_the_statistics_alone(shape):
    y, stats = step(jnp.zeros(shape), group_size=2)
    assert y.shape == shape
    np.testing.assert_array_equal(stats["mean"], np.zeros(shape[-1]))
