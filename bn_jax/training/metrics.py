"""What is measured of predictions: sums over examples, and what they come to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# Guesses that an example may have before its class counts as missed.
_GUESSES = 5


class PredictionSums(NamedTuple):
    """Sums over examples; those of two parts of a data set add up to the whole's.

    Attributes:
        loss: Sum of the cross-entropies, in nats.
        num_right: Examples whose highest score is that of their class.
        num_in_top5: Examples whose class is among the five highest scores; None where
            there are no more classes than that.
        num_examples: Examples in all.
    """

    loss: Float[Array, ""]
    num_right: Int[Array, ""]
    num_in_top5: Int[Array, ""] | None
    num_examples: Int[Array, ""]


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """Cross-entropy of each example, in nats and at least float32.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def smoothed_cross_entropy(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    *,
    label_smoothing: float,
) -> Float[Array, "batch"]:
    """Cross-entropy against labels that every class has a share of, in nats.

    The share is `label_smoothing / classes` for each class, that of the example
    included; the rest is the example's class's. The smallest loss is above 0 then:
    the entropy of such a label.
    Source: Szegedy et al. (2016), Rethinking the Inception Architecture for Computer
    Vision, section 7.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.
        label_smoothing: What is divided among all classes, in [0, 1); with 0 the loss
            is the plain cross-entropy, bit for bit.

    Returns:
        The loss of each example, in at least float32.
    """
    loss = cross_entropy(logits, labels)
    if label_smoothing == 0:
        return loss
    log_p = jax.nn.log_softmax(logits.astype(loss.dtype))
    return (1 - label_smoothing) * loss - label_smoothing * jnp.mean(log_p, axis=-1)


def class_rank(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Int[Array, "batch"]:
    """How many classes come before each example's own, by their scores.

    The order is that of `jax.lax.top_k`: of equal scores that of the lower class comes
    first, and NaN before all numbers. A class whose own score is NaN comes last.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.

    >>> scores = jnp.array([[2.0, 5.0, 2.0], [2.0, jnp.nan, 1.0]])
    >>> class_rank(scores, jnp.array([2, 0])).tolist()
    [2, 1]
    """
    own = jnp.take_along_axis(logits, jnp.expand_dims(labels, 1), axis=1)
    # Comparisons with NaN are false.
    is_above = ~(logits <= own)
    is_tied_before = (logits == own) & (
        jnp.arange(logits.shape[1]) < jnp.expand_dims(labels, 1)
    )
    return jnp.sum(is_above | is_tied_before, axis=1)


def prediction_sums(
    logits: Float[Array, "batch classes"],
    labels: Int[Array, "batch"],
    is_example: Bool[Array, "batch"],
) -> PredictionSums:
    """Sums of a batch.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.
        is_example: False for what only fills up the batch.
    """
    is_right = jnp.argmax(logits, axis=-1) == labels
    num_in_top5 = None
    if logits.shape[1] > _GUESSES:
        is_in_top5 = class_rank(logits, labels) < _GUESSES
        num_in_top5 = jnp.sum(is_in_top5, where=is_example)
    return PredictionSums(
        loss=jnp.sum(cross_entropy(logits, labels), where=is_example),
        num_right=jnp.sum(is_right, where=is_example),
        num_in_top5=num_in_top5,
        num_examples=jnp.sum(is_example),
    )


def mean_metrics(sums: PredictionSums) -> dict[str, float]:
    """`test_loss` in nats and `test_accuracy` in [0, 1], as Python numbers.

    Where there are more than five classes, `test_top5_accuracy` as well. The division
    is in double precision, so that 9,000 right of 10,000 are 0.9.

    Args:
        sums: Of the whole test set, fetched from the device.
    """
    num_examples = int(sums.num_examples)
    metrics = {
        "test_loss": float(sums.loss) / num_examples,
        "test_accuracy": int(sums.num_right) / num_examples,
    }
    if sums.num_in_top5 is not None:
        metrics["test_top5_accuracy"] = int(sums.num_in_top5) / num_examples
    return metrics
