"""Frozen layers of NNX models: inference and no updates."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bn_jax

X = np.random.default_rng(0).normal(1.0, 2.0, size=(8, 4)).astype(np.float32)


class Net(nnx.Module):
    """Two norms, one of them in a list."""

    def __init__(self, norm: Any, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = norm(3, rngs=rngs)
        self.layers = nnx.List([norm(3, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.dense(x)))
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(params=[nnx.BatchNorm, bn_jax.nnx.BatchNorm], ids=["flax", "ours"])
def norm(request: pytest.FixtureRequest) -> Any:
    return request.param


def values(model: nnx.Module) -> dict[str, Any]:
    state = nnx.to_pure_dict(nnx.state(model))
    return jax.tree.map(np.asarray, state)


def train(model: nnx.Module, *, steps: int = 2) -> None:
    """Trains with momentum and weight decay, which need no gradients to move."""
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> None:
        grads = nnx.grad(lambda model: jnp.sum(model(X) ** 2))(model)
        optimizer.update(model, grads)

    for _ in range(steps):
        step(model, optimizer)


def test_training_leaves_frozen_layers_alone(norm: Any) -> None:
    model = Net(norm, nnx.Rngs(0))
    bn_jax.nnx.freeze(model)
    model.train()
    before = values(model)
    train(model)
    after = values(model)
    chex.assert_trees_all_equal(after["norm"], before["norm"])
    chex.assert_trees_all_equal(after["layers"][0], before["layers"][0])
    assert np.all(after["dense"]["kernel"] != before["dense"]["kernel"])


def test_a_frozen_model_computes_the_results_of_inference(norm: Any) -> None:
    model = Net(norm, nnx.Rngs(0))
    train(model)
    model.eval()
    expected = model(X)
    bn_jax.nnx.freeze(model)
    # A layer may be frozen twice.
    bn_jax.nnx.freeze(model, "norm")
    model.train()
    np.testing.assert_array_equal(model(X), expected)


def test_only_layers_whose_path_fits_are_frozen(norm: Any) -> None:
    model = Net(norm, nnx.Rngs(0))
    bn_jax.nnx.freeze(model, "layers/0")
    before = values(model)
    train(model, steps=1)
    after = values(model)
    chex.assert_trees_all_equal(after["layers"][0], before["layers"][0])
    assert np.any(after["norm"]["mean"] != before["norm"]["mean"])
    assert np.any(after["norm"]["scale"] != before["norm"]["scale"])


def test_a_frozen_model_splits_merges_and_stays_frozen(norm: Any) -> None:
    model = Net(norm, nnx.Rngs(0))
    bn_jax.nnx.freeze(model)
    graphdef, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    assert "norm" not in params
    assert isinstance(model.norm, norm)
    merged = nnx.merge(graphdef, params, stats)
    merged.train()
    merged(X)
    chex.assert_trees_all_equal(values(merged), values(model))


def test_a_state_from_before_loads_into_a_frozen_model(norm: Any) -> None:
    source, model = Net(norm, nnx.Rngs(1)), Net(norm, nnx.Rngs(0))
    train(source)
    bn_jax.nnx.freeze(model)
    nnx.update(model, nnx.to_pure_dict(nnx.state(source)))
    chex.assert_trees_all_equal(values(model), values(source))
    assert isinstance(model.norm.scale, bn_jax.nnx.FrozenParam)


def test_population_statistics_leave_frozen_layers_as_they_are() -> None:
    model = Net(bn_jax.nnx.BatchNorm, nnx.Rngs(0))
    train(model)
    bn_jax.nnx.freeze(model, "^norm")
    before = values(model)
    state = bn_jax.nnx.population_statistics(
        nnx.jit(lambda model, x: model(x)), model, [X]
    )
    nnx.update(model, state)
    after = values(model)
    chex.assert_trees_all_equal(after["norm"], before["norm"])
    assert np.any(after["layers"][0]["mean"] != before["layers"][0]["mean"])


def test_a_match_that_fits_no_layer_is_refused_with_those_that_there_are() -> None:
    model = Net(nnx.BatchNorm, nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"match='nrom' must fit .*layers/0, norm"):
        bn_jax.nnx.freeze(model, "nrom")
    bn_jax.nnx.freeze(model.dense, "anything")
