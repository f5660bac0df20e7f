"""bn_jax and Flax on one batch, in a call each, for the tests of peers' faults."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import bn_jax


def start(*features, **more):
    return {"mean": jnp.zeros(features), "var": jnp.ones(features)} | more


def train(x, scale=None, bias=None, stats=None, **settings):
    x = jnp.asarray(x)
    stats = start(x.shape[-1]) if stats is None else stats
    return bn_jax.batch_norm(x, scale, bias, stats, **settings)


def batch_statistics(x, **settings):
    """Mean and variance that are used, and y."""
    y, stats = train(x, momentum=0.0, **settings)
    return stats["mean"], stats["var"], y


def flax_layer(x, steps=1, layer=nn.BatchNorm, mask=None, **fields):
    """Y and statistics of a Linen layer after some steps on one batch."""
    model = layer(use_running_average=False, **fields)
    variables = model.init(jax.random.key(0), x)
    for _ in range(steps):
        y, updates = model.apply(variables, x, mask=mask, mutable=["batch_stats"])
        variables = variables | updates
    return y, updates["batch_stats"]


def is_close(actual, expected, rtol=1e-5, atol=1e-6):
    return np.allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)
