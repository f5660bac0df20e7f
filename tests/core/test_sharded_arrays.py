"""Sharded arrays, normalized under `jax.jit` without an axis name."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal_with_trend as normal
from core.jitted import compiled
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("masked", [False, True])
def test_jit_on_sharded_arrays_is_like_one_device(
    axis_type, masked, make_mesh, initial_stats
):
    x = normal(8, 3)
    mask = np.arange(8)[:, None] < 5 if masked else None
    sharding = NamedSharding(make_mesh(axis_type, devices=4), P("devices"))
    sharded_x, sharded_mask = jax.device_put((x, mask), sharding)
    y, stats = compiled(
        sharded_x, None, None, initial_stats(3), momentum=0.0, mask=sharded_mask
    )
    assert y.sharding.is_equivalent_to(sharding, ndim=2)
    _, mean, var = oracles.moments(x, mask=mask)
    np.testing.assert_allclose(y, oracles.batch_norm(x, mask=mask), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_gradients_of_sharded_arrays_are_like_one_device(axis_type, make_mesh):
    x, dy, one = normal(8, 3), normal(8, 3, seed=1), np.ones(3, np.float32)
    mesh = make_mesh(axis_type, devices=4)
    sharded = jax.device_put((x, dy), NamedSharding(mesh, P("devices")))
    params = jax.device_put((one, 0 * one), NamedSharding(mesh, P()))

    def pull_back(x, dy, scale, bias):
        stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
        return jax.vjp(lambda *of: batch_norm(*of, stats)[0], x, scale, bias)[1](dy)

    actual = jax.jit(pull_back)(*sharded, *params)
    expected = oracles.batch_norm_gradients(x, dy)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
