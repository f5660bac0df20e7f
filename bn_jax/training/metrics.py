"""What is measured of a model's predictions."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


class PredictionSums(NamedTuple):
    """Sums over examples; those of two parts of a data set add up to the whole's.

    Attributes:
        loss: Sum of the cross-entropies, in nats.
        num_right: Examples whose highest score is that of their class.
        num_examples: Examples in all.
    """

    loss: Float[Array, ""]
    num_right: Int[Array, ""]
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
    return PredictionSums(
        loss=jnp.sum(cross_entropy(logits, labels), where=is_example),
        num_right=jnp.sum(is_right, where=is_example),
        num_examples=jnp.sum(is_example),
    )


def mean_metrics(sums: PredictionSums) -> dict[str, float]:
    """`test_loss` in nats and `test_accuracy` in [0, 1], as Python numbers.

    The division is in double precision, so that 9,000 right of 10,000 are 0.9.

    Args:
        sums: Of the whole test set, fetched from the device.
    """
    num_examples = int(sums.num_examples)
    return {
        "test_loss": float(sums.loss) / num_examples,
        "test_accuracy": int(sums.num_right) / num_examples,
    }
