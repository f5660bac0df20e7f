"""Population statistics of Linen models: Algorithm 2."""

from functools import partial

import chex
import flax.linen as nn
import jax
import numpy as np
import oracles
import pytest
from arrays import normal
from stats.precise_models import (
    KEY,
    OneLayer,
    TwoLayers,
    assert_statistics,
    in_training,
    init,
)

import bn_jax
from bn_jax.core.collectives import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.stats.precise import average_moments


def two_layers_by_hand(params, batches):
    """Returns the inputs of each norm in training mode, one array a batch."""
    first, second = (
        np.asarray(params[name]["kernel"], np.float64) for name in ("first", "second")
    )
    inputs0 = [np.asarray(x, np.float64) @ first for x in batches]
    inputs1 = [np.tanh(oracles.batch_norm(h)) @ second for h in inputs0]
    return inputs0, inputs1


@pytest.fixture(scope="module")
def two_layers():
    """A model, its variables, batches, and the statistics computed from them."""
    model, batches = TwoLayers(), normal(6, 8, 3)
    variables = jax.jit(model.init, static_argnames="train")(
        KEY, batches[0], train=True
    )
    stats = bn_jax.population_statistics(in_training(model), variables, batches)
    return model, variables, batches, stats


def test_statistics_of_every_layer_are_those_of_algorithm_2(two_layers):
    _, variables, batches, batch_stats = two_layers
    inputs0, inputs1 = two_layers_by_hand(variables["params"], batches)
    assert_statistics(batch_stats["norm0"], inputs0)
    assert_statistics(batch_stats["norm1"], inputs1)


def test_inference_with_them_is_the_affine_map_of_the_paper(two_layers):
    model, variables, batches, batch_stats = two_layers
    x = normal(5, 3, seed=1)
    y = model.apply(variables | {"batch_stats": batch_stats}, x, train=False)
    first, second = (
        variables["params"][name]["kernel"] for name in ("first", "second")
    )
    inputs0, inputs1 = two_layers_by_hand(variables["params"], batches)
    h = np.float64(x) @ np.float64(first)
    h = oracles.inference(h, None, None, *oracles.population_statistics(inputs0))
    h = np.tanh(h) @ np.float64(second)
    h = oracles.inference(h, None, None, *oracles.population_statistics(inputs1))
    np.testing.assert_allclose(y, h, rtol=1e-5, atol=1e-5)


def test_the_statistics_have_the_form_of_the_running_ones(two_layers):
    _, variables, _, batch_stats = two_layers
    chex.assert_trees_all_equal_shapes_and_dtypes(batch_stats, variables["batch_stats"])


def test_the_running_statistics_do_not_matter(two_layers):
    model, variables, batches, batch_stats = two_layers
    running = jax.tree.map(lambda v: v + 7, variables["batch_stats"])
    other = variables | {"batch_stats": running}
    statistics = bn_jax.population_statistics(in_training(model), other, batches)
    chex.assert_trees_all_equal(statistics, batch_stats)


def test_the_variables_are_not_changed(two_layers):
    model, variables, batches, _ = two_layers
    before = jax.tree.map(np.array, variables)
    bn_jax.population_statistics(in_training(model), variables, batches)
    chex.assert_trees_all_equal(variables, before)


def test_a_convolution_is_corrected_by_its_number_of_pixels():
    # Algorithm 2 with m' = m * p * q in place of m: 2 * 3 * 3 / (2 * 3 * 3 - 1).
    model, batches = OneLayer(), normal(5, 2, 3, 3, 4)
    variables = init(model, batches[0])
    batch_stats = bn_jax.population_statistics(in_training(model), variables, batches)
    assert_statistics(batch_stats["norm"], batches)


def test_one_layer_alone_is_a_model_too():
    layer, batches = bn_jax.BatchNorm(use_running_average=False), normal(4, 6, 2)
    variables = layer.init(KEY, batches[0])
    mutable = ["batch_stats", "batch_moments"]
    batch_stats = bn_jax.population_statistics(
        partial(layer.apply, mutable=mutable), variables, batches
    )
    assert_statistics(batch_stats, batches)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        norm = bn_jax.BatchNorm(use_running_average=not train, name="norm")
        return norm(x), norm(3 * x + 1)


def test_the_calls_of_a_shared_layer_count_as_batches():
    batches = normal(4, 6, 2)
    variables = init(Shared(), batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(Shared()), variables, batches
    )
    inputs = [call for x in batches for call in (x, 3 * x + 1)]
    assert_statistics(batch_stats["norm"], inputs)


class Confusing(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return bn_jax.BatchNorm(use_running_average=not train, name="moments")(x)


def test_a_layer_may_be_named_moments():
    batches = normal(4, 6, 2)
    variables = init(Confusing(), batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(Confusing()), variables, batches
    )
    assert_statistics(batch_stats["moments"], batches)


def test_batches_may_come_from_a_generator():
    model, batches = OneLayer(), normal(3, 6, 2)
    variables = init(model, batches[0])
    batch_stats = bn_jax.population_statistics(
        in_training(model), variables, (x for x in batches)
    )
    assert_statistics(batch_stats["norm"], batches)


@pytest.mark.parametrize("size", [2, 4, 32])
def test_the_variance_is_unbiased(size):
    x = normal(4000, size, 8)

    def of_batch(x):
        return batch_moments(x, feature_axes=(1,), devices=Devices()).rounded()

    moments = jax.jit(jax.vmap(of_batch))(x)
    stats = average_moments({"norm": {"moments": (moments,)}}, {"norm": {}})["norm"]
    # Five standard errors of a mean of 32,000 values, each of variance 2 / (size - 1).
    tolerance = 5 * np.sqrt(2 / (size - 1) / 32_000)
    np.testing.assert_allclose(np.mean(stats["var"]), 1, atol=tolerance)
    assert np.mean(moments.var) < 1 - 0.9 / size


def test_a_layer_that_sows_nothing_keeps_its_statistics():
    class HalfFrozen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = bn_jax.BatchNorm(use_running_average=True, name="frozen")(x)
            return bn_jax.BatchNorm(use_running_average=False, name="live")(x)

    x = normal(6, 2, mean=3)
    model = HalfFrozen()
    variables = model.init(jax.random.key(0), x)
    in_training = partial(model.apply, mutable=["batch_stats", "batch_moments"])
    statistics = bn_jax.population_statistics(in_training, variables, [x])
    chex.assert_trees_all_equal(
        statistics["frozen"], variables["batch_stats"]["frozen"]
    )
    # The frozen layer divides by the square root of 1 + 1e-5.
    np.testing.assert_allclose(statistics["live"]["mean"], x.mean(0), rtol=1e-4)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_count_is_the_number_of_batches(pooled):
    model, batches = OneLayer(debias=True), normal(3, 6, 2)
    variables = init(model, batches[0])
    stats = bn_jax.population_statistics(
        in_training(model), variables, batches, pooled=pooled
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, variables["batch_stats"])
    assert stats["norm"]["count"] == 3

    # A loop can carry the statistics, because they have the structure of the layer's.
    def step(stats, x):
        variables_now = {**variables, "batch_stats": stats}
        _, updates = in_training(model)(variables_now, x)
        return updates["batch_stats"], None

    carried, _ = jax.lax.scan(step, stats, batches)
    assert carried["norm"]["count"] == 6


def stack_of_layers(*collections, **fields):
    """Returns three stacked layers that keep these collections, variables, batches."""
    stack = nn.vmap(
        bn_jax.BatchNorm,
        variable_axes=dict.fromkeys(("params", *collections), 0),
        split_rngs={"params": True},
    )(use_running_average=False, **fields)
    batches = normal(4, 3, 6, 2)
    variables = jax.jit(stack.init)(KEY, batches[0])
    mutable = ["batch_stats", "batch_moments"]
    return jax.jit(partial(stack.apply, mutable=mutable)), variables, batches


def test_layers_of_a_stack_have_a_count_each():
    run, variables, batches = stack_of_layers(
        "batch_stats", "batch_moments", debias=True
    )
    stats = bn_jax.population_statistics(run, variables, batches)
    np.testing.assert_array_equal(stats["count"], [4, 4, 4])
    pooled = bn_jax.population_statistics(run, variables, batches, pooled=True)
    np.testing.assert_allclose(pooled["mean"], batches.mean((0, 2)), rtol=1e-5)


def test_a_stack_that_drops_its_moments_is_told_what_to_name():
    run, variables, batches = stack_of_layers("batch_stats")
    with pytest.raises(ValueError, match=r"nn\.vmap .* variable_axes names 'batch_mom"):
        bn_jax.population_statistics(run, variables, batches)
