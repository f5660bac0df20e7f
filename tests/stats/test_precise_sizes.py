"""Population statistics of batches of several sizes, averaged or pooled."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from stats.precise_models import KEY, OneLayer, in_training, init

import bn_jax

UNEQUAL = [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [9.0], [7.0], [7.0]])]


def statistics_of(batches, *, masks=None, **settings):
    model = OneLayer()
    variables = init(model, batches[0])
    run = in_training(model)

    def apply(variables, batch):
        return run(variables, *batch)

    pairs = zip(batches, masks or [None] * len(batches), strict=True)
    return bn_jax.population_statistics(apply, variables, pairs, **settings)["norm"]


def test_batches_that_differ_in_size_are_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"one size.* norm has 2 values .* first batch and 4 in ano"
    ) as error:
        statistics_of(UNEQUAL)
    assert "pooled=True" in str(error.value)


def test_pooled_statistics_are_those_of_all_values():
    stats = statistics_of(UNEQUAL, pooled=True)
    np.testing.assert_allclose(stats["mean"], [16 / 3], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [65 / 9], rtol=1e-6)


def test_batches_of_one_size_may_be_pooled_too():
    batches = [UNEQUAL[0], UNEQUAL[1][:2]]
    stats = statistics_of(batches, pooled=True)
    np.testing.assert_allclose([stats["mean"][0], stats["var"][0]], [4.5, 8.75])
    stats = statistics_of(batches)
    np.testing.assert_allclose([stats["mean"][0], stats["var"][0]], [4.5, 5.0])


def test_one_set_of_values_gives_the_same_pooled_statistics_however_it_is_cut():
    x = normal(64, 3)
    whole = statistics_of([x], pooled=True)
    cut = statistics_of(jnp.split(x, [2, 32]), pooled=True)
    chex.assert_trees_all_close(cut, whole, rtol=1e-5)


@pytest.mark.parametrize("pooled", [True, False])
def test_counts_under_a_mask_may_vary(pooled):
    batches = normal(3, 8, 2)
    masks = [jnp.arange(8)[:, None] < kept for kept in (8, 3, 0)]
    stats = statistics_of(batches, masks=masks, pooled=pooled)
    kept = [np.asarray(batches[0]), np.asarray(batches[1][:3])]
    if pooled:
        _, mean, var = oracles.moments(np.concatenate(kept))
    else:
        mean, var = oracles.population_statistics(kept)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def test_sharded_batches_of_other_sizes_are_pooled(make_mesh):
    sharding = jax.NamedSharding(make_mesh(devices=4), jax.P("devices"))
    batches = [normal(8, 2), normal(16, 2, seed=1)]
    sharded = jax.device_put(batches, sharding)
    expected = statistics_of(batches, pooled=True)
    chex.assert_trees_all_close(
        statistics_of(sharded, pooled=True), expected, rtol=1e-5
    )
    with pytest.raises(ValueError, match=r"8 values per feature in .* batch and 16"):
        statistics_of(sharded)


class TwoSizes(nn.Module):
    """One layer, named like its moments, called on a batch and on a part of it."""

    def setup(self):
        self.moments = bn_jax.BatchNorm(use_running_average=False)

    def __call__(self, x):
        return self.moments(x), self.moments(x[:2])


def test_a_shared_layer_may_see_several_sizes_in_each_batch():
    model, batches = TwoSizes(), normal(3, 4, 2)
    variables = jax.jit(model.init)(KEY, batches[0])
    run = jax.jit(partial(model.apply, mutable=["batch_stats", "batch_moments"]))
    stats = bn_jax.population_statistics(run, variables, batches)["moments"]
    calls = [np.asarray(call) for x in batches for call in (x, x[:2])]
    mean, var = oracles.population_statistics(calls)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    unequal = [batches[0], batches[1][:3]]
    with pytest.raises(ValueError, match=r"moments has 4, 2 values .* and 3, 2 in ano"):
        bn_jax.population_statistics(run, variables, unequal)
    pooled = bn_jax.population_statistics(run, variables, unequal, pooled=True)
    values = np.concatenate([call for x in unequal for call in (x, x[:2])])
    np.testing.assert_allclose(pooled["moments"]["mean"], values.mean(0), rtol=1e-5)
