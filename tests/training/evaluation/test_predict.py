"""Predictions of one network, of crops and of several, against float64 NumPy."""

from functools import partial
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import numpy_mlp

from bn_jax.data.batching import padded_batches
from bn_jax.data.preprocess import binarize
from bn_jax.models import make_model, make_norm
from bn_jax.training.evaluation.predict import (
    PaddedBatches,
    Predict,
    log_mean_probabilities,
    make_ensemble_step,
    make_eval_step,
    make_predict,
    over_crops,
)
from bn_jax.training.step.metrics import mean_metrics
from bn_jax.training.step.train_step import Examples

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (53, 6, 5, 1), dtype=np.uint8)
LABELS = RNG.integers(0, 7, 53).astype(np.int32)

preprocess = partial(binarize, threshold=127)


class Network(NamedTuple):
    """A network with parameters and statistics that are no zeros and ones."""

    predict: Predict
    variables: Any

    def logits(self, images: np.ndarray) -> np.ndarray:
        """In float64."""
        params, stats = self.variables["params"], self.variables["batch_stats"]
        return numpy_mlp.predict(*in_float64((params, stats)), images > 127).logits


def network(seed: int) -> Network:
    model = make_model(
        "mlp",
        num_classes=7,
        norm=make_norm("batch_norm"),
        hidden_features=(6,) * (seed + 1),
        kernel_stddev=1.0,
    )
    init = partial(model.init, jax.random.key(seed), train=False)
    shapes = jax.eval_shape(init, preprocess(IMAGES[:1]))
    rng = np.random.default_rng(seed)

    def values(path: Any, leaf: Any) -> jax.Array:
        lowest = -2 if path[-1].key in ("kernel", "mean") else 0.1
        return jnp.asarray(rng.uniform(lowest, 2, leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(values, shapes)
    return Network(make_predict(model, preprocess=preprocess), variables)


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    """Two, the second deeper than the first."""
    return [network(seed) for seed in range(2)]


def in_float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def probabilities(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def batches(batch_size: int) -> PaddedBatches:
    indices, is_example = padded_batches(len(LABELS), batch_size)
    return PaddedBatches(Examples(IMAGES[indices], LABELS[indices]), is_example)


def assert_metrics(metrics: dict[str, float], p: np.ndarray) -> None:
    """Those of probabilities, by their definition."""
    five = np.argsort(-p, axis=-1)[:, :5]
    loss = -np.log(p[np.arange(len(p)), LABELS]).mean()
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-5)
    assert metrics["test_accuracy"] == (p.argmax(axis=-1) == LABELS).mean()
    is_in = (five == LABELS[:, None]).any(axis=-1)
    assert metrics["test_top5_accuracy"] == is_in.mean()


@pytest.mark.parametrize("batch_size", [10, 1000])
def test_evaluation_counts_every_example_once(
    networks: list[Network], batch_size: int
) -> None:
    one = networks[0]
    step = jax.jit(make_eval_step(one.predict))
    metrics = mean_metrics(step(one.variables, batches(batch_size)))
    assert_metrics(metrics, probabilities(one.logits(IMAGES)))


def test_an_ensemble_averages_the_probabilities_of_its_members(
    networks: list[Network],
) -> None:
    step = jax.jit(make_ensemble_step([one.predict for one in networks]))
    sums = step([one.variables for one in networks], batches(10))
    p = [probabilities(one.logits(IMAGES)) for one in networks]
    assert_metrics(mean_metrics(sums.ensemble), np.mean(p, axis=0))
    for member, of_one in zip(sums.members, p, strict=True):
        assert_metrics(mean_metrics(member), of_one)


def test_an_ensemble_of_equals_predicts_what_each_does(networks: list[Network]) -> None:
    one = networks[1]
    step = jax.jit(make_ensemble_step([one.predict] * 3))
    sums = step([one.variables] * 3, batches(53))
    chex.assert_trees_all_close(sums.ensemble, sums.members[0], rtol=1e-5)


def test_the_probabilities_of_crops_are_averaged(networks: list[Network]) -> None:
    one = networks[0]
    crops = IMAGES[:48].reshape(4, 12, 6, 5, 1)
    scores = over_crops(one.predict)(one.variables, jnp.asarray(crops))
    p = probabilities(one.logits(IMAGES[:48])).reshape(4, 12, 7)
    np.testing.assert_allclose(np.exp(scores), p.mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_logarithm_of_the_mean_is_that_of_float64_numpy(axis: int) -> None:
    scores = np.random.default_rng(1).normal(size=(4, 5, 6)) * 10
    expected = np.log(probabilities(scores).mean(axis=axis))
    found = log_mean_probabilities(jnp.asarray(scores, jnp.float32), axis=axis)
    # Logarithms of up to -50, of scores that were rounded.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1, rtol=1e-5)


def test_probabilities_too_small_for_a_float_have_a_finite_mean() -> None:
    scores = jnp.array([[0.0, -2000.0], [0.0, -3000.0]])
    found = log_mean_probabilities(scores, axis=0)
    np.testing.assert_allclose(found, [0, -2000 - np.log(2)], rtol=1e-6)


@pytest.mark.shapes
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_means_are_at_least_float32(dtype: jnp.dtype) -> None:
    found = log_mean_probabilities(jnp.zeros((3, 2, 4), dtype), axis=1)
    chex.assert_shape(found, (3, 4))
    assert found.dtype == jnp.float32


def test_a_nan_of_one_member_is_one_of_the_ensemble() -> None:
    scores = jnp.array([[[0.0, 1.0]], [[jnp.nan, 1.0]]])
    assert jnp.isnan(log_mean_probabilities(scores, axis=0)).all()


def test_a_network_with_dropout_is_normalized_by_its_batch() -> None:
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            x = nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1))
            return nn.BatchNorm(use_running_average=not train)(x)

    model = Dropping()
    variables = model.init(jax.random.key(0), preprocess(IMAGES), train=False)
    predict = make_predict(model, preprocess=preprocess, by_batch=True)
    scores = predict(variables, jnp.asarray(IMAGES))
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_array_equal(predict(variables, jnp.asarray(IMAGES)), scores)
