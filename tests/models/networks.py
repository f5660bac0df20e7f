"""Images and variables for the tests of networks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import bn_jax

KEY = jax.random.key(0)
NORM = partial(bn_jax.BatchNorm, momentum=0.9)


def images_of(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


def init(model, images, *, train):
    return jax.jit(model.init, static_argnames="train")(KEY, images, train=train)


def num_values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
