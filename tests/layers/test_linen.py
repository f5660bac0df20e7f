"""The Linen layer in initialization, training and inference."""

import dataclasses
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from flax.errors import ModifyScopeVariableError, ScopeCollectionNotFound
from layers.linen_layer import KEY, init, train

import bn_jax
from bn_jax.core.types import Moments


class Twice(nn.Module):
    """Two calls of one layer, the second on x + 1."""

    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    @nn.compact
    def __call__(self, x):
        norm = bn_jax.BatchNorm(use_running_average=False, name="norm", **self.fields)
        return norm(x), norm(x + 1)


def test_training_matches_the_oracle():
    x, layer = normal(60, 5, mean=3), bn_jax.BatchNorm(momentum=0.9)
    params = {"scale": normal(5, seed=1), "bias": normal(5, seed=2)}
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    y, stats = train(layer, {"params": params, "batch_stats": stats}, x)
    _, mean, var = oracles.moments(x)
    expected = oracles.batch_norm(x, params["scale"], params["bias"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-5)


def test_inference_uses_the_running_statistics_and_changes_nothing():
    x, layer = normal(6, 5), bn_jax.BatchNorm(use_running_average=True)
    stats = {"mean": normal(5, seed=1), "var": normal(5, seed=2) ** 2}
    params = {"scale": normal(5, seed=3), "bias": normal(5, seed=4)}
    variables = {"params": params, "batch_stats": stats}
    mutable = ["batch_stats", "batch_moments"]
    y, updates = jax.jit(partial(layer.apply, mutable=mutable))(variables, x)
    expected = oracles.inference(x, *params.values(), *stats.values())
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(updates["batch_stats"], stats)
    assert "batch_moments" not in updates


@pytest.mark.parametrize("use_running_average", [True, False])
def test_initialization_makes_all_variables_and_moves_no_statistics(
    use_running_average,
):
    layer = bn_jax.BatchNorm(use_running_average=use_running_average)
    variables = init(layer, normal(6, 3, mean=5))
    zeros, ones = jnp.zeros(3), jnp.ones(3)
    expected = {
        "params": {"scale": ones, "bias": zeros},
        "batch_stats": {"mean": zeros, "var": ones},
    }
    chex.assert_trees_all_equal(variables, expected)


def test_initialization_needs_no_mapped_axis():
    fields = {"axis_name": "batch", "axis_index_groups": [[0, 1], [2, 3]]}
    variables = Twice(fields).init(KEY, normal(6, 3))
    chex.assert_shape(variables["batch_stats"]["norm"]["mean"], (3,))


def test_training_needs_the_mapped_axis():
    layer = bn_jax.BatchNorm(axis_name="batch")
    variables = layer.init(KEY, normal(6, 3), use_running_average=True)
    with pytest.raises(NameError, match=r"^BatchNorm: axis_name='batch' is not bound"):
        train(layer, variables, normal(6, 3))


def test_a_layer_called_twice_takes_two_steps():
    x = normal(6, 3)
    model = Twice({"momentum": 0.5})
    _, updates = model.apply(model.init(KEY, x), x, mutable=["batch_stats"])
    _, mean, _ = oracles.moments(x)
    expected = oracles.moving_average(0.5 * mean, mean + 1, 0.5)
    actual = updates["batch_stats"]["norm"]["mean"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("in_call", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_the_flag_may_stand_in_the_field_or_in_the_call(flag, in_call):
    x = normal(6, 3)
    field, call = ({}, {"use_running_average": flag})[:: 1 if in_call else -1]
    layer = bn_jax.BatchNorm(**field)
    variables = init(layer, x, **call)
    apply = jax.jit(partial(layer.apply, mutable=["batch_stats"], **call))
    y, _ = apply(variables, x)
    expected = np.float64(x) / np.sqrt(1 + 1e-5) if flag else oracles.batch_norm(x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_flag_that_is_never_given_is_refused():
    with pytest.raises(ValueError, match="must be passed to the constructor or at"):
        bn_jax.BatchNorm().init(KEY, normal(6, 3))


def test_a_flag_that_is_given_twice_is_refused():
    layer = bn_jax.BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match="Should be passed just once"):
        layer.init(KEY, normal(6, 3), use_running_average=False)


def test_training_with_immutable_statistics_is_refused():
    layer = bn_jax.BatchNorm(use_running_average=False)
    variables = layer.init(KEY, normal(6, 3))
    with pytest.raises(ModifyScopeVariableError, match="batch_stats"):
        layer.apply(variables, normal(6, 3))


def test_inference_without_statistics_is_refused():
    layer = bn_jax.BatchNorm(use_running_average=True)
    params = layer.init(KEY, normal(6, 3))["params"]
    with pytest.raises(ScopeCollectionNotFound, match="batch_stats"):
        layer.apply({"params": params}, normal(6, 3))


def test_training_without_statistics_starts_them():
    layer = bn_jax.BatchNorm()
    x = normal(6, 3, mean=2)
    variables = init(layer, x, use_running_average=True)
    started = train(layer, {"params": variables["params"]}, x)
    chex.assert_trees_all_close(started, train(layer, variables, x), rtol=1e-6)


@pytest.mark.parametrize("axis", [2, -3, (0, 2)])
def test_an_axis_that_does_not_exist_is_refused(axis):
    layer = bn_jax.BatchNorm(use_running_average=False, axis=axis)
    with pytest.raises(ValueError, match="does not exist in an array of 2 dimensions"):
        layer.init(KEY, normal(6, 3))


def test_an_input_of_other_features_is_refused():
    layer = bn_jax.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
    variables = layer.init(KEY, normal(6, 3))
    with pytest.raises(ValueError, match=r"mean must have the shape \(4,\)"):
        layer.apply(variables, normal(6, 4))


def test_moments_are_sown_when_their_collection_is_mutable():
    x, layer = normal(6, 3, mean=2), bn_jax.BatchNorm(use_running_average=False)
    variables = layer.init(KEY, x)
    mutable = ["batch_stats", "batch_moments"]
    _, updates = layer.apply(variables, x, mutable=mutable)
    (moments,) = updates["batch_moments"]["moments"]
    assert isinstance(moments, Moments)
    for got, want in zip(moments, oracles.moments(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_moments_are_not_sown_otherwise():
    x, layer = normal(6, 3), bn_jax.BatchNorm(use_running_average=False)
    _, updates = layer.apply(layer.init(KEY, x), x, mutable=["batch_stats"])
    assert set(updates) == {"batch_stats"}


def test_every_call_sows_its_moments():
    x = normal(6, 3)
    mutable = ["batch_stats", "batch_moments"]
    _, updates = Twice().apply(Twice().init(KEY, x), x, mutable=mutable)
    first, second = updates["batch_moments"]["norm"]["moments"]
    np.testing.assert_allclose(second.mean, first.mean + 1, rtol=1e-5)


@pytest.mark.parametrize("mask_shape", [(10, 1), (10, 5)])
def test_a_mask_in_the_call_hides_positions(mask_shape):
    x = normal(10, 5, mean=2)
    mask = np.random.default_rng(1).random(mask_shape) < 0.6
    layer = bn_jax.BatchNorm(momentum=0.0)
    variables = init(layer, x, use_running_average=True)
    hidden = jnp.where(mask, x, jnp.nan)
    y, stats = train(layer, variables, hidden, mask=jnp.asarray(mask))
    num_samples, mean, var = oracles.moments(x, mask=mask)
    expected = oracles.batch_norm(x, mask=mask)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    kept = num_samples == 0
    np.testing.assert_allclose(stats["mean"], np.where(kept, 0, mean), rtol=1e-5)
    np.testing.assert_allclose(stats["var"], np.where(kept, 1, var), rtol=1e-5)


def test_a_large_mean_does_not_cancel():
    x = jnp.array([[9999.0], [10001.0]])
    layer = bn_jax.BatchNorm(momentum=0.0)
    y, stats = train(layer, init(layer, x, use_running_average=True), x)
    np.testing.assert_allclose(y, [[-1.0], [1.0]], rtol=1e-5)
    assert stats["var"].item() == 1.0


def test_initializers_of_scale_and_bias_are_used():
    layer = bn_jax.BatchNorm(
        use_running_average=True,
        scale_init=nn.initializers.constant(2.0),
        bias_init=nn.initializers.normal(1.0),
    )
    params = layer.init(KEY, normal(6, 3))["params"]
    chex.assert_trees_all_equal(params["scale"], jnp.full(3, 2.0))
    assert len(set(params["bias"].tolist())) == 3


def test_a_bound_layer_keeps_its_statistics():
    x = normal(6, 3, mean=2)
    layer = bn_jax.BatchNorm(momentum=0.5)
    variables = init(layer, x, use_running_average=True)
    bound = layer.bind(variables, mutable=["batch_stats"])
    bound(x, use_running_average=False)
    _, expected = train(layer, variables, x)
    chex.assert_trees_all_close(bound.variables["batch_stats"], expected, rtol=1e-6)


def test_a_vector_does_not_raise_and_gives_the_bias():
    layer = bn_jax.BatchNorm(bias_init=nn.initializers.constant(0.5))
    x = normal(7)
    variables = init(layer, x, use_running_average=True)
    y, stats = train(layer, variables, x)
    chex.assert_trees_all_equal(y, jnp.full(7, 0.5))
    np.testing.assert_allclose(stats["mean"], 0.01 * np.float64(x), rtol=1e-5)
    chex.assert_trees_all_equal(train(layer, variables, x), (y, stats))


def test_results_of_single_precision_do_not_depend_on_the_flags_for_flaxs_sake():
    x = normal(60, 3, mean=1e4)
    results = []
    for flag in (True, False):
        layer = bn_jax.BatchNorm(use_fast_variance=flag, force_float32_reductions=flag)
        variables = init(layer, x, use_running_average=True)
        results.append(train(layer, variables, x))
    chex.assert_trees_all_equal(*results)
