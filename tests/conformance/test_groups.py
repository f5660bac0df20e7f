"""Groups of examples and groups of devices are the same in every mode."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal, normal_with_trend
from conformance.modes import (
    MAPPED,
    QUICK_AND_SLOW_MODES,
    join_devices,
    over_devices,
    place,
)

import bn_jax

NUM_DEVICES = 4
X = normal_with_trend(16, 3)
DY = normal(16, 3, seed=1)
STATS = {"mean": jnp.zeros(3), "var": jnp.ones(3)}


def run(mode, body, *arrays):
    program = jax.jit(over_devices(mode, NUM_DEVICES, body))
    return jax.device_get(program(*place(mode, NUM_DEVICES, {}, *arrays)))


def normalize(axis_name, x, mask=None, **settings):
    return bn_jax.batch_norm(
        x, None, None, STATS, mask=mask, momentum=0.0, axis_name=axis_name, **settings
    )


# A device holds 4 examples: two groups on each, or two devices in one group.
@pytest.mark.parametrize("group_size", [2, 8])
@pytest.mark.parametrize("mode", QUICK_AND_SLOW_MODES)
def test_every_mode_normalizes_each_group_of_examples(mode, group_size):
    mask = np.arange(16)[:, None] % 8 < 7

    def body(axis_name, _, x, mask, dy):
        def forward(x):
            return normalize(axis_name, x, mask, group_size=group_size)

        y, back, stats = jax.vjp(forward, x, has_aux=True)
        return y, back(dy)[0], stats

    y, dx, stats = run(mode, body, X, mask, DY)
    groups = [
        slice(start, start + group_size) for start in range(0, len(X), group_size)
    ]
    for group in groups:
        x, counted, dy = X[group], mask[group], DY[group]
        expected = oracles.batch_norm(x, mask=counted)
        np.testing.assert_allclose(join_devices(y)[group], expected, atol=1e-5)
        expected, _, _ = oracles.batch_norm_gradients(x, dy, mask=counted)
        np.testing.assert_allclose(join_devices(dx)[group], expected, atol=2e-5)
    var = np.mean([oracles.moments(X[g], mask=mask[g])[2] for g in groups], axis=0)
    for of_device in stats["var"]:
        np.testing.assert_allclose(of_device, var, rtol=1e-5)


@pytest.mark.parametrize("mode", MAPPED)
def test_groups_of_an_axis_and_a_group_size_agree(mode):
    by_index, by_size = (
        run(mode, lambda axis, _, x, s=settings: normalize(axis, x, **s)[0], X)
        for settings in ({"axis_index_groups": [[0, 1], [2, 3]]}, {"group_size": 8})
    )
    np.testing.assert_allclose(by_index, by_size, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", QUICK_AND_SLOW_MODES)
def test_the_unbiased_variance_counts_the_values_of_all_devices(mode):
    mask = np.arange(16)[:, None] < 11

    def body(axis_name, _, x, mask):
        return normalize(axis_name, x, mask, variance_correction=1)[1]

    expected = np.var(X[:11], axis=0, ddof=1)
    for of_device in run(mode, body, X, mask)["var"]:
        np.testing.assert_allclose(of_device, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", QUICK_AND_SLOW_MODES)
def test_one_device_that_is_not_finite_makes_all_skip(mode):
    def body(axis_name, _, x):
        return normalize(axis_name, x, skip_nonfinite=True)[1]

    stats = run(mode, body, X.at[9, 0].set(jnp.nan))
    np.testing.assert_array_equal(stats["mean"], np.zeros_like(stats["mean"]))
    np.testing.assert_array_equal(stats["var"], np.ones_like(stats["var"]))
