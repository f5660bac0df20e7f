"""Options for the running statistics in the Linen layer, and their errors."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from flax.core import DenyList
from flax.errors import ModifyScopeVariableError

import bn_jax
from bn_jax.layers.linen import ImmutableBatchStatsError

KEY = jax.random.key(0)
OPTIONS = [
    {"debias": True},
    {"momentum": None},
    {"variance_correction": 1},
    {"skip_nonfinite": True},
    {"group_size": 2},
]


class Nested(nn.Module):
    """A layer at the path block/norm."""

    norm: nn.Module

    @nn.compact
    def __call__(self, x, **call):
        class Block(nn.Module):
            @nn.compact
            def __call__(block, x):  # noqa: N805, `self` is the outer module.
                return self.norm.clone(name="norm", parent=block)(x, **call)

        return Block(name="block")(x)


@partial(jax.jit, static_argnums=0)
def init(layer, x):
    return layer.init(KEY, x, use_running_average=True)


@partial(jax.jit, static_argnums=0)
def train(layer, variables, x):
    y, updates = layer.apply(
        variables, x, use_running_average=False, mutable=["batch_stats"]
    )
    return y, updates["batch_stats"]


def initial(**more):
    return {"mean": jnp.zeros(3), "var": jnp.ones(3)} | more


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_reach_the_operator(options):
    x, layer = normal(6, 3), bn_jax.BatchNorm(**options)
    stats = initial()
    if options.keys() & {"debias", "momentum"}:
        stats["count"] = jnp.zeros(())
    variables = init(layer, x)
    chex.assert_trees_all_equal(variables["batch_stats"], stats)
    operator = jax.jit(partial(bn_jax.batch_norm, **options))
    expected = operator(x, jnp.ones(3), jnp.zeros(3), stats)
    found = train(layer, variables, x)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


def test_without_an_update_statistics_need_not_be_mutable():
    x = normal(6, 3)
    layer = bn_jax.BatchNorm(use_running_average=False, update_running_average=False)
    y = layer.apply(layer.init(KEY, x), x)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)


def test_an_update_in_inference_moves_the_statistics():
    x = normal(6, 3)
    layer = bn_jax.BatchNorm(
        use_running_average=True, update_running_average=True, momentum=0.0
    )
    y, updates = layer.apply(layer.init(KEY, x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)
    _, mean, _ = oracles.moments(x)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], mean, rtol=1e-5)


@pytest.mark.parametrize("flag", [True, False])
def test_a_traced_flag_does_what_a_static_one_does(flag):
    x, layer = normal(6, 3), bn_jax.BatchNorm()
    variables = init(layer, x)

    def apply(flag):
        return layer.apply(variables, x, flag, mutable=["batch_stats"])

    expected = jax.jit(apply, static_argnums=0)(flag)
    chex.assert_trees_all_close(jax.jit(apply)(flag), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"debias": True}, {"momentum": None}], ids=str)
def test_a_checkpoint_without_a_count_is_evaluated(options):
    x, layer = normal(6, 3), bn_jax.BatchNorm(**options)
    variables = init(bn_jax.BatchNorm(), x)
    y = layer.apply(variables, x, use_running_average=True)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_a_checkpoint_without_a_count_is_trained_on_as_far_advanced():
    x, layer = normal(6, 3), bn_jax.BatchNorm(debias=True)
    variables = init(bn_jax.BatchNorm(), x)
    _, stats = train(layer, variables, x)
    assert stats.pop("count") == 2**24
    _, expected = train(bn_jax.BatchNorm(), variables, x)
    chex.assert_trees_all_close(stats, expected, rtol=1e-6)


def test_a_cumulative_average_starts_anew_without_a_count():
    x, layer = normal(6, 3), bn_jax.BatchNorm(momentum=None)
    _, stats = train(layer, init(bn_jax.BatchNorm(), x), x)
    _, mean, var = oracles.moments(x)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    assert stats["count"] == 1


def test_immutable_statistics_are_refused_in_words_that_name_the_layer():
    model = Nested(bn_jax.BatchNorm(use_running_average=False))
    variables = model.init(KEY, normal(6, 3))
    with pytest.raises(ImmutableBatchStatsError) as error:
        model.apply(variables, normal(6, 3))
    assert isinstance(error.value, ModifyScopeVariableError)
    assert str(error.value).startswith("block/norm: ")
    for way_out in ("mutable=['batch_stats']", "use_running_average=True"):
        assert way_out in str(error.value)
    assert "update_running_average=False" in str(error.value)


def test_statistics_of_another_length_are_refused_with_the_path():
    model = Nested(bn_jax.BatchNorm(use_running_average=True))
    variables = model.init(KEY, normal(6, 3))
    stats = {"block": {"norm": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}}
    with pytest.raises(ValueError, match=r"^block/norm: mean must have the shape"):
        model.apply(variables | {"batch_stats": stats}, normal(6, 3))


@pytest.mark.parametrize(
    ("fields", "call", "message"),
    [
        ({}, {}, "must be passed to the constructor or at call time"),
        ({"use_running_average": True}, {"use_running_average": True}, "just once"),
        ({"use_running_average": True, "axis": 2}, {}, "axis=2 does not exist"),
    ],
    ids=["no flag", "two flags", "no such axis"],
)
def test_flags_and_axes_that_are_refused_come_with_the_path(fields, call, message):
    model = Nested(bn_jax.BatchNorm(**fields))
    with pytest.raises(ValueError, match=f"^block/norm: .*{message}"):
        model.init(KEY, normal(6, 3), **call)


@pytest.mark.parametrize("mutable", [True, DenyList(["params"])])
def test_variables_do_not_grow_where_all_collections_are_mutable(mutable):
    layer = bn_jax.BatchNorm(use_running_average=False)
    x = jnp.arange(12.0).reshape(4, 3)
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, mutable=mutable)
    assert "batch_moments" not in updates
    assert jax.tree.structure({**variables, **updates}) == jax.tree.structure(variables)


def test_statistics_that_training_creates_are_debiased_like_those_of_init():
    x = normal(6, 3)
    layer = bn_jax.BatchNorm(debias=True, use_scale=False, use_bias=False)
    _, created = train(layer, {}, x)
    _, expected = train(layer, init(layer, x), x)
    chex.assert_trees_all_close(created, expected, rtol=1e-6)


def test_a_checkpoint_with_a_count_of_infinity_is_trained_on():
    x, layer = normal(6, 3), bn_jax.BatchNorm(debias=True)
    variables = init(layer, x)
    variables["batch_stats"]["count"] = jnp.asarray(jnp.inf)
    _, stats = train(layer, variables, x)
    assert stats["count"] == 2**24


@pytest.mark.parametrize("debias", [True, False])
def test_no_debug_flag_meets_a_value_that_the_data_do_not_have(debias):
    x, layer = normal(6, 3), bn_jax.BatchNorm(debias=debias)
    variables = init(bn_jax.BatchNorm(), x)
    with jax.debug_infs(True), jax.debug_nans(True):
        _, stats = layer.apply(
            variables, x, use_running_average=False, mutable=["batch_stats"]
        )
    chex.assert_tree_all_finite(stats)


@pytest.mark.parametrize("check_vma", [True, False])
def test_variables_on_a_mesh_are_closed_over_in_shard_map(make_mesh, check_vma):
    mesh, x = make_mesh(devices=2), normal(6, 3)
    layer = bn_jax.BatchNorm(use_running_average=False, axis_name="devices")
    alone = bn_jax.BatchNorm(use_running_average=False)
    variables = init(bn_jax.BatchNorm(), x)
    on_mesh = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))

    def cubes(layer, variables):
        def apply(x):
            return layer.apply(variables, x, mutable=["batch_stats"])[0] ** 3

        return apply

    mapped = jax.shard_map(
        cubes(layer, on_mesh),
        mesh=mesh,
        in_specs=jax.P("devices"),
        out_specs=jax.P("devices"),
        check_vma=check_vma,
    )
    found = jax.jit(jax.grad(lambda x: jnp.sum(mapped(x))))(x)
    expected = jax.jit(jax.grad(lambda x: jnp.sum(cubes(alone, variables)(x))))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
