"""Training steps as pure functions, which the caller compiles."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree, Shaped

from bn_jax.stats.collections import keep_layers
from bn_jax.training.step.metrics import smoothed_cross_entropy
from bn_jax.training.step.nonfinite import first_nonfinite, undo_nonfinite
from bn_jax.training.step.state import Tally, TrainState


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
    state: TrainState


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
    stop_gradients: Callable[[PyTree], PyTree] = lambda params: params,
) -> TrainStep:
    """Returns a function that takes one training step.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        preprocess: Turns stored pixels into the model's input.
        accumulate: Computes the statistics after a step from those before it and the
            stacked `batch_moments` of its microbatches. A layer without moments, or
            each layer if `accumulate` is None, updates its statistics in one microbatch
            after the other.
        axis_name: Mapped axis over which the examples are sharded; None for no axis.
        label_smoothing: Probability that is divided among all classes, in [0, 1).
        ema_decay: Fraction of the averaged parameters that a step keeps; None for no
            averaged parameters.
        max_nonfinite_steps: Number of non-finite steps in a row after which the run is
            over. Each of them is undone.
        stop_gradients: Makes constants of the parameters that `tx` does not change.

    Returns:
        Function of the state and of the step's examples in microbatches,
        `(microbatches, examples, ...)`. It returns the new state and the loss before
        the step: the mean cross-entropy against smoothed labels, in nats.
    """
    loss_and_grads = _make_loss_and_grads(
        model,
        preprocess=preprocess,
        label_smoothing=label_smoothing,
        stop_gradients=stop_gradients,
    )

    def train_step(
        state: TrainState, batch: Examples
    ) -> tuple[TrainState, Float[Array, ""]]:
        keys = jax.random.split(
            _device_key(jax.random.fold_in(state.key, state.step), axis_name),
            batch.labels.shape[0],
        )
        loss, grads, updated = _mean_over_microbatches(
            loss_and_grads, state, batch, keys, accumulate=accumulate
        )
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        if state.loss_scale:
            scale = state.loss_scale.scale
            grads = jax.tree.map(lambda leaf: leaf / scale, grads)
        new_state = _update_params(tx, updated, grads, ema_decay=ema_decay)
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


def mutable_collections(variables: Mapping[str, PyTree]) -> list[str]:
    """Returns the collections that a model may update in training, or sow into.

    Args:
        variables: The model's variables.
    """
    return [name for name in variables if name != "params"] + ["batch_moments"]


def make_rngs(key: Shaped[Array, ""]) -> dict[str, Array]:
    """Returns the keys of a model's random streams.

    Any other stream that the model asks for falls back to `params` in Linen and to
    `default` in NNX.

    Args:
        key: Key of the step, and of the device.
    """
    other = jax.random.fold_in(key, 1)
    return {"dropout": key, "params": other, "default": other}


def _make_loss_and_grads(
    model: nn.Module,
    *,
    preprocess: Callable[[Array], Array],
    label_smoothing: float,
    stop_gradients: Callable[[PyTree], PyTree],
) -> _LossAndGrads:
    def loss_and_grads(state: TrainState, batch: Examples, key: Array) -> Any:
        def loss_fn(params: PyTree) -> Any:
            logits, updates = model.apply(
                {**state.variables, "params": stop_gradients(params)},
                preprocess(batch.images),
                train=True,
                mutable=mutable_collections(state.variables),
                rngs=make_rngs(key),
            )
            losses = smoothed_cross_entropy(
                logits, batch.labels, label_smoothing=label_smoothing
            )
            loss = jnp.mean(losses)
            scaled = loss * state.loss_scale.scale if state.loss_scale else loss
            return scaled, (loss, updates)

        (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return aux, grads

    return loss_and_grads


def _mean_over_microbatches(
    loss_and_grads: _LossAndGrads,
    state: TrainState,
    batch: Examples,
    keys: Array,
    *,
    accumulate: Callable[[PyTree, PyTree], PyTree] | None,
) -> _StepResult:
    """Returns the mean loss and gradients of the microbatches, and the updated state.

    Only the model's collections of the state are updated, and not its parameters.

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
        return _StepResult(loss, grads, _update_collections(state, updates, {}))

    def add(carry: Any, microbatch: tuple[Examples, Array]) -> tuple[Any, PyTree]:
        sums, kept = carry
        before = state._replace(**kept)
        (loss, updates), grads = loss_and_grads(before, *microbatch)
        moments = {} if accumulate is None else updates.get("batch_moments", {})
        after = _update_collections(before, updates, moments)
        return (jax.tree.map(jnp.add, sums, (loss, grads)), collections(after)), moments

    def collections(state: TrainState) -> dict[str, PyTree]:
        return {"batch_stats": state.batch_stats, "collections": state.collections}

    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
    carry, moments = jax.lax.scan(add, (zeros, collections(state)), (batch, keys))
    sums, kept = carry
    loss, grads = jax.tree.map(lambda x: x / num_microbatches, sums)
    state = state._replace(**kept)
    if accumulate is not None and moments:
        state = state._replace(batch_stats=accumulate(state.batch_stats, moments))
    return _StepResult(loss, grads, state)


def _update_collections(
    state: TrainState, updates: Mapping[str, PyTree], moments: PyTree
) -> TrainState:
    """Returns the state with the collections that a microbatch has updated.

    Layers with `moments` keep their statistics, because all microbatches together
    update those.
    """
    batch_stats = updates.get("batch_stats", state.batch_stats)
    return state._replace(
        batch_stats=keep_layers(moments, state.batch_stats, batch_stats),
        collections={
            name: updates.get(name, old) for name, old in state.collections.items()
        },
    )


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
