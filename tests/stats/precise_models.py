"""Models whose population statistics are computed, under `jax.jit`."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles

import bn_jax

KEY = jax.random.key(0)


class TwoLayers(nn.Module):
    norm: type[nn.Module] = bn_jax.BatchNorm

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(5, use_bias=False, name="first")(x)
        x = self.norm(use_running_average=not train, name="norm0")(x)
        x = nn.Dense(4, use_bias=False, name="second")(jnp.tanh(x))
        return self.norm(use_running_average=not train, name="norm1")(x)


def in_training(model, **keywords):
    mutable = ["batch_stats", "batch_moments"]
    return jax.jit(partial(model.apply, train=True, mutable=mutable, **keywords))


def init(model, x):
    return jax.jit(partial(model.init, train=True))(KEY, x)


def assert_statistics(batch_stats, inputs, **keywords):
    mean, var = oracles.population_statistics(inputs, **keywords)
    np.testing.assert_allclose(batch_stats["mean"], mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch_stats["var"], var, rtol=1e-5)


class OneLayer(nn.Module):
    debias: bool = False

    @nn.compact
    def __call__(self, x, mask=None, *, train):
        norm = bn_jax.BatchNorm(debias=self.debias, name="norm")
        return norm(x, use_running_average=not train, mask=mask)
