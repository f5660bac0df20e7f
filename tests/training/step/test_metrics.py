"""Sums over examples, and the numbers that they come to."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.training.step import metrics as module
from bn_jax.training.step.metrics import PredictionSums, mean_metrics

class_rank = jax.jit(module.class_rank)
cross_entropy = jax.jit(module.cross_entropy)
prediction_sums = jax.jit(module.prediction_sums)

LOGITS = np.array([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0], [1.0, 4.0, 0.0]])
LABELS = np.array([0, 1, 1])


def sums(
    loss: float, num_right: int, num_examples: int, num_in_top5: int | None = None
) -> PredictionSums:
    return PredictionSums(
        jnp.float32(loss),
        jnp.int32(num_right),
        None if num_in_top5 is None else jnp.int32(num_in_top5),
        jnp.int32(num_examples),
    )


def in_top5(scores: list[float], label: int) -> int:
    """Returns 1 if the label of an example is among its five highest scores, or 0."""
    one = jnp.ones(1, bool)
    found = prediction_sums(jnp.array([scores]), jnp.array([label]), one)
    assert found.num_in_top5 is not None
    return int(found.num_in_top5)


@pytest.mark.parametrize("num_right", [1, 8999, 9000, 9001])
def test_accuracy_is_the_quotient_in_double_precision(num_right: int) -> None:
    metrics = mean_metrics(sums(0.0, num_right, 10_000))
    assert metrics["test_accuracy"] == num_right / 10_000


def test_9000_of_10000_reach_90_percent() -> None:
    assert mean_metrics(sums(0.0, 9000, 10_000))["test_accuracy"] >= 0.9


def test_metrics_are_python_numbers() -> None:
    metrics = mean_metrics(sums(5.0, 3, 4))
    assert metrics == {"test_loss": 1.25, "test_accuracy": 0.75}
    assert {type(value) for value in metrics.values()} == {float}


def test_with_more_than_five_classes_there_is_the_top_five_accuracy() -> None:
    assert mean_metrics(sums(5.0, 3, 10_000, 9000)) == {
        "test_loss": 5e-4,
        "test_accuracy": 3e-4,
        "test_top5_accuracy": 0.9,
    }


@pytest.mark.parametrize(("num_classes", "is_there"), [(3, 0), (5, 0), (6, 1)])
def test_five_guesses_of_five_classes_are_not_counted(
    num_classes: int, is_there: bool
) -> None:
    found = prediction_sums(
        jnp.zeros((2, num_classes)), jnp.zeros(2, int), jnp.ones(2, bool)
    )
    assert (found.num_in_top5 is not None) == is_there


@pytest.mark.parametrize("num_values", [2, 5, 1000])
def test_the_five_highest_are_those_of_a_stable_order(num_values: int) -> None:
    # Few values: many scores are the same.
    rng = np.random.default_rng(num_values)
    scores = rng.integers(0, num_values, (200, 9)).astype(np.float64)
    labels = rng.integers(0, 9, 200)
    five = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    is_in = (five == labels[:, None]).any(axis=1)
    is_example = rng.random(200) < 0.8
    found = prediction_sums(
        jnp.asarray(scores, jnp.float32), jnp.asarray(labels), jnp.asarray(is_example)
    )
    assert found.num_in_top5 == (is_in & is_example).sum()
    # The order of XLA's own sort.
    _, by_xla = jax.lax.top_k(jnp.asarray(scores, jnp.float32), 5)
    np.testing.assert_array_equal(by_xla, five)


def test_the_first_of_all_has_rank_0_and_is_what_accuracy_counts() -> None:
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 4, (50, 7)), float)
    labels = jnp.arange(50) % 7
    is_first = class_rank(scores, labels) == 0
    np.testing.assert_array_equal(is_first, jnp.argmax(scores, axis=-1) == labels)


@pytest.mark.parametrize("label", range(6))
def test_a_class_whose_score_is_nan_is_never_right(label: int) -> None:
    scores = [1.0] * 6
    scores[label] = float("nan")
    assert in_top5(scores, label) == 0
    assert in_top5([float("nan")] * 6, label) == 0


def test_a_nan_comes_before_all_numbers_as_in_top_k() -> None:
    nan, inf = float("nan"), float("inf")
    assert in_top5([inf, nan, nan, nan, nan, 0.0], 0) == 1
    assert in_top5([inf, nan, nan, nan, nan, nan], 0) == 0


def test_infinite_scores_are_ordered_as_numbers() -> None:
    inf = float("inf")
    assert in_top5([-inf] * 6, 4) == 1
    assert in_top5([-inf] * 6, 5) == 0
    assert in_top5([inf] * 5 + [3.0], 5) == 0


def test_cross_entropy_is_the_negative_log_likelihood_in_nats() -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = -np.log(p[np.arange(3), LABELS])
    losses = cross_entropy(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    losses = cross_entropy(jnp.array([[1e30, 0.0], [0.0, 1e30]]), jnp.array([0, 0]))
    np.testing.assert_array_equal(losses, np.array([0, 1e30], np.float32))


@pytest.mark.shapes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_cross_entropy_is_at_least_float32(dtype: jnp.dtype) -> None:
    losses = cross_entropy(jnp.zeros((3, 2), dtype), jnp.zeros(3, int))
    chex.assert_shape(losses, (3,))
    assert losses.dtype == jnp.float32


def test_only_real_examples_are_counted() -> None:
    is_example = jnp.array([True, True, False])
    found = prediction_sums(jnp.asarray(LOGITS), jnp.asarray(LABELS), is_example)
    expected = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS))[:2].sum()
    assert (int(found.num_right), int(found.num_examples)) == (1, 2)
    assert float(found.loss) == pytest.approx(float(expected))


def test_a_nan_that_fills_up_a_batch_reaches_nothing() -> None:
    logits = jnp.asarray(LOGITS).at[2].set(jnp.nan)
    is_example = jnp.array([True, True, False])
    assert jnp.isfinite(prediction_sums(logits, jnp.asarray(LABELS), is_example).loss)


def test_sums_of_parts_add_up_to_those_of_the_whole() -> None:
    def of(part: slice) -> PredictionSums:
        logits, labels = jnp.asarray(LOGITS)[part], jnp.asarray(LABELS)[part]
        return prediction_sums(logits, labels, jnp.ones(len(labels), bool))

    added = jax.tree.map(jnp.add, of(slice(0, 1)), of(slice(1, 3)))
    chex.assert_trees_all_close(added, of(slice(0, 3)))
