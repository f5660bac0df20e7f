"""Training steps as pure functions, which the caller compiles."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from bn_jax.stats.precise import average_moments
from bn_jax.training.metrics import smoothed_cross_entropy
from bn_jax.training.nonfinite import first_nonfinite, undo_nonfinite
from bn_jax.training.state import Tally, TrainState


class Examples(NamedTuple):
    """Stored images with their labels.

    Attributes:
        images: Pixels, as they are stored.
        labels: Class of each image.
    """

    images: Shaped[Array, "*batch height width channels"]
    labels: Int[Array, "*batch"]


TrainStep = Callable[[TrainState, Examples], tuple[TrainState, Float[Array, ""]]]

# Returns ((loss, updated collections), gradients) of one microbatch.
_LossAndGrads = Callable[[TrainState, Examples, Array], Any]


class _StepResult(NamedTuple):
    loss: Float[Array, ""]
    grads: PyTree
    batch_stats: PyTree


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    preprocess: Callable[[Array], Array],
    accumulate: Callable[[PyTree, PyTree], PyTree] | None = None,
    axis_name: str | None = None,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    max_nonfinite_steps: int = 1,
) -> TrainStep:
    """Returns a function that takes one training step.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        preprocess: Turns stored pixels into the model's input.
        accumulate: Computes the statistics after a step from those before it and the
            stacked `batch_moments` of its microbatches; None if each step is one
            microbatch.
        axis_name: Mapped axis over which the examples are sharded; None for no axis.
        label_smoothing: Probability that is divided among all classes, in [0, 1).
        ema_decay: Fraction of the averaged parameters that a step keeps; None for no
            averaged parameters.
        max_nonfinite_steps: Number of non-finite steps in a row after which the run is
            over. Each of them is undone.

    Returns:
        Function of the state and of the step's examples in microbatches,
        `(microbatches, examples, ...)`. It returns the new state and the loss before
        the step: the mean cross-entropy against smoothed labels, in nats.
    """
    loss_and_grads = _make_loss_and_grads(
        model, preprocess=preprocess, label_smoothing=label_smoothing
    )

    def train_step(
        state: TrainState, batch: Examples
    ) -> tuple[TrainState, Float[Array, ""]]:
        keys = jax.random.split(
            _device_key(jax.random.fold_in(state.key, state.step), axis_name),
            batch.labels.shape[0],
        )
        loss, grads, batch_stats = _mean_over_microbatches(
            loss_and_grads, state, batch, keys, accumulate=accumulate
        )
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        new_state = _update_params(tx, state, grads, ema_decay=ema_decay)
        new_state = new_state._replace(batch_stats=batch_stats)
        new_state = undo_nonfinite(
            state,
            new_state,
            loss=loss,
            bad_value=first_nonfinite(loss, grads, new_state),
            limit=max_nonfinite_steps,
        )
        return new_state, loss

    return train_step


def make_train_stretch(
    train_step: TrainStep,
) -> Callable[[TrainState, Examples], tuple[TrainState, Tally]]:
    """Returns a function that takes a stretch of steps.

    Args:
        train_step: Function that takes one step, from `make_train_step`.

    Returns:
        Function of the state and of the examples of each step, `(steps,
        microbatches, examples, ...)`. It returns the state after the last step, and a
        second copy of its tally, which stays readable if the caller donates the state.
    """

    def train_stretch(state: TrainState, batches: Examples) -> tuple[TrainState, Tally]:
        state, _ = jax.lax.scan(train_step, state, batches)
        return state, state.tally

    return train_stretch


def make_population_step(
    model: nn.Module, *, preprocess: Callable[[Array], Array]
) -> Callable[[PyTree, Examples], PyTree]:
    """Returns a function that computes the variables to evaluate with.

    These are the parameters, and population statistics in place of the running
    statistics, computed from training batches.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of the variables and of training batches, `(steps, microbatches,
        examples, ...)`. Each microbatch is one batch of Algorithm 2, as in training.
        For a model without statistics it returns the variables unchanged.
    """

    def population_step(variables: PyTree, batches: Examples) -> PyTree:
        if not variables["batch_stats"]:
            return variables

        def moments(images: Array) -> PyTree:
            _, updates = model.apply(
                variables,
                preprocess(images),
                train=True,
                mutable=["batch_stats", "batch_moments"],
                # A fixed key, so that Dropout draws the same noise at each evaluation.
                rngs={"dropout": jax.random.key(0)},
            )
            return updates["batch_moments"]

        images = batches.images.reshape(-1, *batches.images.shape[2:])
        sown = jax.lax.map(moments, images)
        batch_stats = average_moments(sown, variables["batch_stats"])
        return {"params": variables["params"], "batch_stats": batch_stats}

    return population_step


def _make_loss_and_grads(
    model: nn.Module,
    *,
    preprocess: Callable[[Array], Array],
    label_smoothing: float,
) -> _LossAndGrads:
    def loss_and_grads(state: TrainState, batch: Examples, key: Array) -> Any:
        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], Mapping[str, PyTree]]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                preprocess(batch.images),
                train=True,
                mutable=["batch_stats", "batch_moments"],
                rngs={"dropout": key},
            )
            losses = smoothed_cross_entropy(
                logits, batch.labels, label_smoothing=label_smoothing
            )
            return jnp.mean(losses), updates

        return jax.value_and_grad(loss_fn, has_aux=True)(state.params)

    return loss_and_grads


def _mean_over_microbatches(
    loss_and_grads: _LossAndGrads,
    state: TrainState,
    batch: Examples,
    keys: Array,
    *,
    accumulate: Callable[[PyTree, PyTree], PyTree] | None,
) -> _StepResult:
    """Returns the mean loss and gradients of the microbatches, and the new statistics.

    Args:
        loss_and_grads: Computes loss, updated collections and gradients of a
            microbatch.
        state: State before the step.
        batch: Examples, `(microbatches, examples, ...)`.
        keys: One random key for each microbatch.
        accumulate: Computes the new statistics from the moments of the microbatches.
    """
    num_microbatches = batch.labels.shape[0]
    if num_microbatches == 1:
        one = jax.tree.map(lambda leaf: leaf[0], batch)
        (loss, updates), grads = loss_and_grads(state, one, keys[0])
        return _StepResult(loss, grads, updates.get("batch_stats", state.batch_stats))

    def add(sums: Any, microbatch: tuple[Examples, Array]) -> tuple[Any, PyTree]:
        (loss, updates), grads = loss_and_grads(state, *microbatch)
        moments = updates.get("batch_moments", {})
        return jax.tree.map(jnp.add, sums, (loss, grads)), moments

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    sums, moments = jax.lax.scan(add, zeros, (batch, keys))
    loss, grads = jax.tree.map(lambda x: x / num_microbatches, sums)
    batch_stats = state.batch_stats
    if accumulate is not None and moments:
        batch_stats = accumulate(batch_stats, moments)
    return _StepResult(loss, grads, batch_stats)


def _update_params(
    tx: optax.GradientTransformation,
    state: TrainState,
    grads: PyTree,
    *,
    ema_decay: float | None,
) -> TrainState:
    """Returns the state with new parameters, their average and optimizer state."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_decay is not None:
        ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
    return state._replace(params=params, opt_state=opt_state, ema_params=ema_params)


def _device_key(key: Array, axis_name: str | None) -> Array:
    """Returns a key of this device; `key` itself without a mapped axis."""
    if axis_name is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name))
