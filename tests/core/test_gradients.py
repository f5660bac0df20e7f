"""Gradients of batch_norm against oracles, finite differences and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from jax.test_util import check_grads

from bn_jax.core.batch_norm import batch_norm


def gradients(x, scale, bias, dy, **settings):
    """Returns the cotangents of x, scale and bias, in the precision of x."""
    features = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}

    @jax.jit
    def pull_back(x, scale, bias, dy):
        def forward(x, scale, bias):
            return batch_norm(x, scale, bias, features, **settings)[0]

        return jax.vjp(forward, x, scale, bias)[1](dy)

    return pull_back(x, scale, bias, dy)


@pytest.mark.parametrize(
    ("shape", "axis", "features"),
    [
        ((60, 5), -1, (5,)),
        ((3, 5, 4, 2), 1, (5,)),
        ((4, 2, 3), (1, 2), (2, 3)),
    ],
)
def test_gradients_are_the_six_equations(shape, axis, features):
    x, dy = normal(*shape, mean=3), normal(*shape, seed=1)
    scale, bias = normal(*features, seed=2), normal(*features, seed=3)
    actual = gradients(x, scale, bias, dy, axis=axis, epsilon=1e-3)
    expected = oracles.batch_norm_gradients(x, dy, scale, axis=axis, epsilon=1e-3)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_gradients_in_float64_are_exact():
    with jax.enable_x64(True):
        x, dy = (normal(60, 5, seed=s, dtype=jnp.float64) for s in (0, 1))
        scale = normal(5, seed=2, dtype=jnp.float64)
        actual = gradients(x + 1e3, scale, scale, dy)
        expected = oracles.batch_norm_gradients(x + 1e3, dy, scale)
        for got, want in zip(actual, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_gradients_survive_a_large_mean(offset):
    x, dy = normal(256, 2, mean=offset), normal(256, 2, seed=1)
    actual = gradients(x, jnp.ones(2), jnp.zeros(2), dy)
    expected = oracles.batch_norm_gradients(x, dy)
    # float32 rounds the mean by up to 2 ** -24 of the offset; dscale sums 256 terms.
    rounding = offset * 2.0**-24
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-5, atol=1e-5 + rounding)
    np.testing.assert_allclose(actual[1], expected[1], atol=1e-4 + 32 * rounding)


def test_the_gradient_flows_through_the_mean_so_that_it_sums_to_zero():
    x, dy = normal(61, 5, mean=2), normal(61, 5, seed=1, mean=1)
    dx, _, _ = gradients(x, normal(5, seed=2), normal(5), dy)
    # float32 rounds each term and each partial sum to one part in 2 ** 24.
    assert np.all(np.abs(np.sum(dx, axis=0)) < 1e-6 * np.sum(np.abs(dx), axis=0))


def test_the_gradient_flows_through_the_variance_so_that_it_is_orthogonal():
    x, dy, one = normal(60, 3), normal(60, 3, seed=1), jnp.ones(3)
    # Orthogonal to the result, except for the part of epsilon in the variance.
    dx, dscale, _ = gradients(x, one, 0 * one, dy, epsilon=0.1)
    _, _, var = oracles.moments(x)
    x_hat = oracles.batch_norm(x, epsilon=0.1)
    expected = 0.1 / (var + 0.1) ** 1.5 * dscale
    np.testing.assert_allclose(np.sum(dx * x_hat, axis=0), expected, rtol=1e-4)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_in_both_modes_match_differences(masked):
    mask = jnp.array([[[True]], [[True]], [[False]], [[True]]]) if masked else None

    def forward(x, scale, bias, mean, var):
        stats = {"mean": mean, "var": var}
        return batch_norm(x, scale, bias, stats, mask=mask, momentum=0.5)

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        features = [jnp.asarray(rng.uniform(0.5, 2, 2)) for _ in range(4)]
        arguments = (jnp.asarray(rng.normal(size=(4, 3, 2))), *features)
        check_grads(
            jax.jit(forward), arguments, order=1, modes=("fwd", "rev"), rtol=1e-5
        )


def test_gradients_of_inference_are_those_of_an_affine_map():
    x, mean, scale = (normal(3, seed=seed) for seed in range(3))
    var, x = mean**2, x[None]

    def forward(x, scale, mean, var):
        stats = {"mean": mean, "var": var}
        return batch_norm(x, scale, None, stats, use_running_average=True)[0].sum()

    backward = jax.jit(jax.grad(forward, (0, 1, 2, 3)))
    dx, dscale, dmean, dvar = backward(x, scale, mean, var)
    inv_std = 1 / np.sqrt(np.float64(var) + 1e-5)
    deviation = np.float64(x[0]) - np.float64(mean)
    np.testing.assert_allclose(dx[0], scale * inv_std, rtol=1e-5)
    np.testing.assert_allclose(dmean, -scale * inv_std, rtol=1e-5)
    np.testing.assert_allclose(dscale, deviation * inv_std, rtol=1e-5)
    np.testing.assert_allclose(dvar, -scale * deviation * inv_std**3 / 2, rtol=1e-5)


def test_the_gradient_is_finite_where_the_input_is_constant():
    x, one = jnp.full((8, 2), 3.7), jnp.ones(2)
    dx, dscale, dbias = gradients(x, one, one, normal(8, 2))
    expected = oracles.batch_norm_gradients(x, normal(8, 2))
    # The division by sqrt(epsilon) makes the sum's rounding error 300 times larger.
    np.testing.assert_allclose(dx, expected[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dscale, np.zeros(2), atol=1e-3)
    np.testing.assert_allclose(dbias, expected[2], rtol=1e-5)


def test_running_statistics_get_no_gradient_in_training():
    x = normal(6, 3)

    def loss(stats):
        return jnp.sum(batch_norm(x, None, None, stats)[0] ** 3)

    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    for gradient in jax.jit(jax.grad(loss))(stats).values():
        np.testing.assert_array_equal(gradient, np.zeros(3))


# With a mean of dy, large terms of dx cancel; none may be rounded to bfloat16.
@pytest.mark.parametrize("mean_of_dy", [0.0, 5.0])
@pytest.mark.usefixtures("standard_promotion")
def test_half_precision_gradients_are_rounded_once(mean_of_dy):
    x = normal(64, 3, dtype=jnp.bfloat16)
    dy = normal(64, 3, mean=mean_of_dy, seed=1, dtype=jnp.bfloat16)
    scale, bias = normal(3, seed=2), normal(3, seed=3)
    dx, dscale, _ = gradients(x, scale, bias, dy)
    expected = oracles.batch_norm_gradients(np.float64(x), np.float64(dy), scale)
    # dx is a bfloat16 (8 bits), dscale a float32.
    np.testing.assert_allclose(np.float64(dx), expected[0], rtol=2**-8, atol=1e-4)
    np.testing.assert_allclose(dscale, expected[1], rtol=1e-5, atol=3e-5)
