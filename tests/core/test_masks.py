import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted import compiled

from bn_jax.core.batch_norm import batch_norm


@pytest.mark.parametrize(
    ("shape", "axis", "mask_shape"),
    [
        ((10, 5), -1, (10, 1)),
        ((10, 5), -1, (10, 5)),
        ((10, 5), -1, (5,)),
        ((3, 4, 5, 2), -1, (3, 4, 1, 1)),
        ((3, 2, 4, 5), 1, (3, 1, 4, 5)),
        ((6, 2, 3), (1, 2), (6, 1, 1)),
    ],
)
def test_results_and_statistics_match_the_oracle(shape, axis, mask_shape):
    x, rng = normal(*shape, mean=3), np.random.default_rng(1)
    mask = rng.random(mask_shape) < 0.6
    num_samples, mean, var = oracles.moments(x, axis=axis, mask=mask)
    stats = {"mean": jnp.ones(mean.shape), "var": jnp.full(mean.shape, 2.0)}
    y, new = compiled(
        x,
        None,
        None,
        stats,
        axis=axis,
        momentum=0.5,
        mask=jnp.asarray(mask),
    )
    expected = oracles.batch_norm(x, axis=axis, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    kept = np.where(num_samples > 0, 0.5, 1.0)
    np.testing.assert_allclose(new["mean"], kept + (1 - kept) * mean, rtol=1e-5)
    np.testing.assert_allclose(new["var"], 2 * kept + (1 - kept) * var, rtol=1e-5)


def test_a_mask_of_true_changes_nothing(initial_stats):
    x = normal(8, 3)
    plain = compiled(x, None, None, initial_stats(3))
    masked = compiled(x, None, None, initial_stats(3), mask=jnp.ones((8, 1), bool))
    chex.assert_trees_all_close(plain, masked, rtol=1e-6)


@pytest.mark.parametrize("use_running_average", [True, False])
def test_masked_positions_come_back_as_zero(use_running_average, initial_stats):
    mask = np.array([[True], [False], [True], [False]])
    y, _ = compiled(
        normal(4, 3),
        jnp.ones(3),
        jnp.full(3, 7.0),
        initial_stats(3),
        mask=jnp.asarray(mask),
        use_running_average=use_running_average,
    )
    np.testing.assert_array_equal(np.asarray(y) != 0, mask & np.ones(3, bool))


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("use_running_average", [True, False])
def test_what_is_masked_reaches_no_result(hidden, use_running_average, initial_stats):
    def results(value):
        x = normal(4, 3).at[1].set(value)
        mask = jnp.array([[True], [False], [True], [True]])
        return compiled(
            x,
            jnp.ones(3),
            jnp.ones(3),
            initial_stats(3),
            mask=mask,
            use_running_average=use_running_average,
        )

    chex.assert_trees_all_equal(results(hidden), results(0.0))


@jax.jit
def pull_back(x, mask, dy):
    def forward(x, scale, bias):
        stats = {"mean": jnp.zeros(x.shape[-1]), "var": jnp.ones(x.shape[-1])}
        return batch_norm(x, scale, bias, stats, mask=mask)[0]

    features = jnp.ones(x.shape[-1])
    return jax.vjp(forward, x, features, 0 * features)[1](dy)


@pytest.mark.parametrize("hidden", [np.nan, np.inf, 1e38])
def test_what_is_masked_reaches_no_gradient(hidden):
    x = jnp.array([[1.0], [3.0], [hidden]])
    mask = jnp.array([[True], [True], [False]])
    dx, dscale, dbias = pull_back(x, mask, jnp.array([[1.0], [2.0], [0.0]]))
    # dx is a difference of float32 values near 1, which are 1.2e-7 apart. Their
    # rounding depends on the processor.
    np.testing.assert_allclose(dx, [[-5e-6], [5e-6], [0.0]], rtol=0, atol=3e-7)
    np.testing.assert_allclose(dscale, [0.999995], rtol=1e-6)
    np.testing.assert_allclose(dbias, [3.0], rtol=1e-6)


def test_cotangents_of_masked_positions_reach_nothing():
    x, mask = normal(4, 2), jnp.array([[True], [False], [True], [True]])
    dy = normal(4, 2, seed=1)
    noisy = pull_back(x, mask, dy.at[1].set(jnp.nan))
    chex.assert_trees_all_equal(noisy, pull_back(x, mask, dy.at[1].set(0.0)))


def test_gradients_under_a_mask_match_the_oracle():
    x, dy = normal(10, 5), normal(10, 5, seed=1)
    mask = np.random.default_rng(2).random((10, 5)) < 0.7
    actual = pull_back(x, jnp.asarray(mask), dy)
    expected = oracles.batch_norm_gradients(x, dy, mask=mask)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_masked_batch_leaves_the_statistics_alone():
    stats = {"mean": jnp.array([1.5, -2.0]), "var": jnp.array([0.3, 4.0])}
    y, new_stats = compiled(
        jnp.ones((4, 2)), None, jnp.ones(2), stats, mask=jnp.zeros((4, 1), bool)
    )
    chex.assert_trees_all_equal(new_stats, stats)
    chex.assert_trees_all_equal(y, jnp.zeros((4, 2)))


def test_a_masked_batch_has_gradients_of_zero():
    x = jnp.full((4, 2), jnp.nan)
    gradients = pull_back(x, jnp.zeros((4, 1), bool), jnp.ones((4, 2)))
    chex.assert_trees_all_equal(
        gradients, (jnp.zeros((4, 2)), jnp.zeros(2), jnp.zeros(2))
    )


def test_an_empty_batch_leaves_the_statistics_alone():
    stats = {"mean": jnp.array([1.5, -2.0]), "var": jnp.array([0.3, 4.0])}
    y, new_stats = compiled(jnp.zeros((0, 2)), None, None, stats)
    chex.assert_shape(y, (0, 2))
    chex.assert_trees_all_equal(new_stats, stats)


def test_an_empty_batch_has_gradients_of_zero():
    x = jnp.zeros((0, 2))
    dx, dscale, dbias = pull_back(x, None, x)
    chex.assert_shape(dx, (0, 2))
    chex.assert_trees_all_equal((dscale, dbias), (jnp.zeros(2), jnp.zeros(2)))


def test_examples_that_only_fill_the_batch_change_nothing(initial_stats):
    x = normal(7, 3, mean=2)
    padded = jnp.asarray(np.concatenate([x, normal(5, 3, seed=1)]))
    mask = (jnp.arange(12) < 7)[:, None]
    y, stats = compiled(padded, None, None, initial_stats(3), mask=mask)
    alone = compiled(x, None, None, initial_stats(3))
    chex.assert_trees_all_close((y[:7], stats), alone, rtol=1e-5, atol=1e-6)


def test_nothing_to_average_gives_no_gradient_even_without_an_epsilon():
    stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

    def loss(x, scale, bias):
        mask = jnp.zeros((3, 1), bool)
        y, _ = batch_norm(x, scale, bias, stats, mask=mask, epsilon=0.0)
        return jnp.sum(y**2)

    ones = jnp.ones((3, 2)), jnp.ones(2), jnp.ones(2)
    gradients = jax.jit(jax.grad(loss, (0, 1, 2)))(*ones)
    chex.assert_trees_all_equal(gradients, jax.tree.map(jnp.zeros_like, gradients))
