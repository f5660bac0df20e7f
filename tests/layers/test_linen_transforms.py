import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal

import bn_jax

KEY = jax.random.key(0)
FIELDS = {"use_running_average": False, "momentum": 0.5}


def init(layer, *inputs):
    return jax.jit(layer.init)(KEY, *inputs)


def one_step(layer, variables, *inputs):
    @jax.jit
    def step(variables, *inputs):
        return layer.apply(variables, *inputs, mutable=["batch_stats"])

    return step(variables, *inputs)


def stats_after(old, *batches, momentum=0.5):
    """Returns the oracle's running statistics after one step on each batch."""
    for x in batches:
        _, mean, var = oracles.moments(x)
        old = {
            "mean": oracles.moving_average(old["mean"], mean, momentum),
            "var": oracles.moving_average(old["var"], var, momentum),
        }
    return old


def assert_close(stats, expected):
    for name in ("mean", "var"):
        np.testing.assert_allclose(stats[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("transform", [nn.remat, nn.jit])
def test_remat_and_jit_update_the_statistics_once(transform):
    x, layer = normal(8, 3), transform(bn_jax.BatchNorm)(**FIELDS)
    variables = init(layer, x)
    y, updates = one_step(layer, variables, x)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    expected = stats_after(variables["batch_stats"], x)
    assert_close(updates["batch_stats"], expected)


def test_gradients_through_remat_update_the_statistics_once():
    x = normal(8, 3)
    results = []
    for make in (bn_jax.BatchNorm, nn.remat(bn_jax.BatchNorm)):
        layer = make(**FIELDS)
        variables = init(layer, x)

        def loss(params, variables=variables, layer=layer):
            y, updates = layer.apply(
                variables | {"params": params}, x, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.tanh(y)), updates

        gradient = jax.jit(jax.grad(loss, has_aux=True))
        results.append(gradient(variables["params"]))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


def test_vmap_gives_every_copy_its_own_statistics():
    mapped = nn.vmap(
        bn_jax.BatchNorm,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )
    x, layer = normal(4, 8, 3), mapped(**FIELDS)
    variables = init(layer, x)
    y, updates = one_step(layer, variables, x)
    for copy in range(4):
        start = {"mean": np.zeros(3), "var": np.ones(3)}
        stats = jax.tree.map(lambda v, copy=copy: v[copy], updates["batch_stats"])
        assert_close(stats, stats_after(start, x[copy]))
        expected = oracles.batch_norm(x[copy])
        np.testing.assert_allclose(y[copy], expected, rtol=1e-5, atol=1e-5)


def test_vmap_with_an_axis_name_is_like_one_flat_batch():
    mapped = nn.vmap(
        bn_jax.BatchNorm,
        variable_axes={"params": None, "batch_stats": None},
        split_rngs={"params": False},
        axis_name="batch",
    )
    x, layer = normal(4, 8, 3), mapped(axis_name="batch", **FIELDS)
    variables = init(layer, x)
    y, updates = one_step(layer, variables, x)
    flat = np.reshape(x, (32, 3))
    expected = oracles.batch_norm(flat).reshape(x.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_close(updates["batch_stats"], stats_after(variables["batch_stats"], flat))


class Step(nn.Module):
    @nn.compact
    def __call__(self, carry, x):
        return carry, bn_jax.BatchNorm(**FIELDS, name="norm")(x)


def test_scan_over_time_takes_one_step_for_each_time():
    scanned = nn.scan(
        Step,
        variable_broadcast="params",
        variable_carry="batch_stats",
        split_rngs={"params": False},
    )
    x = normal(5, 8, 3)
    variables = init(Step(), None, x[0])
    (_, y), updates = one_step(scanned(), variables, None, x)
    assert_close(
        updates["batch_stats"]["norm"],
        stats_after(variables["batch_stats"]["norm"], *x),
    )
    expected = [oracles.batch_norm(batch) for batch in x]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_scan_over_layers_gives_each_layer_its_own_statistics():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return bn_jax.BatchNorm(**FIELDS, name="norm")(3 * x + 1), None

    scanned = nn.scan(
        Layer,
        variable_axes={"params": 0, "batch_stats": 0, "batch_moments": 0},
        split_rngs={"params": True},
        length=3,
    )
    x = normal(8, 2)
    variables = init(scanned(), x, None)
    chex.assert_shape(variables["batch_stats"]["norm"]["mean"], (3, 2))
    _, updates = one_step(scanned(), variables, x, None)
    h = x
    for layer in range(3):
        stats = jax.tree.map(lambda v, i=layer: v[i], updates["batch_stats"]["norm"])
        h = 3 * np.float64(h) + 1
        start = {"mean": np.zeros(2), "var": np.ones(2)}
        assert_close(stats, stats_after(start, h))
        h = oracles.batch_norm(h)


def test_pmap_synchronizes_the_layers_of_all_devices():
    x, layer = normal(4, 8, 3), bn_jax.BatchNorm(axis_name="devices", **FIELDS)
    variables = init(layer, x[0])
    y, updates = jax.pmap(
        lambda x: layer.apply(variables, x, mutable=["batch_stats"]),
        axis_name="devices",
    )(x)
    flat = np.reshape(x, (32, 3))
    np.testing.assert_allclose(
        np.reshape(y, (32, 3)), oracles.batch_norm(flat), rtol=1e-5, atol=1e-5
    )
    for device in range(4):
        stats = jax.tree.map(lambda v, i=device: v[i], updates["batch_stats"])
        assert_close(stats, stats_after(variables["batch_stats"], flat))


def test_a_step_compiles_once():
    x, layer = normal(8, 3), bn_jax.BatchNorm(**FIELDS)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(variables, x):
        _, updates = layer.apply(variables, x, mutable=["batch_stats"])
        return variables | updates

    variables = init(layer, x)
    for seed in range(3):
        variables = step(variables, normal(8, 3, seed=seed))
