"""Errors of `population_statistics`, each with its way out."""

from functools import partial

import flax.linen as nn
import pytest
from arrays import normal
from stats.precise_models import OneLayer, TwoLayers, in_training, init

import bn_jax


@pytest.mark.parametrize("used_up", [True, False])
def test_no_batch_is_refused(used_up):
    model, batches = OneLayer(), iter(normal(2, 6, 2))
    variables = init(model, next(batches))
    if used_up:
        next(batches)
    with pytest.raises(ValueError, match="at least one batch") as error:
        bn_jax.population_statistics(
            in_training(model), variables, batches if used_up else []
        )
    assert "used before" in str(error.value)


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(2)(x)


@pytest.mark.parametrize(
    "model", [TwoLayers(nn.BatchNorm), Plain()], ids=["flax", "plain"]
)
def test_a_model_that_sows_no_moments_is_refused(model):
    batches = normal(2, 6, 3)
    variables = init(model, batches[0])
    with pytest.raises(ValueError, match=r"bn_jax\.BatchNorm for its layers"):
        bn_jax.population_statistics(in_training(model), variables, batches)


def test_a_model_in_inference_mode_is_refused():
    model, batches = OneLayer(), normal(2, 6, 3)
    variables = init(model, batches[0])
    infer = partial(model.apply, train=False, mutable=["batch_stats", "batch_moments"])
    with pytest.raises(ValueError, match="run the model in training mode"):
        bn_jax.population_statistics(infer, variables, batches)


def test_a_function_that_returns_no_collections_is_refused():
    model, batches = OneLayer(), normal(2, 6, 3)
    variables = init(model, batches[0])
    for result in (batches[0], (batches[0], batches[0]), [batches[0]]):
        with pytest.raises(ValueError, match="must return the model's output and the"):
            bn_jax.population_statistics(lambda *_, r=result: r, variables, batches)


def test_variables_without_running_statistics_are_refused():
    model, batches = OneLayer(), normal(2, 6, 3)
    variables = init(model, batches[0])
    with pytest.raises(ValueError, match=r"collection 'batch_stats', .* \['params'\]"):
        bn_jax.population_statistics(
            in_training(model), {"params": variables["params"]}, batches
        )
