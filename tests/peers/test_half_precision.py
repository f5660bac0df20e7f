"""Half precision: overflow, cancellation, averages that stall."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from peers import formulas
from peers.calls import batch_statistics, flax_layer, is_close, train

import bn_jax


@pytest.mark.parametrize("value", [300, 6e4])
def test_haiku_and_equinox_overflow_in_float16(value):
    x = jnp.array([[-value], [value]], jnp.float16)
    mean, var, y = batch_statistics(x)
    assert y.dtype == jnp.float16
    assert is_close(y, [[-1], [1]], rtol=1e-3)
    assert is_close(var, np.float64(x[1]) ** 2)
    for moments in (formulas.haiku_moments, formulas.equinox_moments):
        mean, var = moments(x)
        assert np.isinf(var).all()
        assert not is_close(formulas.standardize(x, mean, var), [[-1], [1]], rtol=1e-3)


def test_haiku_variance_cancels_in_bfloat16():
    x = jnp.array([[29.0], [31.0]], jnp.bfloat16)
    assert is_close(train(x)[0], [[-1], [1]])
    mean, var = formulas.haiku_moments(x)
    assert not is_close(var, [1.0])
    assert not is_close(formulas.standardize(x, mean, var), [[-1], [1]])


def test_equinox_running_mean_stalls_in_bfloat16():
    x = jnp.ones((4, 1), jnp.bfloat16)
    layer = bn_jax.BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    variables = layer.init(jax.random.key(0), x)

    def ours(stats, _):
        _, updates = layer.apply(
            variables | {"batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return updates["batch_stats"], None

    def theirs(mean, _):
        keep = jnp.bfloat16(0.99)
        return formulas.moving_average(mean, jnp.bfloat16(1), keep), None

    stats, _ = jax.lax.scan(ours, variables["batch_stats"], length=800)
    stalled, _ = jax.lax.scan(theirs, jnp.bfloat16(0), length=800)
    assert stats["mean"].dtype == jnp.float32
    assert is_close(stats["mean"], 1 - 0.99**800, rtol=1e-4)
    assert float(stalled) < 0.9


@pytest.mark.parametrize(("mean_of_dy", "times_the_error"), [(0, 1.2), (5, 5)])
def test_flax_gradients_are_rounded_in_parts(mean_of_dy, times_the_error):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(4096, 8)), jnp.bfloat16)
    dy = jnp.asarray(rng.normal(mean_of_dy, size=x.shape), jnp.bfloat16)
    exact, *_ = oracles.batch_norm_gradients(np.float64(x), np.float64(dy), np.ones(8))

    def error(dx):
        return np.sqrt(np.mean(np.square(np.float64(dx) - exact)))

    _, pull_back = jax.vjp(lambda x: train(x)[0], x)
    (ours,) = pull_back(dy)
    _, pull_back = jax.vjp(lambda x: flax_layer(x, dtype=x.dtype)[0], x)
    (theirs,) = pull_back(dy)
    least = error(jnp.asarray(exact, jnp.bfloat16))
    assert error(ours) < 1.01 * least
    assert error(theirs) > times_the_error * least


def test_nnx_rounds_the_input_before_it_normalizes():
    x = np.random.default_rng(0).normal(50, 1, (4096, 1)).astype(np.float32)
    _, mean, var = oracles.moments(x)
    stats = jax.tree.map(jnp.float32, {"mean": mean, "var": var})
    layer = bn_jax.BatchNorm(
        use_running_average=True,
        dtype=jnp.bfloat16,
        use_bias=False,
        use_scale=False,
    )
    y = layer.apply({"batch_stats": stats}, x)
    assert y.dtype == jnp.bfloat16
    expected = oracles.inference(x, None, None, mean, var)
    assert is_close(y, expected, rtol=2**-8)
    x, mean, var = (jnp.asarray(v, jnp.bfloat16) for v in (x, mean, var))
    assert not is_close(formulas.standardize(x, mean, var), expected, rtol=2**-8)


def test_keras_moments_clip_to_the_range_of_float16():
    x = jnp.array([[6e4], [-6e4]], jnp.float16)
    var = np.square(np.asarray(x, np.float64)).mean(0)
    assert is_close(batch_statistics(x)[1], var)
    assert not is_close(formulas.keras_clipped_moments(x)[1], var)
