"""Mean, variance and number of values of a batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted_moments import compiled_moments
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((60, 100), -1),
        ((5, 4, 3, 6), -1),
        ((5, 6, 4, 3), 1),
        ((4, 2, 3), (1, 2)),
        ((4, 2, 3), (0, -1)),
        ((7,), -1),
    ],
)
def test_moments_match_the_oracle(shape, axis):
    x = normal(*shape, mean=2, std=3)
    moments = compiled_moments(x, axis=axis)
    num_samples, mean, var = oracles.moments(x, axis=axis)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_values_are_summed_in_float32():
    x = jnp.asarray(normal(4096, 3, mean=30), jnp.bfloat16)
    moments = compiled_moments(x)
    _, mean, var = oracles.moments(np.asarray(x, np.float64))
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = normal(60, 5, mean=1e6, dtype=jnp.float64)
        moments = compiled_moments(x)
        chex.assert_type(list(moments), jnp.float64)
        _, mean, var = oracles.moments(x)
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-15)
        np.testing.assert_allclose(moments.var, var, rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_complex_values_have_a_real_variance():
    x = normal(60, 5) + 1j * normal(60, 5, mean=3, seed=1)
    moments = compiled_moments(x)
    _, mean, var = oracles.moments(x)
    chex.assert_type(list(moments), [jnp.float32, jnp.complex64, jnp.float32])
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    # The shift is 0, and so 2 standard deviations from the mean.
    np.testing.assert_allclose(moments.var, var, rtol=5e-6)


@pytest.mark.parametrize("mask_shape", [(10, 1), (10, 5), (5,), ()])
def test_moments_count_only_where_the_mask_is_true(mask_shape):
    x = normal(10, 5, mean=3)
    mask = np.random.default_rng(1).random(mask_shape) < 0.6
    moments = compiled_moments(x, mask=jnp.asarray(mask))
    num_samples, mean, var = oracles.moments(x, mask=mask)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


def test_a_mask_of_images_counts_every_pixel_of_an_image():
    mask = jnp.array([True, False, True]).reshape(3, 1, 1, 1)
    moments = compiled_moments(jnp.ones((3, 4, 5, 2)), mask=mask)
    chex.assert_trees_all_equal(moments.num_samples, jnp.full(2, 40.0))


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 3e38])
def test_masked_values_reach_nothing(hidden):
    mask = jnp.array([[True], [True], [False]])
    moments = compiled_moments(jnp.array([[1.0], [3.0], [hidden]]), mask=mask)
    assert [m.item() for m in moments] == [2.0, 2.0, 1.0]


@pytest.mark.parametrize("batch", [0, 4])
def test_no_value_gives_zeros(batch):
    mask = jnp.zeros((batch, 1), bool)
    moments = compiled_moments(jnp.full((batch, 2), jnp.nan), mask=mask)
    chex.assert_trees_all_equal(moments, type(moments)(*[jnp.zeros(2)] * 3))


def test_one_value_has_variance_zero():
    moments = compiled_moments(jnp.array([[7.3, -1e4]]))
    chex.assert_trees_all_equal(moments.mean, jnp.array([7.3, -1e4]))
    chex.assert_trees_all_equal(moments.var, jnp.zeros(2))


@pytest.mark.parametrize("num_samples", [60, 61])
def test_a_constant_feature_has_variance_zero(num_samples):
    moments = compiled_moments(jnp.full((num_samples, 1), 1234.567))
    # A rounded sum of 61 values leaves a deviation far below the mean's last bit.
    np.testing.assert_allclose(moments.mean, [1234.567], rtol=1e-7)
    np.testing.assert_allclose(moments.var, [0.0], atol=1e-14)


@given(order=st.permutations(range(12)))
def test_the_order_of_the_examples_does_not_matter(order):
    x = np.asarray(normal(12, 3, mean=100))
    shuffled = compiled_moments(jnp.asarray(x[np.array(order)]))
    chex.assert_trees_all_close(compiled_moments(jnp.asarray(x)), shuffled, rtol=1e-6)


@given(shift=st.integers(-1000, 1000), power=st.integers(-10, 10))
def test_a_shift_moves_the_mean_and_a_factor_scales_the_variance(shift, power):
    # Powers of two and multiples of 2 ** -10 are exact in float32.
    x = np.round(np.float64(normal(16, 2)) * 2**10) / 2**10
    factor = 2.0**power
    before = compiled_moments(jnp.asarray(x, jnp.float32))
    after = compiled_moments(jnp.asarray((x + shift) * factor, jnp.float32))
    np.testing.assert_allclose(after.mean, (before.mean + shift) * factor, rtol=1e-6)
    np.testing.assert_allclose(after.var, before.var * factor**2, rtol=1e-6)


def test_a_program_is_exported_for_any_number_of_examples():
    (size,) = jax.export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, 2), jnp.float32)
    exported = jax.export.export(jax.jit(compiled_moments))(shape)
    x = normal(100, 2, mean=1e4)
    found = exported.call(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
    np.testing.assert_allclose(found.mean, mean, rtol=2e-7)


def test_a_mask_of_true_differs_by_rounding_alone():
    x = normal(512, 3, mean=100)
    masked = compiled_moments(x, mask=jnp.ones((512, 1), bool))
    chex.assert_trees_all_close(masked, compiled_moments(x), rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 1, 1, 3), (8, 1, 40, 3), (300, 3), (20, 0, 3)])
def test_positions_of_any_number_are_averaged(shape):
    x = normal(*shape, mean=50)
    moments = compiled_moments(x)
    num_samples, mean, var = (x.size // 3, 0, 0)
    if num_samples:
        _, mean, var = oracles.moments(x)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, np.broadcast_to(mean, 3), rtol=1e-6)
    np.testing.assert_allclose(moments.var, np.broadcast_to(var, 3), rtol=1e-5)
