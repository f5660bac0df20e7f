"""Frozen norms of models of one's own: Linen with Flax's layers, and NNX."""

from typing import Any

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

import bn_jax
from bn_jax.models.own import NNXModel

X = np.random.default_rng(0).normal(1.0, 2.0, size=(8, 4)).astype(np.float32)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))


class Net(nnx.Module):
    def __init__(self, norm: Any, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = norm(3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.dense(x))


@pytest.mark.parametrize(
    "model",
    [Linen()]
    + [
        NNXModel(Net, (), freeze({"norm": norm}), metadata_fn=None)
        for norm in (nnx.BatchNorm, bn_jax.nnx.BatchNorm)
    ],
    ids=["linen", "nnx with flax", "nnx with ours"],
)
def test_a_frozen_model_of_one_s_own_trains_with_its_running_statistics(
    model: Any,
) -> None:
    frozen = bn_jax.frozen(model)
    variables = frozen.init(jax.random.key(0), X, train=False)
    chex.assert_trees_all_equal_shapes(
        variables, model.init(jax.random.key(0), X, train=False)
    )
    y, updates = frozen.apply(
        variables, X, train=True, mutable=["batch_stats", "batch_moments"]
    )
    np.testing.assert_array_equal(y, model.apply(variables, X, train=False))
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
