"""Training steps of a model with collections and norms of its own."""

from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import bn_jax
from bn_jax.stats.accumulate import accumulate_batch_stats
from bn_jax.training.step.population import make_population_step
from bn_jax.training.step.state import TrainState, init_state
from bn_jax.training.step.train_step import Examples, make_train_step

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(12, 4)).astype(np.float32)
LABELS = RNG.integers(0, 3, 12).astype(np.int32)
MOMENTUM = 0.75


class Mixed(nn.Module):
    """A norm of each kind on the input, and the number of calls in training."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        calls = self.variable("counter", "calls", jnp.zeros, (), jnp.int32)
        if train:
            calls.value += 1
        norm = {"use_running_average": not train, "momentum": MOMENTUM}
        y = bn_jax.BatchNorm(**norm, name="ours")(x)
        return nn.Dense(3)(y + nn.BatchNorm(**norm, name="flax")(x))


def after_a_step(microbatches: int, *, accumulates: bool = True) -> TrainState:
    """The state after one step, from the initial one."""
    model, tx = Mixed(), optax.sgd(0.1)
    state = init_state(model, tx, key=jax.random.key(0), example=IMAGES[:1])
    step = make_train_step(
        model,
        tx,
        preprocess=lambda x: x,
        accumulate=partial(accumulate_batch_stats, momentum=MOMENTUM)
        if accumulates
        else None,
    )
    batch = Examples(IMAGES, LABELS)
    batch = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), batch)
    return jax.jit(step)(state, batch)[0]


def running_mean(microbatches: int) -> np.ndarray:
    """The running mean after updates by one microbatch after the other, in float64."""
    mean = np.zeros(4)
    for part in IMAGES.astype(np.float64).reshape(microbatches, -1, 4):
        mean = MOMENTUM * mean + (1 - MOMENTUM) * part.mean(0)
    return mean


def assert_means(state: TrainState, *, ours: np.ndarray, flax: np.ndarray) -> None:
    for name, expected in (("ours", ours), ("flax", flax)):
        mean = state.batch_stats[name]["mean"]
        np.testing.assert_allclose(mean, expected, atol=1e-6)


def test_a_layer_without_moments_is_updated_by_each_microbatch() -> None:
    state = after_a_step(3)
    assert_means(state, ours=running_mean(1), flax=running_mean(3))
    assert state.collections["counter"]["calls"] == 3


def test_each_layer_is_updated_by_each_microbatch_if_none_accumulates() -> None:
    state = after_a_step(3, accumulates=False)
    assert_means(state, ours=running_mean(3), flax=running_mean(3))


def test_a_step_updates_statistics_and_other_collections_once() -> None:
    state = after_a_step(1)
    assert_means(state, ours=running_mean(1), flax=running_mean(1))
    assert state.collections["counter"]["calls"] == 1


def test_population_statistics_are_those_of_the_layers_with_moments() -> None:
    state = after_a_step(1)
    step = jax.jit(make_population_step(Mixed(), preprocess=lambda x: x))
    variables: Any = step(
        state.variables, Examples(IMAGES.reshape(2, 1, 6, 4), LABELS.reshape(2, 1, 6))
    )
    np.testing.assert_allclose(
        variables["batch_stats"]["ours"]["mean"],
        IMAGES.astype(np.float64).mean(0),
        atol=1e-6,
    )
    variables["batch_stats"]["ours"] = state.batch_stats["ours"]
    chex.assert_trees_all_equal(variables, state.variables)
