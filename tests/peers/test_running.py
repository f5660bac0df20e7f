"""Running statistics: start, correction, averages, batches that spoil them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance.modes import over_devices
from peers import formulas
from peers.calls import flax_layer, is_close, start, train

import bn_jax


def test_flax_running_variance_is_biased_without_a_choice():
    x = jnp.array([[0.0], [2.0]])
    unbiased = train(x, momentum=0.0, variance_correction=1)[1]
    assert is_close(unbiased["var"], [2.0])
    assert is_close(flax_layer(x, momentum=0.0)[1]["var"], [1.0])


def test_an_unbiased_variance_counts_valid_values_of_all_devices():
    def body(axis, _, x, mask):
        settings = {"momentum": 0.0, "variance_correction": 1}
        return train(x, mask=mask, axis_name=axis, **settings)[1]["var"]

    x = jnp.array([[0.0], [2.0], [4.0], [9.0]])
    mask = jnp.array([[True], [True], [True], [False]])
    var = over_devices("vmap", 2, body)({}, x, mask)
    assert is_close(var, np.var([0, 2, 4], ddof=1))
    assert not is_close(np.mean([np.var([0, 2], ddof=1), 0]), 4.0)


def test_pytorch_unbiased_variance_of_one_value_would_be_nan():
    mask = jnp.array([[True], [False]])
    _, stats = train([[7.0], [0.0]], mask=mask, variance_correction=1, momentum=0.0)
    assert is_close(stats["var"], [0.0])
    with np.errstate(all="ignore"), pytest.warns(RuntimeWarning):
        assert np.isnan(np.var([7.0], ddof=1))


def test_flax_running_statistics_start_far_from_the_batch():
    x = jnp.array([[3.0], [7.0]])
    _, stats = train(x, stats=start(1, count=jnp.array(0.0)), debias=True)
    assert is_close(stats["mean"], [5.0])
    assert is_close(stats["var"], [4.0])
    _, flax_stats = flax_layer(x)
    assert is_close(flax_stats["mean"], [0.05])
    assert is_close(flax_stats["var"], [1.03])


@pytest.mark.parametrize("steps", [1, 10, 100, 300])
def test_equinox_debiases_the_variance_as_if_it_started_at_zero(steps):
    x, stats = jnp.array([[1.0], [5.0]]), start(1, count=jnp.array(0.0))
    step = jax.jit(lambda stats: train(x, stats=stats, debias=True)[1])
    for _ in range(steps):
        stats = step(stats)
    y, _ = train(x, stats=stats, use_running_average=True)
    assert is_close(y, [[-1], [1]], atol=1e-4)
    var = formulas.equinox_debiased_variance(4.0, steps)
    assert not is_close(2 / np.sqrt(var + 1e-5), 1.0, atol=1e-4)


def test_a_cumulative_average_weighs_all_batches_alike():
    batches = np.random.default_rng(0).normal(5, 3, (10, 4, 1)).astype(np.float32)
    stats, moving = start(1, count=jnp.array(0.0)), np.zeros(1)
    for x in batches:
        _, stats = train(x, stats=stats, momentum=None)
        moving = formulas.moving_average(moving, x.mean(0))
    assert is_close(stats["mean"], batches.mean((0, 1)))
    assert not is_close(moving, batches.mean((0, 1)), rtol=0.5)


def test_flax_statistics_are_nan_for_ever_after_a_batch_with_nan():
    x = jnp.ones((4, 2)).at[0, 0].set(jnp.nan)
    _, stats = train(x, skip_nonfinite=True)
    assert is_close(stats["mean"], [0, 0])
    assert is_close(stats["var"], [1, 1])
    mean = flax_layer(x, steps=2)[1]["mean"]
    assert np.isnan(mean[0])


def test_flax_returns_the_bias_for_one_value_a_channel():
    x = jnp.array([[7.0, 7.0]])
    with pytest.raises(ValueError, match="one value per feature"):
        train(x)
    y, stats = flax_layer(x)
    assert is_close(y, [[0, 0]])
    assert is_close(stats["var"], [0.99, 0.99])


def test_one_value_a_channel_on_each_of_two_devices_is_a_batch_of_two():
    y = over_devices("vmap", 2, lambda axis, _, x: train(x, axis_name=axis)[0])(
        {}, jnp.array([[7.0], [9.0]])
    )
    assert is_close(np.ravel(y), [-1, 1], atol=1e-5)


def test_flax_takes_a_step_of_the_average_in_every_microbatch():
    x = jnp.ones((8, 1))
    layer = bn_jax.BatchNorm(use_running_average=False, momentum=0.9)
    variables = layer.init(jax.random.key(0), x)
    moments = [
        layer.apply(variables, part, mutable=["batch_stats", "batch_moments"])[1]
        for part in x.reshape(4, 2, 1)
    ]
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(m["batch_moments"] for m in moments)
    )
    stats = bn_jax.accumulate_batch_stats(
        variables["batch_stats"], stacked, momentum=0.9
    )
    assert is_close(stats["mean"], [0.1])
    assert is_close(stats["var"], [0.9])
    _, flax_stats = flax_layer(x[:2], steps=4, momentum=0.9)
    assert is_close(flax_stats["mean"], [0.3439])
    assert is_close(flax_stats["var"], [0.6561])


def test_flax_broadcasts_statistics_of_the_wrong_length():
    x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(ValueError, match="mean must have the shape"):
        train(x, stats=start(1), use_running_average=True)
    stats = {"batch_stats": start(1)}
    layer = nn.BatchNorm(use_running_average=True, use_bias=False, use_scale=False)
    assert layer.apply(stats, x).shape == (2, 2)
