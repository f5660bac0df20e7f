"""Transformations of the NNX layer: one update each, by the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from conformance.modes import AXIS, MODES, join_devices, make_mesh, over_devices
from flax import nnx
from jax.sharding import PartitionSpec as P

import bn_jax

DEVICES = 4


def make(num_features=3, **settings):
    settings = {"momentum": 0.5, "rngs": nnx.Rngs(0)} | settings
    return bn_jax.nnx.BatchNorm(num_features, **settings)


def run(layer, x):
    return layer(x)


def scanned(layer, x):
    """Applies the layer as the only step of a scan."""
    scan = nnx.scan(run, in_axes=(nnx.StateAxes({...: nnx.Carry}), 0), out_axes=0)
    return scan(layer, x[None])[0]


def assert_one_step(stats, *batches):
    """Compares running statistics with one step of the oracle on each batch."""
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        _, batch_mean, batch_var = oracles.moments(x)
        mean = oracles.moving_average(mean, batch_mean, 0.5)
        var = oracles.moving_average(var, batch_var, 0.5)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)


def stats_of(layer):
    return nnx.to_pure_dict(nnx.state(layer, nnx.BatchStat))


def assert_normalized(y, x):
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)


def assert_synchronized(mode, transform, x):
    """Checks one step by the whole batch on every device, and y normalized by it."""

    def body(axis, state, x):
        layer = nnx.merge(nnx.graphdef(make(axis_name=axis)), state)
        return transform(layer, x), stats_of(layer)

    state = nnx.state(make())
    y, stats = jax.jit(over_devices(mode, DEVICES, body))(state, x)
    assert_normalized(join_devices(y), x)
    for device in range(1 if mode == "jit" else DEVICES):
        assert_one_step(jax.tree.map(lambda leaf, i=device: leaf[i], stats), x)


@pytest.mark.parametrize("mode", MODES)
def test_devices_synchronize_the_statistics_of_the_whole_batch(mode):
    assert_synchronized(mode, run, normal(4 * DEVICES, 3))


@pytest.mark.parametrize(
    ("mode", "transform"),
    [
        ("pmap", nnx.jit(run)),
        ("shard_map", nnx.remat(run)),
        ("shard_map_unchecked", scanned),
        ("vmap", scanned),
    ],
    ids=["pmap-jit", "shard_map-remat", "shard_map_unchecked-scan", "vmap-scan"],
)
def test_transformed_layers_synchronize_once_inside_of_mapped_devices(mode, transform):
    assert_synchronized(mode, transform, normal(4 * DEVICES, 3))


def test_pmap_of_nnx_synchronizes():
    x, layer = normal(DEVICES, 6, 3), make(axis_name=AXIS)
    devices = jax.devices()[:DEVICES]
    mapped = nnx.pmap(
        run, in_axes=(None, 0), out_axes=0, axis_name=AXIS, devices=devices
    )
    y = mapped(layer, x)
    assert_normalized(join_devices(y), join_devices(x))
    assert_one_step(stats_of(layer), join_devices(x))


def test_shard_map_of_nnx_synchronizes():
    x, layer = normal(4 * DEVICES, 3), make(axis_name=AXIS)
    mapped = nnx.shard_map(
        run, mesh=make_mesh(DEVICES), in_specs=(P(), P(AXIS)), out_specs=P(AXIS)
    )
    y = nnx.jit(mapped)(layer, x)
    assert_normalized(y, x)
    assert_one_step(stats_of(layer), x)


def test_remat_inside_of_vmap_takes_one_step_under_a_gradient():
    x, layer = normal(DEVICES, 6, 3), make(axis_name=AXIS)
    mapped = nnx.vmap(nnx.remat(run), in_axes=(None, 0), out_axes=0, axis_name=AXIS)
    nnx.jit(nnx.grad(lambda layer, x: jnp.sum(jnp.tanh(mapped(layer, x)))))(layer, x)
    assert_one_step(stats_of(layer), join_devices(x))


def test_scan_over_layers_gives_each_layer_its_own_statistics():
    x = normal(6, 3)
    layers = nnx.vmap(lambda _: make(), in_axes=0, out_axes=0)(jnp.arange(2))
    scan = nnx.scan(
        lambda x, layer: layer(3 * x + 1), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )
    y = scan(x, layers)
    first = 3 * np.float64(x) + 1
    second = 3 * oracles.batch_norm(first) + 1
    assert_normalized(y, second)
    for i, h in enumerate((first, second)):
        stats = jax.tree.map(lambda leaf, i=i: leaf[i], stats_of(layers))
        assert_one_step(stats, h)


def test_vmap_gives_every_copy_its_own_statistics():
    x = normal(2, 6, 3)
    layers = nnx.vmap(lambda _: make(), in_axes=0, out_axes=0)(jnp.arange(2))
    y = nnx.vmap(run)(layers, x)
    for i in range(2):
        assert_normalized(y[i], x[i])
        stats = jax.tree.map(lambda leaf, i=i: leaf[i], stats_of(layers))
        assert_one_step(stats, x[i])


@pytest.mark.parametrize("transform", [nnx.jit, nnx.remat])
def test_jit_and_remat_update_the_statistics_once(transform):
    x, layer = normal(6, 3), make(axis=[1])
    y = transform(lambda layer, x: layer(x))(layer, x)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)
    assert_one_step(stats_of(layer), x)


def test_gradients_update_the_statistics_once():
    x, dy, layer = normal(6, 3), normal(6, 3, seed=1), make()
    gradient = nnx.jit(nnx.grad(lambda layer, x: jnp.vdot(layer(x), dy)))(layer, x)
    _, dscale, dbias = oracles.batch_norm_gradients(x, dy)
    np.testing.assert_allclose(gradient["scale"][...], dscale, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient["bias"][...], dbias, rtol=1e-5, atol=1e-5)
    assert_one_step(stats_of(layer), x)


def test_scan_takes_one_step_for_each_batch():
    x, layer = normal(5, 6, 3), make()
    scan = nnx.scan(
        lambda layer, x: (layer, layer(x)),
        in_axes=(nnx.Carry, 0),
        out_axes=(nnx.Carry, 0),
    )
    layer, y = scan(layer, x)
    expected = [oracles.batch_norm(batch) for batch in x]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert_one_step(stats_of(layer), *x)


def test_vmap_with_an_axis_name_is_like_one_flat_batch():
    x, layer = normal(4, 6, 3), make(axis_name=["batch"])
    mapped = nnx.vmap(
        lambda layer, x: layer(x), in_axes=(None, 0), out_axes=0, axis_name="batch"
    )
    flat = np.reshape(x, (24, 3))
    expected = oracles.batch_norm(flat).reshape(x.shape)
    np.testing.assert_allclose(mapped(layer, x), expected, rtol=1e-5, atol=1e-5)
    assert_one_step(stats_of(layer), flat)
