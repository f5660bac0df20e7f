"""Moments of values that are not finite or whose squares overflow."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted_moments import compiled_moments

from bn_jax.core.batch_norm import batch_norm


@pytest.mark.usefixtures("standard_promotion")
def test_float16_values_near_the_end_of_the_range_do_not_overflow():
    moments = compiled_moments(jnp.array([[-6e4], [6e4]], jnp.float16))
    chex.assert_type(list(moments), jnp.float32)
    assert moments.mean.item() == 0.0
    np.testing.assert_allclose(moments.var, [float(np.float16(6e4)) ** 2], rtol=1e-6)


def test_a_variance_that_float32_can_hold_is_found_where_squares_overflow():
    x = normal(64, 2, mean=1e24, std=1e18)
    moments = compiled_moments(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 7, 100, 1000])
def test_constants_with_squares_beyond_the_range_have_no_nan(size):
    for value in (1e20, 1e37, -1e37):
        moments = compiled_moments(jnp.full((size, 2), value, jnp.float32))
        np.testing.assert_allclose(moments.mean, value, rtol=1e-6)
        # The variance is 0, or the square of the mean's rounding error, or infinite.
        assert np.all(moments.var >= 0)


def test_a_nan_stays_one_where_squares_overflow():
    moments = compiled_moments(
        jnp.full((100, 2), 1e37, jnp.float32).at[0, 1].set(jnp.nan)
    )
    np.testing.assert_array_equal(np.isnan(moments.var), [False, True])


@jax.jit
def results_and_gradients(x):
    y, pull_back = jax.vjp(lambda x: batch_norm(x, None, None, None)[0], x)
    return y, pull_back(y + 1)


@pytest.mark.parametrize(("mean", "std"), [(0, 1e18), (1e20, 1e19), (3e38, 0)], ids=str)
def test_large_values_whose_squares_overflow_give_no_nan(mean, std):
    assert_no_nan(normal(1000, 2, mean=mean, std=std))


@pytest.mark.parametrize("values", [[3e38, 1.0], [3.4e38, 1.0]], ids=str)
def test_finite_values_whose_squares_overflow_give_no_nan(values):
    assert_no_nan(jnp.tile(jnp.array([values, [-v for v in values]]), (500, 1)))


def assert_no_nan(x):
    moments = compiled_moments(x)
    assert np.all(moments.var >= 0)
    assert not np.isnan(moments.mean).any()
    chex.assert_tree_all_finite(results_and_gradients(x))


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_make_mean_and_variance_so(bad, place):
    moments = compiled_moments(normal(600, 2).at[place, 0].set(bad))
    assert not np.isfinite([moments.mean[0], moments.var[0]]).any()
    chex.assert_tree_all_finite((moments.mean[1], moments.var[1]))
