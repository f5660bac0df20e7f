"""Half precision and integers in the Linen layer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from layers.linen_layer import init, train

import bn_jax


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": jnp.float16},
        {"dtype": jnp.bfloat16, "use_scale": False},
        {"param_dtype": jnp.bfloat16},
    ],
    ids=str,
)
def test_integers_are_not_rounded_before_they_are_averaged(fields):
    x = jnp.array([[70001], [70003]])
    layer = bn_jax.BatchNorm(momentum=0.0, **fields)
    y, stats = train(layer, init(layer, x, use_running_average=True), x)
    assert stats["mean"].item() == 70002
    assert stats["var"].item() == 1
    np.testing.assert_array_equal(np.float32(y), [[-1], [1]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_dtype_of_half_precision_rounds_the_result_only(dtype):
    x = normal(64, 3, mean=50)
    layer = bn_jax.BatchNorm(dtype=dtype, momentum=0.0)
    variables = init(layer, x, use_running_average=True)
    y, stats = train(layer, variables, x)
    infer = jax.jit(partial(layer.apply, use_running_average=True))
    inferred = infer(variables | {"batch_stats": stats}, x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    # Half a unit in the last place of the result, and the rounding of the mean.
    half_unit = 0.501 * float(jnp.finfo(dtype).eps)
    expected = oracles.batch_norm(x)
    np.testing.assert_allclose(np.float64(y), expected, rtol=half_unit, atol=1e-5)
    np.testing.assert_allclose(
        np.float64(inferred), expected, rtol=half_unit, atol=2e-5
    )


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_the_backward_pass_saves_no_float32_array_of_half_precision_activations(dtype):
    x = jnp.ones((64, 8), jnp.bfloat16).at[0].set(3)
    layer = bn_jax.BatchNorm(
        use_running_average=False, dtype=dtype, param_dtype=jnp.bfloat16
    )
    variables = init(layer, x)

    def forward(x, params):
        of_x = variables | {"params": params}
        return layer.apply(of_x, x, mutable=["batch_stats"])[0]

    _, pull_back = jax.vjp(forward, x, variables["params"])
    saved = [leaf for leaf in jax.tree.leaves(pull_back) if hasattr(leaf, "dtype")]
    assert {leaf.dtype for leaf in saved if leaf.size >= x.size} == {x.dtype}
