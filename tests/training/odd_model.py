"""A model of which one gradient is not finite."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Odd(nn.Module):
    """Finite scores of which one parameter has no derivative."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(self.num_classes, name="dense")(x.reshape(len(x), -1))
        return x + Root(self.num_classes, name="odd")()


class Root(nn.Module):
    """The root of a square, at zero."""

    features: int

    @nn.compact
    def __call__(self) -> jax.Array:
        zeros = nn.initializers.zeros
        return jnp.sqrt(self.param("shift", zeros, (self.features,)) ** 2)
