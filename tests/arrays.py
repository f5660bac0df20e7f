"""Random arrays for the tests, with fixed seeds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def normal(
    *shape: int,
    mean: float = 0.0,
    std: float = 1.0,
    seed: int = 0,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Returns normally distributed values."""
    return jnp.asarray(np.random.default_rng(seed).normal(mean, std, shape), dtype)


def normal_with_trend(*shape: int, seed: int = 0) -> jax.Array:
    """Returns normally distributed values of mean 0, 1, 2, ... along the first axis."""
    index = jnp.arange(shape[0], dtype=jnp.float32)
    return normal(*shape, seed=seed) + index.reshape(-1, *[1] * (len(shape) - 1))
