"""Metrics of predictions: sums over examples, and the means of these sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

# Number of highest scores among which the top-5 accuracy looks for the class.
_TOP = 5


class PredictionSums(NamedTuple):
    """Sums over examples, which add up over the parts of a data set.

    Attributes:
        loss: Sum of the cross-entropies, in nats.
        num_right: Number of examples whose class has the highest score.
        num_in_top5: Number of examples whose class is among the five highest scores;
            None if there are at most five classes.
        num_examples: Number of examples.
    """

    loss: Float[Array, ""]
    num_right: Int[Array, ""]
    num_in_top5: Int[Array, ""] | None
    num_examples: Int[Array, ""]


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"]
) -> Float[Array, "batch"]:
    """Returns the cross-entropy of each example, in nats and at least float32.

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
    """Returns the cross-entropy against smoothed labels, in nats.

    A smoothed label gives each class the probability `label_smoothing / classes`, and
    adds the rest, `1 - label_smoothing`, to the example's own class. The smallest
    possible loss is the entropy of such a label, which is above 0.
    Source: Szegedy et al. (2016), Rethinking the Inception Architecture for Computer
    Vision, section 7.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.
        label_smoothing: Probability that is divided among all classes, in [0, 1). With
            0 the loss is the plain cross-entropy, bit for bit.

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
    """Returns the number of classes that rank before each example's own class.

    Classes rank by their scores in the order of `jax.lax.top_k`: of two equal scores
    the one of the lower class comes first, and NaN comes before all numbers. But if the
    score of the example's own class is NaN, that class comes last.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.

    >>> scores = jnp.array([[2.0, 5.0, 2.0], [2.0, jnp.nan, 1.0]])
    >>> class_rank(scores, jnp.array([2, 0])).tolist()
    [2, 1]
    """
    own = jnp.take_along_axis(logits, jnp.expand_dims(labels, 1), axis=1)
    # Not `logits > own`: comparisons with NaN are False, and NaN must count as above.
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
    """Returns the sums over a batch.

    Args:
        logits: Unnormalized log-probabilities.
        labels: True classes.
        is_example: False for the padding of the batch.
    """
    is_right = jnp.argmax(logits, axis=-1) == labels
    num_in_top5 = None
    if logits.shape[1] > _TOP:
        is_in_top5 = class_rank(logits, labels) < _TOP
        num_in_top5 = jnp.sum(is_in_top5, where=is_example)
    return PredictionSums(
        loss=jnp.sum(cross_entropy(logits, labels), where=is_example),
        num_right=jnp.sum(is_right, where=is_example),
        num_in_top5=num_in_top5,
        num_examples=jnp.sum(is_example),
    )


def mean_metrics(sums: PredictionSums, *, split: str = "test") -> dict[str, float]:
    """Returns `test_loss` in nats and `test_accuracy` in [0, 1], as Python numbers.

    With more than five classes it also returns `test_top5_accuracy`. The division is
    in double precision, so that 9,000 right examples of 10,000 give 0.9 exactly.

    Args:
        sums: Sums over a whole split, fetched from the device.
        split: Name of the split, with which the names of the metrics begin.
    """
    num_examples = int(sums.num_examples)
    metrics = {
        f"{split}_loss": float(sums.loss) / num_examples,
        f"{split}_accuracy": int(sums.num_right) / num_examples,
    }
    if sums.num_in_top5 is not None:
        metrics[f"{split}_top5_accuracy"] = int(sums.num_in_top5) / num_examples
    return metrics
