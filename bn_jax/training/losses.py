"""What training minimizes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bn_jax.training.metrics import cross_entropy


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
