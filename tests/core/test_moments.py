from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from hypothesis import given
from hypothesis import strategies as st

from bn_jax.core.axes import canonical_axes
from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments, merge_moments
from bn_jax.core.types import Moments


def moments_of(x, *, axis=-1, mask=None):
    axes = canonical_axes(x.ndim, axis)
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape)
        x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    return batch_moments(x, mask=mask, feature_axes=axes, devices=Devices())


@jax.jit
def shifted(x):
    """Moments of x whose mean is two numbers."""
    return moments_of(x)


@partial(jax.jit, static_argnames="axis")
def compiled(x, *, axis=-1, mask=None):
    """Moments of x whose mean is one number."""
    return moments_of(x, axis=axis, mask=mask).rounded()


merged = jax.jit(merge_moments)


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
    moments = compiled(x, axis=axis)
    num_samples, mean, var = oracles.moments(x, axis=axis)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


# Two values only: all errors of a sum go one way.
@pytest.mark.parametrize("offset", [0.0, 1.99, 4.01, 10.0])
def test_variance_survives_a_shift_of_some_deviations_over_a_million_values(offset):
    values = np.random.default_rng(0).choice([-1.0, 1.0], (2**20, 2))
    x = (values + offset).astype(np.float32)
    moments = compiled(jnp.asarray(x))
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=4e-6)


@pytest.mark.parametrize("offset", [1e2, -1e4, 1e6])
def test_variance_survives_a_large_mean(offset):
    x = normal(4096, 2, mean=offset)
    moments = compiled(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)
    np.testing.assert_allclose(moments.mean, mean, rtol=2e-7)


@pytest.mark.parametrize("center", [1e3, 1e5])
def test_two_values_around_a_large_center_have_variance_one(center):
    pairs = jnp.tile(jnp.array([[center - 1], [center + 1]]), (128, 1))
    moments = compiled(pairs)
    assert moments.var.item() == 1.0
    assert moments.mean.item() == center


def test_the_smallest_batch_with_a_large_mean_is_exact():
    moments = compiled(jnp.array([[9999.0], [10001.0]]))
    chex.assert_trees_all_equal(
        moments, type(moments)(jnp.array([2.0]), jnp.array([10000.0]), jnp.ones(1))
    )


def test_a_small_variance_survives_a_large_mean_of_other_features():
    x = normal(256, 64, mean=3000, std=0.1)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(compiled(x).var, var, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_float16_values_near_the_end_of_the_range_do_not_overflow():
    moments = compiled(jnp.array([[-6e4], [6e4]], jnp.float16))
    chex.assert_type(list(moments), jnp.float32)
    assert moments.mean.item() == 0.0
    np.testing.assert_allclose(moments.var, [float(np.float16(6e4)) ** 2], rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_values_are_summed_in_float32():
    x = jnp.asarray(normal(4096, 3, mean=30), jnp.bfloat16)
    moments = compiled(x)
    _, mean, var = oracles.moments(np.asarray(x, np.float64))
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
def test_float64_stays_float64():
    with jax.enable_x64(True):
        x = normal(60, 5, mean=1e6, dtype=jnp.float64)
        moments = compiled(x)
        chex.assert_type(list(moments), jnp.float64)
        _, mean, var = oracles.moments(x)
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-15)
        np.testing.assert_allclose(moments.var, var, rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_complex_values_have_a_real_variance():
    x = normal(60, 5) + 1j * normal(60, 5, mean=3, seed=1)
    moments = compiled(x)
    _, mean, var = oracles.moments(x)
    chex.assert_type(list(moments), [jnp.float32, jnp.complex64, jnp.float32])
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    # The mean is 2 standard deviations from the shift, 0.
    np.testing.assert_allclose(moments.var, var, rtol=5e-6)


@pytest.mark.parametrize("mask_shape", [(10, 1), (10, 5), (5,), ()])
def test_moments_count_only_where_the_mask_is_true(mask_shape):
    x = normal(10, 5, mean=3)
    mask = np.random.default_rng(1).random(mask_shape) < 0.6
    moments = compiled(x, mask=jnp.asarray(mask))
    num_samples, mean, var = oracles.moments(x, mask=mask)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)


def test_a_mask_of_images_counts_every_pixel_of_an_image():
    mask = jnp.array([True, False, True]).reshape(3, 1, 1, 1)
    moments = compiled(jnp.ones((3, 4, 5, 2)), mask=mask)
    chex.assert_trees_all_equal(moments.num_samples, jnp.full(2, 40.0))


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, 3e38])
def test_masked_values_reach_nothing(hidden):
    mask = jnp.array([[True], [True], [False]])
    moments = compiled(jnp.array([[1.0], [3.0], [hidden]]), mask=mask)
    assert [m.item() for m in moments] == [2.0, 2.0, 1.0]


def test_a_large_mean_survives_a_mask():
    x = jnp.array([[9999.0], [10001.0], [-1e9]])
    moments = compiled(x, mask=jnp.array([[True], [True], [False]]))
    assert [m.item() for m in moments] == [2.0, 1e4, 1.0]


@pytest.mark.parametrize("batch", [0, 4])
def test_no_value_gives_zeros(batch):
    mask = jnp.zeros((batch, 1), bool)
    moments = compiled(jnp.full((batch, 2), jnp.nan), mask=mask)
    chex.assert_trees_all_equal(moments, type(moments)(*[jnp.zeros(2)] * 3))


def test_one_value_has_variance_zero():
    moments = compiled(jnp.array([[7.3, -1e4]]))
    chex.assert_trees_all_equal(moments.mean, jnp.array([7.3, -1e4]))
    chex.assert_trees_all_equal(moments.var, jnp.zeros(2))


@pytest.mark.parametrize("num_samples", [60, 61])
def test_a_constant_feature_has_variance_zero(num_samples):
    moments = compiled(jnp.full((num_samples, 1), 1234.567))
    # A sum of 61 values rounds: the deviation is far below that of the last bit.
    np.testing.assert_allclose(moments.mean, [1234.567], rtol=1e-7)
    np.testing.assert_allclose(moments.var, [0.0], atol=1e-14)


@given(order=st.permutations(range(12)))
def test_the_order_of_the_examples_does_not_matter(order):
    x = np.asarray(normal(12, 3, mean=100))
    shuffled = compiled(jnp.asarray(x[np.array(order)]))
    chex.assert_trees_all_close(compiled(jnp.asarray(x)), shuffled, rtol=1e-6)


@given(shift=st.integers(-1000, 1000), power=st.integers(-10, 10))
def test_a_shift_moves_the_mean_and_a_factor_scales_the_variance(shift, power):
    # Powers of two and multiples of 2 ** -10 leave float32 exact.
    x = np.round(np.float64(normal(16, 2)) * 2**10) / 2**10
    factor = 2.0**power
    before = compiled(jnp.asarray(x, jnp.float32))
    after = compiled(jnp.asarray((x + shift) * factor, jnp.float32))
    np.testing.assert_allclose(after.mean, (before.mean + shift) * factor, rtol=1e-6)
    np.testing.assert_allclose(after.var, before.var * factor**2, rtol=1e-6)


def test_the_mean_of_two_numbers_has_more_digits_than_one():
    x = normal(4096, 2, mean=1e4)
    moments = shifted(x)
    _, mean, _ = oracles.moments(x)
    found = np.asarray(moments.shift, float) + np.asarray(moments.offset, float)
    # A single float32 is off by up to 5e-4.
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-6)


def test_a_program_is_exported_for_any_number_of_examples():
    (size,) = jax.export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, 2), jnp.float32)
    exported = jax.export.export(jax.jit(compiled))(shape)
    x = normal(100, 2, mean=1e4)
    found = exported.call(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
    np.testing.assert_allclose(found.mean, mean, rtol=2e-7)


def test_a_variance_that_float32_can_hold_is_found_where_squares_overflow():
    x = normal(64, 2, mean=1e24, std=1e18)
    moments = compiled(x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)


@pytest.mark.parametrize("size", [4, 7, 100, 1000])
def test_constants_with_squares_beyond_the_range_have_no_nan(size):
    for value in (1e20, 1e37, -1e37):
        moments = compiled(jnp.full((size, 2), value, jnp.float32))
        np.testing.assert_allclose(moments.mean, value, rtol=1e-6)
        # Zero, or what the rounding of the mean leaves, which overflows.
        assert np.all(moments.var >= 0)


def test_a_nan_stays_one_where_squares_overflow():
    moments = compiled(jnp.full((100, 2), 1e37, jnp.float32).at[0, 1].set(jnp.nan))
    np.testing.assert_array_equal(np.isnan(moments.var), [False, True])


def parts_of(*arrays):
    """Moments of each array by the oracle, stacked."""
    leaves = zip(*(oracles.moments(x) for x in arrays), strict=True)
    return Moments(*(jnp.asarray(np.stack(leaf), jnp.float32) for leaf in leaves))


def assert_close(moments, x, rtol=1e-5):
    for got, want in zip(moments, oracles.moments(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol)


@pytest.mark.parametrize("mean", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("cuts", [[30], [1, 2, 50]])
def test_moments_of_parts_merge_into_those_of_the_whole(cuts, mean):
    x = np.random.default_rng(0).normal(mean, 1, (60, 4))
    # A part's mean of 1e4 is known to 5e-4 in float32, and so is its distance.
    rtol = 2e-4 if mean == 1e4 else 1e-5
    assert_close(merged(parts_of(*np.split(x, cuts))), x, rtol)


def test_parts_without_a_value_add_nothing():
    x = np.random.default_rng(0).normal(5, 1, (6, 4))
    assert_close(merged(parts_of(x[:2], x[:0], x[2:], x[:0])), x)


def test_no_value_at_all_gives_zeros():
    moments = merged(parts_of(np.zeros((0, 3)), np.zeros((0, 3))))
    chex.assert_trees_all_equal(moments, Moments(*[jnp.zeros(3)] * 3))


def test_one_part_is_the_whole():
    x = np.random.default_rng(0).normal(5, 1, (6, 4))
    assert_close(merged(parts_of(x)), x)


def test_merging_is_differentiable_where_nothing_counts():
    def total(mean):
        zeros = jnp.zeros_like(mean)
        moments = merge_moments(Moments(zeros, mean, zeros))
        return jnp.sum(moments.mean) + jnp.sum(moments.var)

    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(jnp.ones((2, 3))))


@pytest.mark.parametrize(
    ("shape", "tolerance"), [((4096, 2), 3e-6), ((8, 32, 4, 2), 2e-4)]
)
def test_a_sixteenth_far_from_all_others_costs_few_digits(shape, tolerance):
    # The sample is a sixteenth exactly, and as far from the mean as one can be. The
    # variance has 16 times the error of the sum of squares, and XLA adds up the 1,024
    # values of an image's feature one after the other.
    sample = np.s_[::16] if len(shape) == 2 else np.s_[:, :2]
    for outlier in (1.0, 1e3, 1e6):
        x = np.array(normal(*shape, std=1e-3))
        x[sample] += outlier
        moments = compiled(jnp.asarray(x))
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
    # Heavy tails: single values far from all others.
    x = random.standard_cauchy((size, 1)).clip(-1e4, 1e4) * 2.0**power + offset
    x = x.astype(np.float32)
    moments = shifted(jnp.pad(jnp.asarray(x), ((0, 700 - size), (0, 0)), mode="wrap"))
    padded = np.pad(np.float64(x), ((0, 700 - size), (0, 0)), mode="wrap")
    mean, std = padded.mean(0), padded.std(0)
    rounding = 1e-6 * np.abs(mean)
    assert np.all(np.abs(np.float64(moments.shift) - mean) <= 15**0.5 * std + rounding)
    np.testing.assert_allclose(moments.var, std**2, rtol=1e-5, atol=rounding.max() ** 2)


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
    moments = compiled(x)
    assert np.all(moments.var >= 0)
    assert not np.isnan(moments.mean).any()
    chex.assert_tree_all_finite(results_and_gradients(x))


@pytest.mark.parametrize("place", [0, 5])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_make_mean_and_variance_so(bad, place):
    moments = compiled(normal(600, 2).at[place, 0].set(bad))
    assert not np.isfinite([moments.mean[0], moments.var[0]]).any()
    chex.assert_tree_all_finite((moments.mean[1], moments.var[1]))


def test_a_mask_of_true_differs_by_rounding_alone():
    x = normal(512, 3, mean=100)
    masked = compiled(x, mask=jnp.ones((512, 1), bool))
    chex.assert_trees_all_close(masked, compiled(x), rtol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("optimized")
def test_the_mean_that_is_subtracted_is_the_one_that_was_summed_around(masked):
    # Compilers fuse the multiplication that makes a mean with the subtraction of it.
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


@pytest.mark.parametrize("shape", [(8, 1, 1, 3), (8, 1, 40, 3), (300, 3), (20, 0, 3)])
def test_positions_of_any_number_are_averaged(shape):
    x = normal(*shape, mean=50)
    moments = compiled(x)
    num_samples, mean, var = (x.size // 3, 0, 0)
    if num_samples:
        _, mean, var = oracles.moments(x)
    np.testing.assert_array_equal(moments.num_samples, num_samples)
    np.testing.assert_allclose(moments.mean, np.broadcast_to(mean, 3), rtol=1e-6)
    np.testing.assert_allclose(moments.var, np.broadcast_to(var, 3), rtol=1e-5)
