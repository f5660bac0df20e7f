"""Training as pure functions, to be compiled by the caller."""

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
    """Images as they are stored, with their labels.

    Attributes:
        images: Pixels.
        labels: Class of each image.
    """

    images: Shaped[Array, "*batch height width channels"]
    labels: Int[Array, "*batch"]


TrainStep = Callable[[TrainState, Examples], tuple[TrainState, Float[Array, ""]]]


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
    """A function that takes one step and returns the loss before it.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        preprocess: Turns stored pixels into the model's input.
        accumulate: Makes the statistics after a step from those before it and the
            stacked `batch_moments` of its microbatches; None for a step that is
            always one microbatch.
        axis_name: Mapped axis that the examples are spread over.
        label_smoothing: See `smoothed_cross_entropy`.
        ema_decay: Fraction of the average of the parameters that a step keeps; None
            where there is no average.
        max_nonfinite_steps: Steps in a row of which anything is not finite, until
            the run is over. All of them are undone.

    Returns:
        Function of the state and of the step's examples in microbatches,
        `(microbatches, examples, ...)`; its loss is the mean of what is minimized,
        the cross-entropy against smoothed labels, in nats.
    """

    def microbatch_grads(state: TrainState, batch: Examples, key: Array) -> Any:
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

    def train_step(
        state: TrainState, batch: Examples
    ) -> tuple[TrainState, Float[Array, ""]]:
        num_microbatches = batch.labels.shape[0]
        keys = jax.random.split(
            _own_key(jax.random.fold_in(state.key, state.step), axis_name),
            num_microbatches,
        )
        batch_stats = state.batch_stats
        if num_microbatches == 1:
            one = jax.tree.map(lambda leaf: leaf[0], batch)
            (loss, updates), grads = microbatch_grads(state, one, keys[0])
            batch_stats = updates.get("batch_stats", batch_stats)
        else:

            def add(sums: Any, part: tuple[Examples, Array]) -> tuple[Any, PyTree]:
                (loss, updates), grads = microbatch_grads(state, *part)
                moments = updates.get("batch_moments", {})
                return jax.tree.map(jnp.add, sums, (loss, grads)), moments

            zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
            sums, moments = jax.lax.scan(add, zeros, (batch, keys))
            loss, grads = jax.tree.map(lambda x: x / num_microbatches, sums)
            if accumulate is not None and moments:
                batch_stats = accumulate(batch_stats, moments)
        if axis_name is not None:
            loss, grads = jax.lax.pmean((loss, grads), axis_name)
        param_updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, param_updates)
        ema_params = state.ema_params
        if ema_decay is not None:
            ema_params = optax.incremental_update(params, ema_params, 1 - ema_decay)
        new_state = state._replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema_params=ema_params,
        )
        new_state = undo_nonfinite(
            state,
            new_state,
            loss=loss,
            bad_value=first_nonfinite(loss, grads, new_state),
            limit=max_nonfinite_steps,
        )
        return new_state, loss

    return train_step


def make_train_chunk(
    train_step: TrainStep,
) -> Callable[[TrainState, Examples], tuple[TrainState, Tally]]:
    """A function that takes many steps.

    Args:
        train_step: As `make_train_step` returns it.

    Returns:
        Function of the state and of the examples of each step, `(steps,
        microbatches, examples, ...)`; it returns the state after the last step, and
        its tally once more, for whoever gives the state away.
    """

    def train_chunk(state: TrainState, batches: Examples) -> tuple[TrainState, Tally]:
        state, _ = jax.lax.scan(train_step, state, batches)
        return state, state.tally

    return train_chunk


def make_population_step(
    model: nn.Module, *, preprocess: Callable[[Array], Array]
) -> Callable[[PyTree, Examples], PyTree]:
    """A function that gives the variables to evaluate with.

    They are the parameters, and population statistics computed anew from training
    batches in place of the running ones.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of the variables and of training batches, `(steps, microbatches,
        examples, ...)`: each microbatch is one batch, as in training. A model
        without statistics gets its variables back.
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
                # The same noise at every evaluation.
                rngs={"dropout": jax.random.key(0)},
            )
            return updates["batch_moments"]

        images = batches.images.reshape(-1, *batches.images.shape[2:])
        sown = jax.lax.map(moments, images)
        batch_stats = average_moments(sown, variables["batch_stats"])
        return {"params": variables["params"], "batch_stats": batch_stats}

    return population_step


def _own_key(key: Array, axis_name: str | None) -> Array:
    """A key of this device's examples, where each device is asked for its own."""
    if axis_name is None:
        return key
    return jax.random.fold_in(key, jax.lax.axis_index(axis_name))
