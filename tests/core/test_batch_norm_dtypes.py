"""Half, double and complex precision, integers and NumPy arrays in the operator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.jitted import compiled

from bn_jax.core.batch_norm import batch_norm


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[-300.0], [300.0]], jnp.float16),
        ([[-6e4], [6e4]], jnp.float16),
        ([[29.0], [31.0]], jnp.bfloat16),
        ([[1000.0], [1008.0]], jnp.bfloat16),
    ],
)
def test_half_precision_neither_overflows_nor_cancels(values, dtype, initial_stats):
    y, stats = compiled(jnp.array(values, dtype), None, None, initial_stats(1))
    chex.assert_type(
        [y, stats["mean"], stats["var"]], [dtype, jnp.float32, jnp.float32]
    )
    np.testing.assert_array_equal(np.float32(y), [[-1.0], [1.0]])


@pytest.mark.usefixtures("standard_promotion")
def test_float64_is_as_good_as_the_oracle(initial_stats):
    with jax.enable_x64(True):
        x = normal(60, 5, mean=1e3, dtype=jnp.float64)
        y, stats = compiled(x, None, None, initial_stats(5))
        chex.assert_type([y, stats["mean"], stats["var"]], jnp.float64)
        np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("standard_promotion")
def test_complex_values_match_the_oracle(initial_stats):
    x = normal(60, 3, mean=2) + 1j * normal(60, 3, seed=1)
    y, _ = compiled(x, normal(3, seed=2), None, initial_stats(3))
    chex.assert_type(y, jnp.complex64)
    expected = oracles.batch_norm(x, normal(3, seed=2))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("standard_promotion", "unchecked_types")
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_])
def test_integers_become_float32(dtype, initial_stats):
    x = jnp.array([[0, 1], [1, 1], [1, 0]], dtype)
    y, _ = compiled(x, None, None, initial_stats(2))
    chex.assert_type(y, jnp.float32)
    expected = oracles.batch_norm(np.array([[0, 1], [1, 1], [1, 0]]))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("unchecked_types")
def test_numpy_arrays_are_arrays_too(initial_stats):
    x = np.array([[1.0], [3.0]], np.float32)
    y, _ = batch_norm(x, np.ones(1, np.float32), None, initial_stats(1))
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("use_running_average", [True, False])
def test_parameters_do_not_change_the_dtype_of_the_result(
    use_running_average, initial_stats
):
    y, _ = compiled(
        jnp.ones((2, 3), jnp.bfloat16),
        jnp.ones(3),
        jnp.ones(3),
        initial_stats(3),
        use_running_average=use_running_average,
    )
    chex.assert_type(y, jnp.bfloat16)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_strict_promotion_accepts_half_precision(dtype, initial_stats):
    x = jnp.array([[1.0], [3.0]], dtype)
    y, _ = compiled(x, jnp.ones(1, dtype), jnp.zeros(1, dtype), initial_stats(1))
    chex.assert_type(y, dtype)
