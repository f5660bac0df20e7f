"""A single Linen layer, initialized and trained under `jax.jit`."""

from functools import partial

import jax

KEY = jax.random.key(0)


def init(layer, x, **call):
    return jax.jit(partial(layer.init, **call))(KEY, x)


def train(layer, variables, x, mask=None):
    """Returns the result and the updated running statistics of one step."""

    @jax.jit
    def step(variables, x, mask):
        return layer.apply(
            variables, x, use_running_average=False, mask=mask, mutable=["batch_stats"]
        )

    y, updates = step(variables, x, mask)
    return y, updates["batch_stats"]
