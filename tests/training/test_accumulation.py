"""Steps made of microbatches, averaged parameters, noise and narrow arithmetic."""

from functools import cache, partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from training import numpy_mlp
from training.tiny_runs import plain

from bn_jax.data.preprocess import binarize
from bn_jax.models import make_model, make_norm
from bn_jax.stats.accumulate import accumulate_batch_stats
from bn_jax.training.distributed.parallel import compile_stretch, make_parallel
from bn_jax.training.step.state import TrainState, init_state
from bn_jax.training.step.train_step import (
    Examples,
    make_train_step,
    make_train_stretch,
)

LEARNING_RATE = 0.3
MOMENTUM = 0.9
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 24, 6, 5, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 4, (5, 24)).astype(np.int32)

preprocess = partial(binarize, threshold=127)


def batches(num_microbatches: int) -> Examples:
    """Five steps of 24 examples."""
    return Examples(
        IMAGES.reshape(5, num_microbatches, -1, 6, 5, 1),
        LABELS.reshape(5, num_microbatches, -1),
    )


def first(batches: Examples) -> Examples:
    return Examples(batches.images[0], batches.labels[0])


def mlp(norm: str | None, *, dtype: str = "float32", features: tuple = (7,)) -> Any:
    return make_model(
        "mlp",
        num_classes=4,
        norm=make_norm(norm, momentum=MOMENTUM),
        hidden_features=features,
        kernel_stddev=0.5,
        dtype=dtype,
    )


@cache
def initial(model: nn.Module, tx: Any, **fields: Any) -> TrainState:
    example = preprocess(IMAGES[0, :1])
    return init_state(model, tx, key=jax.random.key(0), example=example, **fields)


def step_of(model: nn.Module, tx: Any, **fields: Any) -> Any:
    accumulate = partial(accumulate_batch_stats, momentum=MOMENTUM)
    return make_train_step(
        model, tx, preprocess=preprocess, accumulate=accumulate, **fields
    )


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@pytest.mark.parametrize("num_microbatches", [3, 24])
def test_without_norms_microbatches_take_the_step_of_the_large_batch(
    num_microbatches: int,
) -> None:
    model, tx = mlp(None), optax.sgd(LEARNING_RATE)
    state, step = initial(model, tx), jax.jit(step_of(model, tx))
    whole, whole_loss = step(state, first(batches(1)))
    parts, loss = step(state, first(batches(num_microbatches)))
    np.testing.assert_allclose(loss, whole_loss, rtol=1e-6)
    chex.assert_trees_all_close(parts.params, whole.params, rtol=1e-6, atol=1e-6)


def test_running_statistics_are_those_of_the_large_batch() -> None:
    model, tx = mlp("batch_norm"), optax.sgd(LEARNING_RATE)
    state = initial(model, tx)
    new_state, _ = jax.jit(step_of(model, tx))(state, first(batches(3)))
    kernel = in_float64(state.params["hidden0"]["kernel"])
    _, mean, var = oracles.moments((IMAGES[0].reshape(24, -1) > 127) @ kernel)
    expected = {
        "mean": oracles.moving_average(0.0, mean, MOMENTUM),
        "var": oracles.moving_average(1.0, var, MOMENTUM),
    }
    found = {name: new_state.batch_stats["norm0"][name] for name in expected}
    chex.assert_trees_all_close(in_float64(found), expected, rtol=1e-6, atol=1e-6)


def test_the_gradient_is_the_mean_of_those_of_the_microbatches() -> None:
    model = mlp("batch_norm", features=(7, 5))
    tx = optax.sgd(LEARNING_RATE)
    state = initial(model, tx)
    parts = first(batches(3))
    new_state, _ = jax.jit(step_of(model, tx))(state, parts)
    params = in_float64(state.params)
    grads = [
        numpy_mlp.gradients(params, images > 127, labels)
        for images, labels in zip(parts.images, parts.labels, strict=True)
    ]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *grads)
    expected = jax.tree.map(lambda w, g: w - LEARNING_RATE * g, params, mean)
    # Sums of float32 rounding errors over 30 pixels and 8 examples.
    chex.assert_trees_all_close(
        in_float64(new_state.params), expected, rtol=1e-5, atol=2e-6
    )


def test_the_average_of_the_parameters_is_that_of_numpy() -> None:
    model, tx = mlp(None), optax.sgd(LEARNING_RATE)
    step = jax.jit(step_of(model, tx, ema_decay=0.75))
    state = initial(model, tx, keep_ema=True)
    expected = in_float64(state.params)
    for images, labels in zip(*batches(1), strict=True):
        state, _ = step(state, Examples(images, labels))
        expected = jax.tree.map(
            lambda old, new: 0.75 * old + 0.25 * np.asarray(new, np.float64),
            expected,
            state.params,
        )
    chex.assert_trees_all_close(
        in_float64(state.ema_params), expected, rtol=1e-6, atol=1e-6
    )


def test_an_average_that_is_not_wanted_is_not_kept() -> None:
    model, tx = mlp(None), optax.sgd(LEARNING_RATE)
    state, _ = jax.jit(step_of(model, tx))(initial(model, tx), first(batches(1)))
    assert state.ema_params == {}


class Noisy(nn.Module):
    """Scores that are random, and a note of the number they were drawn by."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(4)(x.reshape(len(x), -1))
        note = self.variable("batch_stats", "note", jnp.zeros, ())
        if not train:
            return x
        note.value = jax.random.uniform(self.make_rng("dropout"))
        return x + note.value * jnp.arange(4)


@cache
def noisy_step() -> Any:
    return jax.jit(make_train_step(Noisy(), optax.sgd(0.0), preprocess=preprocess))


def noisy_losses(state: TrainState, *, num_microbatches: int) -> np.ndarray:
    """Losses of steps that change nothing but their number, on the same examples."""
    losses = []
    for _ in range(3):
        state, loss = noisy_step()(state, first(batches(num_microbatches)))
        losses.append(float(loss))
    return np.array(losses)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_each_step_has_noise_of_its_own_and_the_same_one_again(
    num_microbatches: int,
) -> None:
    state = initial(Noisy(), optax.sgd(0.0))
    losses = noisy_losses(state, num_microbatches=num_microbatches)
    assert len(set(losses)) == 3
    again = noisy_losses(state, num_microbatches=num_microbatches)
    np.testing.assert_array_equal(losses, again)


def test_another_key_gives_another_noise() -> None:
    state = initial(Noisy(), optax.sgd(0.0))
    losses = noisy_losses(state, num_microbatches=1)
    other = state._replace(key=jax.random.key(1))
    assert not set(losses) & set(noisy_losses(other, num_microbatches=1))


def test_each_device_has_noise_of_its_own() -> None:
    parallel = make_parallel("shard_map", num_devices=4)
    step = make_train_step(
        Noisy(), optax.sgd(0.0), preprocess=preprocess, axis_name=parallel.axis_name
    )
    state = jax.device_put(initial(Noisy(), optax.sgd(0.0)), parallel.replicated)
    state, _ = compile_stretch(parallel, make_train_stretch(step))(state, batches(1))
    notes = [s.data.item() for s in state.batch_stats["note"].addressable_shards]
    assert len(set(notes)) == 4


def test_with_bfloat16_everything_that_is_kept_stays_float32() -> None:
    model = mlp("batch_norm", dtype="bfloat16")
    tx = optax.adam(0.01)
    state = initial(model, tx, keep_ema=True)
    chunk = jax.jit(make_train_stretch(step_of(model, tx, ema_decay=0.9)))
    new_state, _ = chunk(state, batches(2))
    chex.assert_trees_all_equal_shapes_and_dtypes(plain(new_state), plain(state))
    kept = (state.params, state.batch_stats, state.opt_state, state.ema_params)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(kept) if leaf.ndim}
    assert dtypes == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(chunk)(state, batches(2)))
