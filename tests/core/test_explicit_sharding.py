"""Arrays on a mesh of explicit axes, whose types include the sharding."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bn_jax.core.batch_norm import batch_norm

X = np.random.default_rng(0).normal(3, 2, (8, 4)).astype(np.float32)
DY = np.random.default_rng(1).normal(0, 1, (8, 4)).astype(np.float32)


@pytest.fixture
def mesh(make_mesh):
    return make_mesh(AxisType.Explicit, examples=2, features=2)


@pytest.fixture
def put(mesh):
    return lambda x, *spec: jax.device_put(x, NamedSharding(mesh, P(*spec)))


def state(put, *spec):
    """Returns scale, bias and running statistics of four features."""
    one, zero = put(jnp.ones(4), *spec), put(jnp.zeros(4), *spec)
    return one, zero, {"mean": zero, "var": one}


step = partial(batch_norm, momentum=0.0)


@pytest.mark.parametrize(
    ("spec", "features", "masked"),
    [
        (("examples", "features"), ("features",), True),
        (("examples", "features"), ("features",), False),
        (("examples", "features"), (), False),
        ((None, "features"), ("features",), False),
        ((None, "features"), (), True),
        ((), ("features",), True),
        ((), (), False),
    ],
)
def test_sharded_features_are_like_one_device(mesh, put, spec, features, masked):
    x, of_features = put(X, *spec), state(put, *features)
    mask = put(jnp.arange(8)[:, None] < 5, "examples") if masked else None
    with jax.set_mesh(mesh):
        y, stats = jax.jit(step)(x, *of_features, mask=mask)
    kept = None if mask is None else np.asarray(mask)
    _, mean, var = oracles.moments(X, mask=kept)
    np.testing.assert_allclose(y, oracles.batch_norm(X, mask=kept), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    # The types do not change, so a loop can carry the statistics.
    assert y.sharding.is_equivalent_to(x.sharding, ndim=2)
    for name, value in of_features[2].items():
        assert stats[name].sharding.is_equivalent_to(value.sharding, ndim=1)


@pytest.mark.parametrize("features", [(), ("features",)])
def test_gradients_of_sharded_features_are_like_one_device(mesh, put, features):
    scale, bias, stats = state(put, *features)

    def pull_back(x, dy, scale, bias):
        return jax.vjp(lambda *of: step(*of, stats)[0], x, scale, bias)[1](dy)

    arrays = put(X, "examples", "features"), put(DY, "examples", "features")
    with jax.set_mesh(mesh):
        actual = jax.jit(pull_back)(*arrays, scale, bias)
    expected = oracles.batch_norm_gradients(X, DY)
    for got, want in zip(actual, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_loop_carries_replicated_statistics_of_sharded_features(mesh, put):
    scale, bias, stats = state(put)
    x = put(X, "examples", "features")

    @jax.jit
    def train(x, stats):
        def body(stats, _):
            return step(x, scale, bias, stats)[1], None

        return jax.lax.scan(body, stats, length=2)[0]

    with jax.set_mesh(mesh):
        carried = train(x, stats)
    np.testing.assert_allclose(carried["mean"], X.mean(0), rtol=1e-5)


def test_features_may_be_explicit_where_examples_are_mapped(mesh, put):
    mapped = jax.shard_map(
        lambda x, *of: step(x, *of, axis_name="examples"),
        mesh=mesh,
        in_specs=(P("examples"), P(), P(), P()),
        out_specs=(P("examples"), P()),
        axis_names={"examples"},
    )
    with jax.set_mesh(mesh):
        y, stats = jax.jit(mapped)(put(X, "examples", "features"), *state(put))
    np.testing.assert_allclose(y, oracles.batch_norm(X), atol=1e-5)
    np.testing.assert_allclose(stats["mean"], X.mean(0), rtol=1e-5)


def test_features_that_stay_explicit_where_examples_are_mapped_have_gradients(
    mesh, put
):
    of_features = jax.tree.map(jnp.asarray, jax.device_get(state(put)))
    mapped = jax.shard_map(
        lambda x: step(x, *of_features, axis_name="examples")[0],
        mesh=mesh,
        in_specs=P("examples"),
        out_specs=P("examples"),
        axis_names={"examples"},
    )
    with jax.set_mesh(mesh):
        _, pull_back = jax.vjp(jax.jit(mapped), put(X, "examples"))
        (dx,) = pull_back(put(DY, "examples"))
    expected, _, _ = oracles.batch_norm_gradients(X, DY)
    np.testing.assert_allclose(dx, expected, rtol=1e-5, atol=1e-5)


def test_without_jit_and_without_a_mesh_in_the_context_it_is_the_same(put):
    y, stats = step(put(X, "examples", "features"), *state(put))
    np.testing.assert_allclose(y, oracles.batch_norm(X), atol=1e-5)
    chex.assert_tree_all_finite(stats)


@pytest.mark.parametrize("settings", [{}, {"group_size": 4}, {"masked": True}])
def test_gradients_without_jit_and_without_a_mesh_in_the_context_are_the_same(
    put, settings
):
    scale, bias, stats = state(put)
    mask = None
    if settings.pop("masked", False):
        mask = put(jnp.arange(8)[:, None] < 5, "examples")

    def forward(*of):
        return step(*of, stats, mask=mask, **settings)[0]

    x, dy = put(X, "examples", "features"), put(DY, "examples", "features")
    _, pull_back = jax.vjp(forward, x, scale, bias)
    parts = [slice(0, 4), slice(4, 8)] if settings else [slice(None)]
    kept = None if mask is None else np.asarray(mask)
    expected = [
        oracles.batch_norm_gradients(X[part], DY[part], mask=kept) for part in parts
    ]
    dx, dscale, dbias = pull_back(dy)
    np.testing.assert_allclose(
        dx, np.concatenate([of[0] for of in expected]), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(dscale, sum(of[1] for of in expected), rtol=1e-5)
    np.testing.assert_allclose(dbias, sum(of[2] for of in expected), rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["use_running_average", "update_running_average", "momentum"]
)
def test_what_is_traced_is_taken_on_an_explicit_mesh_too(mesh, put, name):
    x, of_features = put(X, "examples", "features"), state(put)
    value = jnp.asarray(0.5) if name == "momentum" else jnp.asarray(True)

    def apply(value):
        return batch_norm(x, *of_features, **{name: value})

    alone = jax.tree.map(jnp.asarray, jax.device_get(of_features))
    expected = batch_norm(jnp.asarray(X), *alone, **{name: value})
    with jax.set_mesh(mesh):
        for found in (jax.jit(apply)(value), apply(value)):
            chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of_stats_alone", [True, False])
def test_activations_from_elsewhere_meet_features_on_a_mesh(mesh, put, of_stats_alone):
    scale, bias, stats = state(put, "features")
    if of_stats_alone:
        scale = bias = None
    with jax.set_mesh(mesh):
        y, updated = jax.jit(step)(X, scale, bias, stats)
    np.testing.assert_allclose(y, oracles.batch_norm(X), atol=1e-5)
    assert updated["mean"].sharding.is_equivalent_to(stats["mean"].sharding, ndim=1)
