"""bfloat16 values, rounded as in memory even if XLA keeps them in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.dtypes import as_stored


@pytest.mark.parametrize("bias", [30.0, 1e3, 1e5])
@pytest.mark.usefixtures("standard_promotion")
def test_a_sum_made_in_the_same_program_is_normalized_as_it_is_stored(bias):
    x, bias = (
        normal(8, 16, 16, 3, dtype=jnp.bfloat16),
        jnp.full((1, 1, 1, 3), bias, jnp.bfloat16),
    )
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    def of_sum(x, bias):
        return batch_norm(x + bias, None, None, stats, momentum=0.0)

    y, running = jax.jit(of_sum)(x, bias)
    stored = np.float64(x + bias)
    _, mean, var = oracles.moments(stored)
    np.testing.assert_allclose(running["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(running["var"], var, rtol=2e-5)
    expected = oracles.batch_norm(stored)
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_the_gradient_of_a_sum_is_that_of_the_stored_values():
    x, bias = (
        normal(8, 16, 16, 3, dtype=jnp.bfloat16),
        jnp.full((1, 1, 1, 3), 300, jnp.bfloat16),
    )
    dy = normal(8, 16, 16, 3, dtype=jnp.bfloat16)[::-1]
    stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

    @jax.jit
    def gradients(x, bias, scale):
        def forward(x, scale):
            return batch_norm(x + bias, scale, None, stats)[0]

        return jax.vjp(forward, x, scale)[1](dy)

    dx, dscale = gradients(x, bias, jnp.ones(3))
    stored = np.float64(x + bias)
    expected = oracles.batch_norm_gradients(stored, np.float64(dy))
    np.testing.assert_allclose(np.float64(dx), expected[0], rtol=2**-8, atol=1e-5)
    np.testing.assert_allclose(dscale, expected[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_stored_values_do_not_change(dtype):
    real = jnp.real(jnp.zeros((), dtype)).dtype
    ends = jnp.finfo(real).max, jnp.finfo(real).tiny, jnp.inf, jnp.nan, -0.0
    x = jnp.asarray([*ends, 1.0, -3.0], dtype)
    assert np.asarray(as_stored(x)).tobytes() == np.asarray(x).tobytes()


def test_tangents_are_not_rounded():
    x, change = (
        normal(4, dtype=jnp.bfloat16),
        normal(4, dtype=jnp.bfloat16) * jnp.bfloat16(1e-3),
    )
    stored, changed = jax.jvp(as_stored, (x,), (change,))
    np.testing.assert_array_equal(stored, x)
    np.testing.assert_array_equal(changed, change)
