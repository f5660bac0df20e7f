"""NNX layers and a model with two of them, of bn_jax or of another library."""

import jax.numpy as jnp
from flax import nnx

import bn_jax


def make(num_features=3, *, layer=bn_jax.nnx.BatchNorm, **settings):
    return layer(num_features, rngs=nnx.Rngs(0), **({"momentum": 0.5} | settings))


class Model(nnx.Module):
    def __init__(self, layer=bn_jax.nnx.BatchNorm, **settings):
        rngs = nnx.Rngs(0)
        settings = {"momentum": 0.9, "rngs": rngs} | settings
        self.norms = nnx.List([layer(3, **settings), layer(4, **settings)])
        self.linear = nnx.Linear(3, 4, use_bias=False, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.linear(self.norms[0](x)))
        return self.norms[1](x)
