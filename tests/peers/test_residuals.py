"""Arrays that the forward pass saves for the backward pass."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import bn_jax

X = jnp.ones((64, 8), jnp.bfloat16).at[0].set(3)


def large_residuals(make_layer):
    """Arrays of x's size that the derivative of one layer keeps, but x itself."""
    layer = make_layer(use_running_average=False)
    variables = layer.init(jax.random.key(0), X)

    def forward(x, params):
        variables_of_x = variables | {"params": params}
        return layer.apply(variables_of_x, x, mutable=["batch_stats"])[0]

    _, pull_back = jax.vjp(forward, X, variables["params"])
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if hasattr(leaf, "dtype")]
    return [
        leaf.dtype.name
        for leaf in kept
        if leaf.size >= X.size and leaf.dtype != X.dtype
    ]


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_flax_keeps_float32_arrays_of_the_activations_size_in_bfloat16(dtype):
    def make(layer):
        return lambda **fields: layer(dtype=dtype, param_dtype=jnp.bfloat16, **fields)

    assert "float32" in large_residuals(make(nn.BatchNorm))
    assert large_residuals(make(bn_jax.BatchNorm)) == []
