"""Training and evaluation as pure functions, to be compiled by the caller."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from bn_jax.stats.precise import average_moments
from bn_jax.training.metrics import PredictionSums, cross_entropy, prediction_sums
from bn_jax.training.state import TrainState


class Examples(NamedTuple):
    """Images as they are stored, with their labels.

    Attributes:
        images: Pixels.
        labels: Class of each image.
    """

    images: Shaped[Array, "*batch height width channels"]
    labels: Int[Array, "*batch"]


class PaddedBatches(NamedTuple):
    """A whole data set, cut into batches of one size.

    Attributes:
        examples: Images and labels, with an axis of batches in front.
        is_example: False for what only fills the last batch.
    """

    examples: Examples
    is_example: Bool[Array, "batches batch"]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    preprocess: Callable[[Array], Array],
) -> Callable[[TrainState, Examples], tuple[TrainState, Float[Array, ""]]]:
    """A function that takes one step and returns the loss before it.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        tx: The optimizer.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of state and batch; its loss is the mean cross-entropy in nats.
    """

    def train_step(
        state: TrainState, batch: Examples
    ) -> tuple[TrainState, Float[Array, ""]]:
        def loss_fn(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                preprocess(batch.images),
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.mean(cross_entropy(logits, batch.labels)), updates

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, updates), grads = grad_fn(state.params)
        param_updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, param_updates),
            batch_stats=updates.get("batch_stats", state.batch_stats),
            opt_state=opt_state,
        )
        return new_state, loss

    return train_step


def make_train_chunk(
    train_step: Callable[[TrainState, Examples], tuple[TrainState, Array]],
) -> Callable[
    [TrainState, Examples, Int[Array, "steps batch"]],
    tuple[TrainState, Float[Array, "steps"]],
]:
    """A function that takes many steps over data that stay on the device.

    Args:
        train_step: As `make_train_step` returns it.

    Returns:
        Function of the state, the whole training set and the indices of each step's
        examples; it returns the state after the last step and each step's loss.
    """

    def train_chunk(
        state: TrainState, data: Examples, indices: Int[Array, "steps batch"]
    ) -> tuple[TrainState, Float[Array, "steps"]]:
        def body(state: TrainState, chosen: Array) -> tuple[TrainState, Array]:
            return train_step(state, take(data, chosen))

        return jax.lax.scan(body, state, indices)

    return train_chunk


def make_population_step(
    model: nn.Module, *, preprocess: Callable[[Array], Array]
) -> Callable[[TrainState, Examples, Int[Array, "batches batch"]], PyTree]:
    """A function that gives the variables to evaluate with.

    They are the parameters, and population statistics computed anew from training
    batches in place of the running ones.
    Source: Ioffe & Szegedy (2015), Algorithm 2, lines 7 to 10.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of the state, the whole training set and the indices of each
        batch's examples. A model without statistics gets its variables back.
    """

    def population_step(
        state: TrainState, data: Examples, indices: Int[Array, "batches batch"]
    ) -> PyTree:
        if not state.batch_stats:
            return state.variables

        def moments(chosen: Array) -> PyTree:
            _, updates = model.apply(
                state.variables,
                preprocess(take(data, chosen).images),
                train=True,
                mutable=["batch_stats", "batch_moments"],
            )
            return updates["batch_moments"]

        sown = jax.lax.map(moments, indices)
        batch_stats = average_moments(sown, state.batch_stats)
        return {"params": state.params, "batch_stats": batch_stats}

    return population_step


def make_eval_step(
    model: nn.Module, *, preprocess: Callable[[Array], Array]
) -> Callable[[PyTree, PaddedBatches], PredictionSums]:
    """A function that evaluates a model on every example of a data set.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.

    Returns:
        Function of the variables and the data set in batches.
    """

    def eval_step(variables: PyTree, batches: PaddedBatches) -> PredictionSums:
        def batch_sums(batch: PaddedBatches) -> PredictionSums:
            images = preprocess(batch.examples.images)
            logits: Any = model.apply(variables, images, train=False)
            return prediction_sums(logits, batch.examples.labels, batch.is_example)

        return jax.tree.map(jnp.sum, jax.lax.map(batch_sums, batches))

    return eval_step


def take(data: Examples, chosen: Int[Array, "batch"]) -> Examples:
    """The chosen examples, in that order.

    Args:
        data: Examples along one axis.
        chosen: Indices, all of which exist.
    """
    return jax.tree.map(lambda leaf: leaf.at[chosen].get(mode="clip"), data)
