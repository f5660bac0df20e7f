"""The cross-entropy against smoothed labels, compared with float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import numpy_mlp

from bn_jax.training.step import metrics
from bn_jax.training.step.metrics import cross_entropy

smoothed_cross_entropy = jax.jit(
    metrics.smoothed_cross_entropy, static_argnames="label_smoothing"
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (7, 5))
LABELS = RNG.integers(0, 5, 7)


def losses(logits: np.ndarray, label_smoothing: float) -> np.ndarray:
    result = smoothed_cross_entropy(
        jnp.asarray(logits), jnp.asarray(LABELS), label_smoothing=label_smoothing
    )
    return np.asarray(result)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_the_loss_is_that_of_float64_numpy(label_smoothing: float) -> None:
    found = losses(LOGITS.astype(np.float32), label_smoothing)
    expected = [
        numpy_mlp.cross_entropy(
            LOGITS[i : i + 1], LABELS[i : i + 1], label_smoothing=label_smoothing
        )
        for i in range(len(LABELS))
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_without_smoothing_it_is_the_cross_entropy_bit_for_bit() -> None:
    logits = jnp.asarray(LOGITS, jnp.float32)
    plain = np.asarray(jax.jit(cross_entropy)(logits, jnp.asarray(LABELS)))
    np.testing.assert_array_equal(losses(logits, 0.0), plain)


def test_no_scores_reach_less_than_the_entropy_of_a_smoothed_label() -> None:
    targets = np.full((7, 5), 0.1 / 5)
    targets[np.arange(7), LABELS] += 0.9
    entropy = -(targets[0] * np.log(targets[0])).sum()
    np.testing.assert_allclose(losses(np.log(targets), 0.1), entropy, rtol=1e-5)
    assert (losses(np.log(targets) * 1.1, 0.1) > entropy).all()


@pytest.mark.shapes
def test_a_loss_of_half_precision_scores_is_float32() -> None:
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    assert (
        smoothed_cross_entropy(logits, jnp.asarray(LABELS), label_smoothing=0.1).dtype
        == jnp.float32
    )
