import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.static_config import static_config

from bn_jax.core.normalize import normalize as eager_normalize

normalize = jax.jit(eager_normalize, static_argnums=3)


@pytest.mark.parametrize(
    ("shape", "feature_axes"),
    [((6, 5), (1,)), ((3, 5, 4, 2), (1,)), ((4, 2, 3), (0, 2))],
)
def test_the_result_is_the_affine_map_of_the_paper(shape, feature_axes):
    features = tuple(shape[axis] for axis in feature_axes)
    x, mean = normal(*shape), normal(*features, seed=1)
    var, scale = normal(*features, seed=2) ** 2, normal(*features, seed=3)
    y = normalize(
        x,
        mean,
        var,
        static_config(axis=feature_axes, epsilon=1e-3),
        scale=scale,
        bias=mean,
    )
    expected = oracles.inference(
        x, scale, mean, mean, var, axis=feature_axes, epsilon=1e-3
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("bias", [None, -5.0])
def test_none_stands_for_a_scale_of_one_and_a_bias_of_zero(scale, bias):
    x, one = normal(6, 1), jnp.ones(1)
    scale, bias = (None if v is None else jnp.array([v]) for v in (scale, bias))
    y = normalize(
        x,
        2 * one,
        one,
        static_config(axis=(1,), epsilon=0.0),
        scale=scale,
        bias=bias,
    )
    expected = oracles.inference(x, scale, bias, 2 * one, one, epsilon=0.0)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_a_large_mean_does_not_cancel(mean):
    x = normal(100, 1, mean=mean)
    y = normalize(
        x,
        jnp.full(1, mean),
        jnp.full(1, 0.37),
        static_config(axis=(1,), epsilon=1e-5),
        scale=None,
        bias=jnp.full(1, 0.1),
    )
    expected = (np.float64(x) - mean) / np.sqrt(0.37 + 1e-5) + 0.1
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_epsilon_stands_inside_the_root():
    one = jnp.ones(1)
    y = normalize(
        jnp.array([[3.0]]),
        one,
        0 * one,
        static_config(axis=(1,), epsilon=0.25),
        scale=None,
        bias=None,
    )
    np.testing.assert_allclose(y, [[4.0]], rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    x = normal(64, 3, mean=50).astype(dtype)
    mean, var, scale = normal(3, mean=50, seed=1), normal(3) ** 2, normal(3, seed=2)
    y = normalize(
        x,
        mean,
        var,
        static_config(axis=(1,), epsilon=1e-5),
        scale=scale,
        bias=mean,
    )
    exact = oracles.inference(x.astype(jnp.float32), scale, mean, mean, var)
    chex.assert_type(y, dtype)
    # Half a unit in the last place, and the rounding of float32 before it.
    half_unit = 0.501 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float64(y), exact, rtol=half_unit)


@pytest.mark.usefixtures("standard_promotion")
def test_complex_values_are_scaled_and_shifted():
    x = jnp.array([[1 + 1j], [3 - 1j]], jnp.complex64)
    scale, bias = jnp.array([2j]), jnp.array([1.0])
    y = normalize(
        x,
        jnp.array([2 + 0j]),
        jnp.array([2.0]),
        static_config(axis=(1,), epsilon=2.0),
        scale=scale,
        bias=bias,
    )
    np.testing.assert_allclose(y, [[-1j], [2 + 1j]], rtol=1e-6, atol=1e-6)
