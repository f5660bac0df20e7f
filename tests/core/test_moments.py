from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

import bn_jax.core.moments as moments_module
from bn_jax.core.axes import canonical_axes
from bn_jax.core.devices import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.core.types import Guess


@partial(jax.jit, static_argnames="axis")
def compiled(x, *, axis=-1, mask=None, shift=0.0):
    """Moments of x around a guess of the mean, 0 as for a new layer's running one."""
    axes = canonical_axes(x.ndim, axis)
    if mask is not None:
        mask = jnp.broadcast_to(mask, x.shape)
        x = jnp.where(mask, x, jnp.zeros((), x.dtype))
    guess = Guess(jnp.full([x.shape[axis] for axis in axes], shift, jnp.float32))
    moments = batch_moments(x, guess, feature_axes=axes, mask=mask, devices=Devices())
    return moments.rounded()


def normal(*shape, mean=0.0, std=1.0, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(mean, std, shape).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((60, 100), -1),
        ((5, 4, 3, 6), -1),
        ((5, 6, 4, 3), 1),
        ((4, 2, 3), (1, 2)),
        ((4, 2, 3), (2, 1)),
        ((4, 2, 3), (0, -1)),
        ((7,), -1),
    ],
)
def test_moments_match_the_oracle(shape, axis):
    x = normal(*shape, mean=2, std=3)
    moments = compiled(jnp.asarray(x), axis=axis)
    num_samples, mean, var = oracles.moments(x, axis=axis)
    chex.assert_trees_all_equal(moments.num_samples, num_samples.astype(np.float32))
    chex.assert_trees_all_close(moments.mean, mean.astype(np.float32), rtol=1e-6)
    chex.assert_trees_all_close(moments.var, var.astype(np.float32), rtol=1e-6)


# Two values only: all errors of a sum go one way.
@pytest.mark.parametrize("offset", [0.0, 1.0, 1.99, 2.01, 3.99, 4.01, 10.0])
def test_variance_survives_a_shift_of_some_deviations_over_a_million_values(offset):
    values = np.random.default_rng(0).choice([-1.0, 1.0], (2**20, 2))
    x = (values + offset).astype(np.float32)
    moments = compiled(jnp.asarray(x))
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=4e-6)


@pytest.mark.parametrize("offset", [1e2, 1e3, 3e3, 1e4, -1e4, 1e5, 1e6])
def test_variance_survives_a_large_mean(offset):
    x = normal(4096, 2, mean=offset)
    moments = compiled(jnp.asarray(x))
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=1e-6)
    np.testing.assert_allclose(moments.mean, mean, rtol=2e-7)


@pytest.mark.parametrize("center", [1e3, 3e3, 1e4, 1e5])
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
    np.testing.assert_allclose(compiled(jnp.asarray(x)).var, var, rtol=1e-6)


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
    x = normal(60, 5, mean=1e6, dtype=np.float64)
    with jax.enable_x64(True):
        moments = compiled(jnp.asarray(x))
        chex.assert_type(list(moments), jnp.float64)
        _, mean, var = oracles.moments(x)
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-15)
        np.testing.assert_allclose(moments.var, var, rtol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_complex_values_have_a_real_variance():
    x = (normal(60, 5) + 1j * normal(60, 5, mean=3, seed=1)).astype(np.complex64)
    moments = compiled(jnp.asarray(x))
    _, mean, var = oracles.moments(x)
    chex.assert_type(list(moments), [jnp.float32, jnp.complex64, jnp.float32])
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    # The mean is 2 standard deviations from the shift, 0.
    np.testing.assert_allclose(moments.var, var, rtol=5e-6)


@pytest.mark.parametrize("mask_shape", [(10, 1), (10, 5), (1, 5), (5,), ()])
def test_moments_count_only_where_the_mask_is_true(mask_shape):
    x = normal(10, 5, mean=3)
    mask = np.random.default_rng(1).random(mask_shape) < 0.6
    moments = compiled(jnp.asarray(x), mask=jnp.asarray(mask))
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
    x = normal(12, 3, mean=100)
    shuffled = compiled(jnp.asarray(x[np.array(order)]))
    chex.assert_trees_all_close(compiled(jnp.asarray(x)), shuffled, rtol=1e-6)


@given(shift=st.integers(-1000, 1000), power=st.integers(-10, 10))
def test_a_shift_moves_the_mean_and_a_factor_scales_the_variance(shift, power):
    # Powers of two and multiples of 2 ** -10 leave float32 exact.
    x = np.round(normal(16, 2) * 2**10) / 2**10
    factor = 2.0**power
    before = compiled(jnp.asarray(x, jnp.float32))
    after = compiled(jnp.asarray((x + shift) * factor, jnp.float32))
    np.testing.assert_allclose(after.mean, (before.mean + shift) * factor, rtol=1e-6)
    np.testing.assert_allclose(after.var, before.var * factor**2, rtol=1e-6)


@pytest.mark.parametrize(
    "shift",
    [0.0, 1e4, 1e4 + 3, 1e4 - 50, -1e4, 1e8, 1e12, -1e20, 1e30, 3e38, np.nan, -np.inf],
)
def test_any_guess_of_the_mean_gives_the_same_moments(shift):
    x = normal(4096, 2, mean=1e4)
    moments = compiled(jnp.asarray(x), shift=shift)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)
    np.testing.assert_allclose(moments.mean, mean, rtol=2e-7)


@pytest.mark.parametrize(
    ("values", "guess", "is_enough"),
    [
        # Variances 1, and means 1, 1.9, 2.1 and 1e4 beyond the guess.
        ([-1.0, 1.0], 1.0, True),
        ([-1.0, 1.0], 1.9, True),
        ([-1.0, 1.0], 4.1, False),
        ([-1.0, 1.0], 1e4, False),
        # A feature that is constant, as a unit is that never fires again, is at one
        # time as near to its running mean as that can come.
        ([3.7, 3.7], 3.7, True),
        ([3.7, 3.7], 3.70003, True),
        ([3.7, 3.7], 3.8, False),
        ([0.0, 0.0], 3e-6, True),
        ([0.0, 0.0], 1e-3, False),
        # Small deviations have all their digits.
        ([1.0 - 1e-4, 1.0 + 1e-4], 1.0, True),
        ([1.0 - 1e-4, 1.0 + 1e-4], 0.999, False),
        ([-1e-6, 1e-6], 1e-5, False),
    ],
)
def test_one_pass_is_enough_unless_the_guess_is_poor(
    values, guess, is_enough, monkeypatch, untraced
):
    def no_further_pass(around, found, is_exact, epsilon):
        return found._replace(var=found.var - jnp.where(is_exact, 0, 1e6))

    monkeypatch.setattr(moments_module, "_further_passes", no_further_pass)
    x = jnp.array(values)[:, None]
    layout = {"feature_axes": (1,), "epsilon": 1e-5, "devices": Devices()}
    moments = batch_moments(x, Guess(jnp.array([guess])), **layout)
    assert (moments.var.item() > -1) == is_enough


@pytest.mark.parametrize(("guess", "number"), [(1e4, 1), (0.0, 2)])
def test_no_further_pass_is_made_where_the_first_is_exact(guess, number, monkeypatch):
    shifts, around = [], moments_module._moments_around

    def count(batch, shift, **settings):
        shifts.append(shift)
        return around(batch, shift, **settings)

    monkeypatch.setattr(moments_module, "_moments_around", count)
    x = jnp.array([1e4 - 1, 1e4 + 1])[:, None]
    with jax.disable_jit():
        batch_moments(
            x, Guess(jnp.array([guess])), feature_axes=(1,), devices=Devices()
        )
    assert len(shifts) == number


def test_a_feature_that_is_exact_does_not_lose_its_smallest_squares_to_another_one():
    x = normal(65536, 2, mean=1e4)
    x[:, 0] = normal(65536) * np.float32(1e-17)
    moments = batch_moments(
        jnp.asarray(x), Guess(jnp.zeros(2)), feature_axes=(1,), devices=Devices()
    )
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)


def test_the_mean_of_two_numbers_has_more_digits_than_one():
    x = normal(4096, 2, mean=1e4)
    moments = batch_moments(
        jnp.asarray(x), Guess(jnp.full(2, 1e4)), feature_axes=(1,), devices=Devices()
    )
    _, mean, _ = oracles.moments(x)
    found = np.asarray(moments.shift, float) + np.asarray(moments.offset, float)
    # A single float32 is off by up to 5e-4.
    np.testing.assert_allclose(found, mean, rtol=0, atol=1e-7)


def test_a_program_is_exported_for_any_number_of_examples():
    def moments(x):
        axes = {"feature_axes": (1,), "devices": Devices()}
        return batch_moments(x, Guess(jnp.zeros(2)), **axes).rounded()

    (size,) = jax.export.symbolic_shape("size")
    shape = jax.ShapeDtypeStruct((size, 2), jnp.float32)
    exported = jax.export.export(jax.jit(moments))(shape)
    x = normal(100, 2, mean=1e4)
    found = exported.call(jnp.asarray(x, jnp.float32))
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(found.var, var, rtol=1e-5)
    np.testing.assert_allclose(found.mean, mean, rtol=2e-7)


def test_a_variance_that_float32_can_hold_is_found_where_squares_overflow():
    x = (1e18 * normal(64, 2) + 1e24).astype(np.float32)
    moments = compiled(jnp.asarray(x))
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.var, var, rtol=1e-5)


@pytest.mark.parametrize("value", [1e20, 1e30, 1e37, -1e37])
@pytest.mark.parametrize("size", [4, 7, 64, 100, 1000])
def test_constants_with_squares_beyond_the_range_have_no_nan(size, value):
    moments = compiled(jnp.full((size, 2), value, jnp.float32))
    np.testing.assert_allclose(moments.mean, value, rtol=1e-6)
    # Zero, or what the rounding of the mean leaves, which overflows.
    assert np.all(moments.var >= 0)


def test_a_nan_stays_one_where_squares_overflow():
    moments = compiled(jnp.full((100, 2), 1e37, jnp.float32).at[0, 1].set(jnp.nan))
    np.testing.assert_array_equal(np.isnan(moments.var), [False, True])


def test_sums_that_would_overflow_do_not():
    x = (1e18 * normal(4096, 2)).astype(np.float32)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(compiled(jnp.asarray(x)).var, var, rtol=1e-5)


def loops_of(jaxpr):
    """The loops of a program, also in what it calls and chooses from."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from loops_of(inner)


@pytest.mark.parametrize("shape", [(8, 3), (8, 5, 5, 3)])
def test_the_loop_of_further_passes_is_given_nothing_that_is_made_for_it(shape):
    # A float32 copy, or the mask in full, would be made whether or not the loop runs.
    x, mask = jnp.zeros(shape, jnp.float16), jnp.ones((8, *shape[1:-1], 1), bool)
    moments = jax.make_jaxpr(
        moments_module._batch_moments.__wrapped__, static_argnums=(3, 4, 5)
    )
    features = (x.ndim - 1,)
    program = moments(x, Guess(jnp.zeros(3)), mask, features, 0.0, Devices())
    loops = list(loops_of(program.jaxpr))
    # That of TPUs and that of all others.
    assert len(loops) == 2
    for loop in loops:
        given = [(v.aval.dtype.name, v.aval.size) for v in loop.invars]
        large = sorted(of for of in given if of[1] > 3)
        assert large == [("bool", mask.size), ("float16", x.size)]
