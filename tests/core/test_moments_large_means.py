"""Moments of values whose mean is many standard deviations."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted_moments import compiled_moments, shifted_moments
from hypothesis import given
from hypothesis import strategies as st

from bn_jax.core.batch_norm import batch_norm


# With two values only, all rounding errors of a sum have one sign.
@pytest.mark.parametrize("offset", [0.0, 1.99, 4.01, 10.0])
def test_variance_survives_a_shift_of_some_deviations_over_a_million_values(offset):
    values = np.random.default_rng(0).choice([-1.0, 1.0], (2**20, 2))
    x = (values + offset).astype(np.float32)
    moments = compiled_moments(jnp.asarray(x))
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=4e-6)


@pytest.mark.parametrize("offset", [1e2, -1e4, 1e6])
def test_variance_survives_a_large_mean(offset):
    x = normal(4096, 2, mean=offset)
    moments = compiled_moments(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)
    np.testing.assert_allclose(moments.mean, mean, rtol=2e-7)


@pytest.mark.parametrize(("center", "pairs"), [(1e3, 128), (1e5, 128), (1e4, 1)])
def test_pairs_of_values_around_a_large_center_have_exact_moments(center, pairs):
    x = jnp.tile(jnp.array([[center - 1], [center + 1]]), (pairs, 1))
    assert [m.item() for m in compiled_moments(x)] == [2 * pairs, center, 1.0]


def test_a_small_variance_survives_a_large_mean_of_other_features():
    x = normal(256, 64, mean=3000, std=0.1)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(compiled_moments(x).var, var, rtol=1e-6)


def test_a_large_mean_survives_a_mask():
    x = jnp.array([[9999.0], [10001.0], [-1e9]])
    moments = compiled_moments(x, mask=jnp.array([[True], [True], [False]]))
    assert [m.item() for m in moments] == [2.0, 1e4, 1.0]


def test_the_mean_of_two_numbers_has_more_digits_than_one():
    x = normal(4096, 2, mean=1e4)
    moments = shifted_moments(x)
    _, mean, _ = oracles.moments(x)
    found = np.asarray(moments.shift, float) + np.asarray(moments.offset, float)
    # A single float32 is off by up to 5e-4.
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "tolerance"), [((4096, 2), 3e-6), ((8, 32, 4, 2), 2e-4)]
)
def test_a_sixteenth_far_from_all_others_costs_few_digits(shape, tolerance):
    # The values that the shift is estimated from are the sixteenth far from all others,
    # the worst case. The variance has 16 times the error of the sum of squares, and XLA
    # adds the 1,024 values of an image's feature one after the other.
    sample = np.s_[::16] if len(shape) == 2 else np.s_[:, :2]
    for outlier in (1.0, 1e3, 1e6):
        x = np.array(normal(*shape, std=1e-3))
        x[sample] += outlier
        moments = compiled_moments(jnp.asarray(x))
        _, mean, var = oracles.moments(x)
        np.testing.assert_allclose(moments.var, var, rtol=tolerance)
        np.testing.assert_allclose(moments.mean, mean, rtol=tolerance)


@given(
    size=st.integers(2, 700),
    offset=st.floats(-1e6, 1e6, width=32),
    power=st.integers(-20, 20),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_shift_lies_within_the_root_of_15_deviations(size, offset, power, seed):
    random = np.random.default_rng(seed)
    # The distribution has heavy tails: single values lie far from all others.
    x = random.standard_cauchy((size, 1)).clip(-1e4, 1e4) * 2.0**power + offset
    x = x.astype(np.float32)
    moments = shifted_moments(
        jnp.pad(jnp.asarray(x), ((0, 700 - size), (0, 0)), mode="wrap")
    )
    padded = np.pad(np.float64(x), ((0, 700 - size), (0, 0)), mode="wrap")
    mean, std = padded.mean(0), padded.std(0)
    rounding = 1e-6 * np.abs(mean)
    assert np.all(np.abs(np.float64(moments.shift) - mean) <= 15**0.5 * std + rounding)
    np.testing.assert_allclose(moments.var, std**2, rtol=1e-5, atol=rounding.max() ** 2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("optimized")
def test_the_mean_that_is_subtracted_is_the_one_that_was_summed_around(masked):
    # XLA may fuse the multiplication that gives the mean with its subtraction.
    mask = np.random.default_rng(1).random((43, 1)) < (0.6 if masked else 2)
    given = jnp.asarray(mask) if masked else None

    @jax.jit
    def train(x):
        return batch_norm(x, None, None, None, mask=given)[0]

    for mean in (1e2, 1e4, 1e6):
        constant = np.full((43, 4), mean, np.float32)
        np.testing.assert_array_equal(train(jnp.asarray(constant)), 0 * constant)
        x = normal(43, 4, mean=mean)
        expected = oracles.batch_norm(x, mask=mask)
        np.testing.assert_allclose(train(x), expected, atol=2e-6)
