"""Masks, and devices of which each has its own share of valid values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.modes import AXIS, over_devices
from peers import formulas
from peers.calls import batch_statistics, flax_layer, is_close, train


def synchronized(x, mask, mode="shard_map"):
    """Mean, variance and y of devices that share them, `(devices, ...)`."""
    num_devices = x.shape[0]
    function = over_devices(
        mode,
        num_devices,
        lambda axis, _, x, mask: batch_statistics(x, mask=mask, axis_name=axis),
    )
    flat = [jnp.reshape(v, (-1, v.shape[-1])) for v in (x, mask)]
    return jax.jit(function)({}, *flat)


def test_flax_averages_devices_of_unequal_counts_alike():
    x = np.array([[[0.0]] * 4, [[4.0], [9.0], [9.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 4, [[True], [False], [False], [False]]])
    mean, var, _ = synchronized(x, mask)
    assert is_close(mean, 0.8)
    assert is_close(var, 2.56)
    assert is_close(formulas.mean_of_means(x, mask), [[2.0], [4.0]])


def test_flax_makes_every_device_nan_when_one_has_nothing_valid():
    x = np.array([[[0.0], [4.0]], [[9.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 2, [[False]] * 2])
    mean, var, y = synchronized(x, mask)
    assert is_close(mean, 2.0)
    assert is_close(var, 4.0)
    assert is_close(np.ravel(y), [-1, 1, 0, 0], atol=1e-5)
    layer = nn.BatchNorm(use_running_average=False, axis_name=AXIS)
    variables = nn.BatchNorm(use_running_average=False).init(jax.random.key(0), x[0])
    y_flax, _ = jax.vmap(
        lambda x, mask: layer.apply(variables, x, mask=mask, mutable=["batch_stats"]),
        axis_name=AXIS,
    )(x, mask)
    assert np.isnan(y_flax).all()


def test_keras_does_not_synchronize_under_a_mask():
    x = np.array([[[0.0], [2.0]], [[4.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 2, [[True], [False]]])
    mean, var, _ = synchronized(x, mask)
    assert is_close(mean, 2.0)
    assert is_close(var, 8 / 3)
    theirs, _ = jax.vmap(formulas.keras_moments, axis_name=AXIS)(x, mask)
    assert is_close(theirs, [[1.0], [4.0]])


def test_scenic_cannot_pack_a_count_that_is_a_scalar():
    x = np.array([[[0.0]] * 4, [[4.0], [9.0], [9.0], [9.0]]], np.float32)
    mask = np.array([[[True]] * 4, [[True], [False], [False], [False]]])
    # One all-reduce of sums, squares and counts is what it means to make.
    mean, _, _ = synchronized(x, mask)
    assert is_close(mean, 0.8)
    with pytest.raises(TypeError, match="Cannot concatenate arrays"):
        jax.vmap(
            lambda x, mask: formulas.scenic_packed_sums(x, mask, AXIS), axis_name=AXIS
        )(x, mask)


@pytest.mark.parametrize("rows", [4, 0])
def test_flax_statistics_are_nan_for_ever_after_a_batch_with_nothing(rows):
    x, mask = jnp.ones((rows, 2)), jnp.zeros((rows, 1), bool)
    y, stats = train(x, mask=mask)
    assert is_close(y, np.zeros((rows, 2)))
    assert is_close(stats["mean"], [0, 0])
    assert is_close(stats["var"], [1, 1])
    _, flax_stats = flax_layer(x, mask=mask)
    assert np.isnan(flax_stats["mean"]).all()
    assert np.isnan(flax_stats["var"]).all()


def test_keras_statistics_decay_in_a_batch_with_nothing():
    x, mask = jnp.full((4, 1), 7.0), jnp.zeros((4, 1), bool)
    trained = {"mean": jnp.array([5.0]), "var": jnp.array([2.0])}
    ours = theirs = trained
    for _ in range(3):
        _, ours = train(x, stats=ours, mask=mask)
        mean, var = formulas.keras_moments(x, mask)
        new = {"mean": mean, "var": var}
        theirs = jax.tree.map(formulas.moving_average, theirs, new)
    for name, value in trained.items():
        assert is_close(ours[name], value)
        assert not is_close(theirs[name], value)
        assert is_close(theirs[name], value * 0.99**3)


def test_flax_gradients_are_nan_under_masked_nan_padding():
    x = jnp.array([[1.0], [3.0], [jnp.nan]])
    mask = jnp.array([[True], [True], [False]])
    dy, one, zero = jnp.array([[1.0], [2.0], [0.0]]), jnp.ones(1), jnp.zeros(1)
    y, back = jax.vjp(jax.jit(lambda *of: train(*of, mask=mask)[0]), x, one, zero)
    dx, dscale, dbias = back(dy)
    assert is_close(y, [[-1], [1], [0]], atol=1e-5)
    # Terms of order 1 cancel in dx; float32 resolves 1e-7 of them.
    assert is_close(dx, [[-5.0e-6], [5.0e-6], [0]], atol=5e-7)
    assert is_close(dscale, [0.999995])
    assert is_close(dbias, [3.0])
    y, back = jax.vjp(
        lambda *of: formulas.masked_after_arithmetic(*of, mask), x, one, zero
    )
    dx, dscale, dbias = back(dy)
    assert np.isnan(y[2]).all()
    assert np.isnan(dx).all()
    assert np.isnan(dscale).all()
    assert is_close(dbias, [3.0])
