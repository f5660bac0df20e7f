"""Frozen layers of NNX modules that Linen calls by a bridge."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bn_jax

X = np.random.default_rng(0).normal(1.0, 2.0, size=(8, 4)).astype(np.float32)


class Pair(nnx.Module):
    """Two linear layers, and a norm behind each."""

    def __init__(self, norm: Any, rngs: nnx.Rngs) -> None:
        self.dense = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(2)])
        self.norm = nnx.List([norm(4, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for dense, norm in zip(self.dense, self.norm, strict=True):
            x = nnx.relu(norm(dense(x)))
        return x


class Inside(nn.Module):
    """A Linen module around an NNX module."""

    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2)(nnx.bridge.to_linen(Pair, self.norm, name="pair")(x))


def train(model: nn.Module) -> tuple[Any, Any, Any]:
    """Variables, statistics after a step, and gradients of the parameters."""
    variables = model.init(jax.random.key(0), X)

    def loss(params: Any) -> Any:
        y, updates = model.apply(
            {**variables, "params": params}, X, mutable=["batch_stats"]
        )
        return jnp.sum(y**2), updates["batch_stats"]

    grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return variables, stats, grads


@pytest.mark.parametrize("norm", [nnx.BatchNorm, bn_jax.nnx.BatchNorm])
def test_only_norms_whose_path_fits_are_frozen(norm: Any) -> None:
    model = Inside(norm)
    variables, stats, grads = train(bn_jax.frozen(model, "pair/norm/1"))
    chex.assert_trees_all_equal(variables, model.init(jax.random.key(0), X))
    old, norms = variables["batch_stats"]["pair"]["norm"], grads["pair"]["norm"]
    new = stats["pair"]["norm"]
    chex.assert_trees_all_equal(new[1], old[1])
    assert not np.any(norms[1]["scale"])
    assert np.any(new[0]["mean"] != old[0]["mean"])
    assert np.any(norms[0]["scale"])
    assert np.any(grads["pair"]["dense"][0]["kernel"])


def test_a_single_nnx_layer_is_frozen() -> None:
    layer = bn_jax.frozen(nnx.bridge.to_linen(nnx.BatchNorm, 4))
    variables, stats, grads = train(layer)
    chex.assert_trees_all_equal(stats, variables["batch_stats"])
    assert not np.any(grads["scale"])
    assert not np.any(grads["bias"])


@pytest.mark.parametrize(
    "model", [Inside(nnx.BatchNorm), nnx.bridge.to_linen(nnx.BatchNorm, 4)]
)
def test_a_match_that_fits_no_layer_is_refused(model: nn.Module) -> None:
    variables = model.init(jax.random.key(0), X)
    with pytest.raises(ValueError, match="frozen: match='zzz' must fit the path"):
        bn_jax.frozen(model, "zzz").apply(variables, X, mutable=["batch_stats"])
