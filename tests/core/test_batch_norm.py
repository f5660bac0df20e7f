"""Results and running statistics of the operator in float32."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted import compiled
from core.static_config import static_config

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.operator import batch_norm_with_moments


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((60, 100), -1),
        ((5, 6, 4, 3), 1),
        ((4, 2, 3), (2, 0)),
    ],
)
def test_training_matches_the_oracle(shape, axis, initial_stats):
    features = tuple(shape[a] for a in sorted(np.atleast_1d(axis) % len(shape)))
    x, scale = normal(*shape, mean=2, std=3), normal(*features, seed=1)
    bias, stats = normal(*features, seed=2), initial_stats(*features)
    y, stats = compiled(x, scale, bias, stats, axis=axis, momentum=0.9)
    _, mean, var = oracles.moments(x, axis=axis)
    np.testing.assert_allclose(
        y, oracles.batch_norm(x, scale, bias, axis=axis), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((6, 5), -1), ((3, 5, 4, 2), 1)])
def test_inference_matches_the_oracle_and_leaves_the_statistics_alone(shape, axis):
    x, scale, bias = normal(*shape), normal(5, seed=1), normal(5, seed=2)
    stats = {"mean": normal(5, seed=3), "var": normal(5, seed=4) ** 2}
    y, new_stats = compiled(x, scale, bias, stats, use_running_average=True, axis=axis)
    expected = oracles.inference(x, scale, bias, stats["mean"], stats["var"], axis=axis)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(new_stats, stats)


def test_inference_with_initial_statistics_only_divides_by_the_root(initial_stats):
    x = normal(4, 3)
    y, _ = compiled(x, None, None, initial_stats(3), use_running_average=True)
    np.testing.assert_allclose(y, np.float64(x) / np.sqrt(1 + 1e-5), rtol=1e-6)


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("use_bias", [True, False])
def test_none_stands_for_no_scale_and_no_bias(use_scale, use_bias, initial_stats):
    x = normal(8, 3, mean=1)
    scale = normal(3, seed=1) if use_scale else None
    bias = normal(3, seed=2) if use_bias else None
    y, _ = compiled(x, scale, bias, initial_stats(3))
    expected = oracles.batch_norm(x, scale, bias)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_epsilon_is_added_inside_the_root(epsilon, initial_stats):
    y, _ = compiled(
        jnp.array([[-2.0], [2.0]]), None, None, initial_stats(1), epsilon=epsilon
    )
    np.testing.assert_allclose(y[1], [2 / np.sqrt(4 + epsilon)], rtol=1e-6)


def test_the_mean_square_of_the_result_is_below_one_by_epsilon(initial_stats):
    # PAPER: mean(x_hat ** 2) = var / (var + epsilon).
    x = normal(60, 3) * jnp.array([[0.1, 1.0, 10.0]])
    y, _ = compiled(x, None, None, initial_stats(3), epsilon=1e-2)
    _, _, var = oracles.moments(x)
    np.testing.assert_allclose(np.mean(y, axis=0), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(np.mean(y**2, axis=0), var / (var + 1e-2), rtol=1e-5)


def test_the_identity_is_recoverable(initial_stats):
    x = normal(60, 4, mean=3, std=2)
    _, mean, var = oracles.moments(x)
    scale, bias = (jnp.asarray(v, jnp.float32) for v in (np.sqrt(var + 1e-5), mean))
    y, _ = compiled(x, scale, bias, initial_stats(4))
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5)


def test_other_examples_matter_in_training(initial_stats):
    x = normal(8, 3)
    other = x.at[7].set(5.0)
    y, _ = compiled(x, None, None, initial_stats(3))
    y_other, _ = compiled(other, None, None, initial_stats(3))
    assert np.all(np.abs(y[0] - y_other[0]) > 1e-2)


def test_other_examples_do_not_matter_at_all_in_inference(initial_stats):
    x = normal(8, 3)
    other = x.at[7].set(5.0)
    y, _ = compiled(x, None, None, initial_stats(3), use_running_average=True)
    y_other, _ = compiled(other, None, None, initial_stats(3), use_running_average=True)
    chex.assert_trees_all_equal(y[:7], y_other[:7])


@pytest.mark.parametrize("distance", [1e-3, 0.1, 10.0])
def test_a_batch_of_two_keeps_only_the_sign(distance, initial_stats):
    x = jnp.array([[0.0], [distance]])
    y, _ = compiled(x, None, None, initial_stats(1))
    magnitude = 1 / np.sqrt(1 + 4e-5 / np.float64(np.float32(distance)) ** 2)
    np.testing.assert_allclose(y, [[-magnitude], [magnitude]], rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_running_statistics_change_no_bit_of_training(masked, initial_stats):
    x, dy = normal(32, 3, mean=2), normal(32, 3, seed=1)
    mask = jnp.arange(32)[:, None] % 3 > 0 if masked else None

    @jax.jit
    def train(stats):
        def forward(x, scale):
            return batch_norm(x, scale, None, stats, mask=mask)[0]

        y, pull_back = jax.vjp(forward, x, jnp.ones(3))
        return y, pull_back(dy)

    def bits(stats):
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(train(stats))]

    expected = bits(initial_stats(3))
    for mean, var in ((3.0, 0.0), (-1e30, 1e30), (np.inf, -1.0), (np.nan, np.nan)):
        other = {"mean": jnp.full(3, mean), "var": jnp.full(3, var)}
        assert bits(other) == expected


def test_without_running_statistics_the_batch_is_normalized_alone(initial_stats):
    x, scale = normal(8, 3, mean=2), normal(3, seed=1)
    y, stats = compiled(x, scale, None, None)
    assert stats is None
    expected, _ = compiled(x, scale, None, initial_stats(3))
    chex.assert_trees_all_close(y, expected, rtol=1e-6, atol=1e-6)
    traced = jax.jit(
        lambda flag: batch_norm(x, scale, None, None, update_running_average=flag)
    )
    chex.assert_trees_all_close(traced(True), (expected, None), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["use_running_average", "update_running_average"])
def test_a_flag_that_needs_running_statistics_is_refused_without_them(name):
    with pytest.raises(ValueError, match=f"{name} needs running .* {name}=False"):
        batch_norm(normal(8, 3), None, None, None, **{name: True})


def test_one_value_a_feature_is_refused_with_the_way_out(initial_stats):
    x = jnp.array([[7.0, 1e5]])
    with pytest.raises(
        ValueError, match=r"\(1, 2\) has one value .*axis_name.*use_running"
    ):
        batch_norm(x, None, None, initial_stats(2))
    y, _ = compiled(x, None, None, initial_stats(2), use_running_average=True)
    np.testing.assert_allclose(y, x, rtol=1e-5)


def test_a_vector_gives_the_bias(initial_stats):
    bias = jnp.array([0.5, -3.0])
    y, _ = compiled(jnp.array([7.0, 1e5]), normal(2), bias, initial_stats(2))
    chex.assert_trees_all_equal(y, bias)


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e5])
def test_the_result_survives_a_large_mean(offset, initial_stats):
    x = normal(4096, 2, mean=offset)
    y, _ = compiled(x, None, None, initial_stats(2))
    # float32 rounds the mean by up to 2 ** -24 of the offset.
    rounding = offset * 2.0**-24
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=rounding)


def test_two_values_around_ten_thousand_become_minus_one_and_one(initial_stats):
    y, _ = compiled(jnp.array([[9999.0], [10001.0]]), None, None, initial_stats(1))
    np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-5)


@pytest.mark.parametrize("size", [4, 1000])
def test_a_constant_whose_square_overflows_gives_the_bias(size, initial_stats):
    x, ones = jnp.full((size, 2), 1e37, jnp.float32), jnp.ones(2)

    @jax.jit
    def results(x):
        def forward(x):
            return batch_norm(x, ones, 3 * ones, initial_stats(2))[0]

        y, pull_back = jax.vjp(forward, x)
        return y, pull_back(y)

    y, gradient = results(x)
    chex.assert_trees_all_equal(y, jnp.full_like(x, 3.0))
    chex.assert_tree_all_finite(gradient)


CONFIG = static_config()


DYNAMIC_DEFAULTS = {
    "use_running_average": False,
    "update_running_average": None,
    "momentum": 0.99,
    "mask": None,
}


def test_moments_of_the_batch_come_with_the_result(initial_stats):
    x = normal(6, 2)

    @jax.jit
    def with_moments(x):
        result = batch_norm_with_moments(
            x, None, None, initial_stats(2), CONFIG, **DYNAMIC_DEFAULTS
        )
        return (result.y, result.batch_stats), result.moments

    results, moments = with_moments(x)
    for found, expected in zip(moments, oracles.moments(x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = compiled(x, None, None, initial_stats(2))
    chex.assert_trees_all_close(results, expected, rtol=1e-6, atol=1e-6)


def test_inference_computes_no_moments(initial_stats):
    settings = DYNAMIC_DEFAULTS | {"use_running_average": True}
    result = jax.eval_shape(
        lambda x: (
            batch_norm_with_moments(
                x, None, None, initial_stats(2), CONFIG, **settings
            ).moments
        ),
        normal(6, 2),
    )
    assert result is None
