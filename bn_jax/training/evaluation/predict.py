"""Predictions of networks: of a single one, over crops of images, or of several."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from bn_jax.training.step.metrics import PredictionSums, prediction_sums
from bn_jax.training.step.train_step import Examples, make_rngs, mutable_collections

# Function of a network's variables and of images that returns each image's scores, its
# unnormalized log-probabilities.
Predict = Callable[[PyTree, Shaped[Array, "batch ..."]], Float[Array, "batch classes"]]


class PaddedBatches(NamedTuple):
    """Some or all batches of a data set, all of one size.

    Attributes:
        examples: Images and labels, with a leading axis of batches.
        is_example: False for the padding of the last batch.
    """

    examples: Examples
    is_example: Bool[Array, "batches batch"]


class EnsembleSums(NamedTuple):
    """Sums of the predictions of several networks.

    Attributes:
        members: Sums of each network.
        ensemble: Sums of the averaged predictions of all networks.
    """

    members: Sequence[PredictionSums]
    ensemble: PredictionSums


def make_predict(
    model: nn.Module,
    *,
    preprocess: Callable[[Array], Array],
    by_batch: bool = False,
) -> Predict:
    """Returns a function that computes the scores of one network.

    Args:
        model: Called as `model.apply(variables, x, train=...)`.
        preprocess: Turns stored pixels into the model's input.
        by_batch: True to normalize each batch by its own statistics, in which padding
            counts too. The network is then in training mode, so that Dropout is
            active.
    """

    def predict(variables: PyTree, images: Array) -> Any:
        inputs = preprocess(images)
        if not by_batch:
            return model.apply(variables, inputs, train=False)
        scores, _ = model.apply(
            variables,
            inputs,
            train=True,
            mutable=mutable_collections(variables),
            # A fixed key, so that Dropout draws the same noise at each evaluation.
            rngs=make_rngs(jax.random.key(0)),
        )
        return scores

    return predict


def over_crops(predict: Predict) -> Predict:
    """Returns a function that averages predictions over the crops of each image.

    Args:
        predict: Computes the scores of single crops.

    Returns:
        Function of the variables and of crops `(batch, crops, ...)`; it returns the
        logarithm of the averaged probabilities, `(batch, classes)`.
    """

    def predict_together(variables: PyTree, crops: Array) -> Array:
        scores = predict(variables, crops.reshape(-1, *crops.shape[2:]))
        scores = scores.reshape(*crops.shape[:2], -1)
        return log_mean_probabilities(scores, axis=1)

    return predict_together


def log_mean_probabilities(
    scores: Float[Array, "*batch classes"], *, axis: int
) -> Float[Array, "*mean"]:
    """Returns the logarithm of the arithmetic mean of probabilities.

    The probabilities themselves are never computed, so that the result is finite where
    each of them would be 0 in floating point.
    Source: Ioffe & Szegedy (2015), section 4.2.3.

    Args:
        scores: Unnormalized log-probabilities.
        axis: Axis to average over, which is not the last one.

    Returns:
        Logarithms of probabilities that sum to 1 over the last axis, in at least
        float32.

    >>> scores = jnp.log(jnp.array([[0.5, 0.5], [0.3, 0.1]]))
    >>> [f"{p:.3f}" for p in jnp.exp(log_mean_probabilities(scores, axis=0))]
    ['0.625', '0.375']
    """
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    log_p = jax.nn.log_softmax(scores, axis=-1)
    return jax.nn.logsumexp(log_p, axis=axis) - math.log(scores.shape[axis])


def make_eval_step(
    predict: Predict,
) -> Callable[[PyTree, PaddedBatches], PredictionSums]:
    """Returns a function that evaluates a network on every example of batches.

    Args:
        predict: Computes the network's scores.

    Returns:
        Function of the variables and of the batches.
    """

    def eval_step(variables: PyTree, batches: PaddedBatches) -> PredictionSums:
        return _sum_over_batches(
            lambda batch: _batch_sums(predict(variables, batch.examples.images), batch),
            batches,
        )

    return eval_step


def make_ensemble_step(
    predicts: Sequence[Predict],
) -> Callable[[Sequence[PyTree], PaddedBatches], EnsembleSums]:
    """Returns a function that evaluates an ensemble on every example of batches.

    The function evaluates each member and the whole ensemble, whose probabilities are
    the arithmetic means of the members' probabilities.

    Args:
        predicts: Compute the scores, one function for each member.

    Returns:
        Function of the variables of each member and of the batches.
    """

    def ensemble_step(
        variables: Sequence[PyTree], batches: PaddedBatches
    ) -> EnsembleSums:
        def sums(batch: PaddedBatches) -> EnsembleSums:
            images = batch.examples.images
            members = [
                predict(one, images)
                for predict, one in zip(predicts, variables, strict=True)
            ]
            together = log_mean_probabilities(jnp.stack(members), axis=0)
            return EnsembleSums(
                members=[_batch_sums(scores, batch) for scores in members],
                ensemble=_batch_sums(together, batch),
            )

        return _sum_over_batches(sums, batches)

    return ensemble_step


def _batch_sums(scores: Array, batch: PaddedBatches) -> PredictionSums:
    return prediction_sums(scores, batch.examples.labels, batch.is_example)


def _sum_over_batches(
    sums: Callable[[PaddedBatches], Any], batches: PaddedBatches
) -> Any:
    return jax.tree.map(jnp.sum, jax.lax.map(sums, batches))
