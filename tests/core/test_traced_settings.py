"""Settings that are not Python values: traced flags and momentum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

from bn_jax.core.batch_norm import batch_norm

X = normal(5, 2, mean=1, std=2)
STATS = {"mean": jnp.zeros(2), "var": jnp.ones(2)}


def gradients(x, stats, flag, epsilon=1e-5):
    """Returns the gradients of a sum of cubes for x, scale and running variance."""

    def loss(x, scale, var):
        y, _ = batch_norm(
            x,
            scale,
            None,
            stats | {"var": var},
            use_running_average=flag,
            epsilon=epsilon,
        )
        return jnp.sum(y**3)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, jnp.ones(2), stats["var"])


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("true", [True, 1, np.bool_(True), np.int32(1), jnp.array(1)])
def test_whatever_is_true_means_the_running_statistics(true):
    y, stats = batch_norm(X[:1], None, None, STATS, use_running_average=true)
    np.testing.assert_allclose(y, X[:1], rtol=1e-4)
    np.testing.assert_array_equal(stats["mean"], STATS["mean"])


@pytest.mark.parametrize("shape", [(1,), (5, 1)])
@pytest.mark.parametrize("name", ["use_running_average", "update_running_average"])
@pytest.mark.usefixtures("unchecked_types")
def test_a_flag_for_each_value_is_refused(name, shape):
    def apply(flag):
        return batch_norm(X, None, None, STATS, **{name: flag})

    for call in (apply, jax.jit(apply)):
        with pytest.raises(ValueError, match=f"{name} must be one boolean for all"):
            call(jnp.ones(shape, bool))


@pytest.mark.usefixtures("unchecked_types")
def test_a_flag_that_is_missing_is_refused():
    with pytest.raises(ValueError, match=r"use_running_average must be .* is None"):
        batch_norm(X, None, None, STATS, use_running_average=None)


@pytest.mark.usefixtures("unchecked_types")
def test_a_flag_in_words_is_refused():
    with pytest.raises(ValueError, match=r"use_running_average must .* is 'False'"):
        batch_norm(X, None, None, STATS, use_running_average="False")


@pytest.mark.usefixtures("unchecked_types")
def test_a_momentum_for_each_feature_is_refused():
    for momentum in (jnp.full(2, 0.9), np.array([0.9])):
        with pytest.raises(ValueError, match="momentum must be one number for all"):
            batch_norm(X, None, None, STATS, momentum=momentum)


def test_a_momentum_of_half_precision_keeps_the_statistics_in_float32():
    train = jax.jit(
        lambda momentum: batch_norm(X, None, None, STATS, momentum=momentum)
    )
    _, stats = train(jnp.bfloat16(0.5))
    np.testing.assert_allclose(stats["mean"], X.mean(0) / 2, rtol=1e-5)
    assert stats["mean"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("x", "stats", "flag", "epsilon"),
    [
        (X, STATS | {"var": jnp.array([1.0, jnp.nan])}, False, 1e-5),
        (X, STATS | {"mean": jnp.array([1.0, jnp.inf])}, False, 1e-5),
        (jnp.ones((5, 2)), STATS, True, 0.0),
        (X.at[0, 0].set(jnp.inf), STATS, True, 1e-5),
    ],
    ids=["var", "mean", "constant", "infinite"],
)
def test_the_choice_that_is_not_taken_reaches_no_gradient(x, stats, flag, epsilon):
    expected = gradients(x, stats, flag, epsilon)
    traced = jax.jit(lambda flag: gradients(x, stats, flag, epsilon))(flag)
    for got, want in zip(traced, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_statistics_have_gradients_where_they_are_updated_by_a_batch_not_used():
    def updated(x, flag):
        _, stats = batch_norm(
            x,
            None,
            None,
            STATS,
            momentum=0.0,
            use_running_average=flag,
            update_running_average=True,
        )
        return jnp.sum(stats["mean"])

    for flag in (True, False):
        slope = jax.jit(jax.grad(updated))(X, flag)
        np.testing.assert_allclose(slope, jnp.full((5, 2), 0.2), rtol=1e-5)


def test_what_moves_the_statistics_alone_reaches_no_gradient_of_y():
    x = X.at[0, 0].set(jnp.nan)

    def loss(x, flag):
        y, _ = batch_norm(
            x,
            None,
            None,
            STATS,
            use_running_average=flag,
            update_running_average=True,
        )
        return jnp.sum(y[1:])

    expected = jax.jit(jax.grad(loss), static_argnums=1)(x, True)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x, True), expected)


@pytest.mark.parametrize("flag", [True, jnp.array(True)])
def test_inference_saves_no_float32_copy_of_half_precision(flag):
    def forward(x, scale):
        return batch_norm(x, scale, None, STATS, use_running_average=flag)[0]

    _, back = jax.vjp(forward, X.astype(jnp.bfloat16), jnp.ones(2))
    large = [leaf for leaf in jax.tree.leaves(back) if jnp.size(leaf) >= X.size]
    assert {leaf.dtype.name for leaf in large} <= {"bfloat16"}
