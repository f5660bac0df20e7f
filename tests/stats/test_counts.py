"""Collections of Flax, which have no counts, for layers that need one."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal

import bn_jax


class Model(nn.Module):
    """Two layers, of which only the second needs a count."""

    debias: bool = True
    momentum: float | None = 0.9

    @nn.compact
    def __call__(self, x):
        x = bn_jax.BatchNorm(use_running_average=False)(x)
        return bn_jax.BatchNorm(
            use_running_average=False, debias=self.debias, momentum=self.momentum
        )(x)


def variables_of(model, x):
    variables = jax.jit(model.init)(jax.random.key(0), x)
    del variables["batch_stats"]["BatchNorm_1"]["count"]
    return variables, jax.eval_shape(model.init, jax.random.key(0), x)["batch_stats"]


def test_a_collection_without_counts_is_carried_by_a_scan():
    x, model = normal(3, 8, 2), Model()
    variables, like = variables_of(model, x[0])
    params = variables["params"]

    @jax.jit
    def step(stats, x):
        variables = {"params": params, "batch_stats": stats}
        _, updates = model.apply(variables, x, mutable=["batch_stats"])
        return updates["batch_stats"], None

    with pytest.raises(TypeError, match="count"):
        jax.lax.scan(step, variables["batch_stats"], x)
    completed = bn_jax.with_counts(variables["batch_stats"], like, count=np.inf)
    scanned, _ = jax.lax.scan(step, completed, x)
    stats = variables["batch_stats"]
    for batch in x:
        stats, _ = step(stats, batch)
    # The second layer receives standardized values, whose means are 0 but for rounding.
    chex.assert_trees_all_close(scanned, stats, rtol=1e-6, atol=1e-6)


def test_a_cumulative_average_starts_anew():
    x, model = normal(8, 2), Model(debias=False, momentum=None)
    variables, like = variables_of(model, x)
    completed = bn_jax.with_counts(variables["batch_stats"], like, count=0)
    _, updates = model.apply(
        variables | {"batch_stats": completed}, x, mutable=["batch_stats"]
    )
    last = updates["batch_stats"]["BatchNorm_1"]
    assert last["count"] == 1
    # The first batch replaces the old mean, and its values are standardized.
    np.testing.assert_allclose(last["mean"], 0, atol=1e-5)


def test_stacked_layers_get_a_count_each():
    stack = nn.vmap(
        Model,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        axis_size=3,
    )()
    variables, like = variables_of(stack, normal(3, 8, 2))
    stats = bn_jax.with_counts(variables["batch_stats"], like, count=np.inf)[
        "BatchNorm_1"
    ]
    np.testing.assert_array_equal(stats["count"], np.full(3, 2**24))


def test_a_count_of_infinity_that_is_there_becomes_finite():
    x, model = normal(8, 2), Model()
    variables, like = variables_of(model, x)
    completed = bn_jax.with_counts(variables["batch_stats"], like, count=np.inf)
    completed["BatchNorm_1"]["count"] = jnp.asarray(jnp.inf)
    again = bn_jax.with_counts(completed, like, count=0)
    assert again["BatchNorm_1"]["count"] == 2**24


def test_what_needs_no_count_is_left_as_it_is():
    x, model = normal(8, 2), Model()
    variables, like = variables_of(model, x)
    stats = variables["batch_stats"]
    chex.assert_trees_all_equal(bn_jax.with_counts(stats, stats, count=1), stats)
    complete = bn_jax.with_counts(stats, like, count=4)
    assert set(complete["BatchNorm_0"]) == {"mean", "var"}
    again = bn_jax.with_counts(complete, like, count=5)
    chex.assert_trees_all_equal(again, complete)


def test_the_collection_of_another_model_is_refused():
    x, model = normal(8, 2), Model()
    variables, like = variables_of(model, x)
    stats = variables["batch_stats"]
    with pytest.raises(ValueError, match=r"lacks \['BatchNorm_0', 'BatchNorm_1'\]"):
        bn_jax.with_counts(stats, {"batch_stats": like}, count=np.inf)
    with pytest.raises(ValueError, match=r"with_counts: like must .* where the coll"):
        bn_jax.with_counts(stats, dict.fromkeys(stats, np.zeros(2)), count=np.inf)
