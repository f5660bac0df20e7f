"""Large means: E[x^2] - E[x]^2 cancels."""

import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from conformance.modes import over_devices
from peers import formulas
from peers.calls import batch_statistics, flax_layer, is_close, train


@pytest.mark.parametrize("offset", [1e3, 3e3, 1e4, 1e5])
def test_flax_variance_cancels_under_a_large_mean(offset):
    x = np.random.default_rng(0).normal(offset, 1, (4096, 2)).astype(np.float32)
    _, _, var = oracles.moments(x)
    assert is_close(batch_statistics(x)[1], var, rtol=1e-5)
    assert not is_close(formulas.fast_moments(jnp.asarray(x))[1], var, rtol=1e-5)
    assert not is_close(flax_layer(x, momentum=0.0)[1]["var"], var, rtol=1e-5)


def test_flax_makes_316_of_two_values_around_ten_thousand():
    x = jnp.array([[9999.0], [10001.0]])
    expected = [[-1], [1]]
    assert is_close(train(x)[0], expected)
    assert is_close(np.abs(flax_layer(x)[0]), np.sqrt(1e5), rtol=1e-3)


@pytest.mark.parametrize("center", [1e4, 1e5])
def test_haiku_and_flax_find_no_variance_in_two_values_of_many_rows(center):
    x = jnp.tile(jnp.array([[center - 1], [center + 1]]), (128, 1))
    assert is_close(batch_statistics(x)[1], [1.0])
    for moments in (formulas.fast_moments, formulas.haiku_moments):
        assert not is_close(moments(x)[1], [1.0])


def test_haiku_variance_turns_negative_and_its_result_nan():
    x = np.random.default_rng(0).normal(3000, 0.1, (256, 64)).astype(np.float32)
    expected = oracles.batch_norm(x)
    # x itself is known to 1e-4, which is 1e-3 of its deviation.
    assert is_close(train(x)[0], expected, atol=5e-3)
    mean, var = formulas.haiku_moments(jnp.asarray(x))
    assert (np.asarray(var) < 0).any()
    assert np.isnan(formulas.standardize(x, mean, var)).any()


def test_a_mean_of_one_number_moves_every_value_of_the_stable_formula_too():
    x = np.random.default_rng(0).normal(1e4, 1, (4096, 2)).astype(np.float32)
    expected = oracles.batch_norm(x)
    assert is_close(train(x)[0], expected, atol=2e-6)
    # Numbers near 1e4 are 1e-3 apart.
    two_passes = formulas.standardize(x, *formulas.equinox_moments(jnp.asarray(x)))
    assert not is_close(two_passes, expected, atol=5e-5)
    stable = flax_layer(x, use_fast_variance=False)[0]
    assert not is_close(stable, expected, atol=5e-5)


def test_raw_means_of_devices_lose_the_variance_that_shifted_sums_keep():
    x = np.random.default_rng(0).normal(1e6, 1, (4, 64, 2)).astype(np.float32)
    _, _, var = oracles.moments(x.reshape(-1, 2))
    together = over_devices(
        "vmap", 4, lambda axis, _, x: batch_statistics(x, axis_name=axis)[1]
    )
    assert is_close(together({}, jnp.asarray(x.reshape(-1, 2)))[0], var, rtol=1e-5)
    means = x.mean(1)
    pooled = x.var(1).mean(0) + np.square(means - means.mean(0)).mean(0)
    assert not is_close(pooled, var, rtol=1e-5)
