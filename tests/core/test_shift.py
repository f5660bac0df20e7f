import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import bn_jax.core.moments as moments_module
from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.devices import Devices
from bn_jax.core.moments import batch_moments
from bn_jax.core.shift import shift_for

AXES = {"feature_axes": (1,), "devices": Devices()}


def running(mean, var=4.0):
    return {"mean": jnp.array([mean]), "var": jnp.array([var])}


@pytest.mark.parametrize(
    ("mean", "var", "shift"),
    [
        (1.9, 4.0, 0.0),
        (-2.1, 4.0, -2.1),
        (0.0, 0.0, 0.0),
        (1e-3, 0.0, 1e-3),
        (3e30, 1.0, 3e30),
        (np.nan, 4.0, 0.0),
        (-np.inf, 4.0, 0.0),
        # A mean is one whatever became of the variance.
        (5.0, np.nan, 5.0),
        (1.0 + 1.0j, 4.0, 0.0),
        (1.0 + 2.0j, 4.0, 1.0 + 2.0j),
    ],
)
def test_a_mean_within_a_standard_deviation_of_0_is_no_shift(mean, var, shift):
    np.testing.assert_array_equal(
        shift_for(running(mean, var)), [np.asarray(shift, np.complex64)]
    )


# Two values only: all errors of a sum go one way.
@pytest.mark.parametrize("mean", [0.0, 0.99, 1.01, 1.99, 2.01])
def test_the_variance_keeps_its_digits_on_both_sides_of_the_limit(mean):
    values = np.random.default_rng(0).choice([-1.0, 1.0], (2**20, 1)) + mean
    x = jnp.asarray(values, jnp.float32)
    _, stats = batch_norm(x, None, None, running(mean, 1.0), momentum=0.0)
    _, found, var = oracles.moments(np.asarray(x))
    np.testing.assert_allclose(stats["var"], var, rtol=2e-6)
    np.testing.assert_allclose(stats["mean"], found, rtol=1e-6, atol=1e-6)


def test_a_batch_without_a_spike_of_an_input_of_rare_spikes_needs_one_pass(monkeypatch):
    def no_further_pass(around, found, is_exact, epsilon):
        return found._replace(offset=found.offset + 1e6)

    monkeypatch.setattr(moments_module, "_further_passes", no_further_pass)
    # What has been traced does not hear of that.
    untraced = moments_module._batch_moments.__wrapped__
    monkeypatch.setattr(moments_module, "_batch_moments", untraced)
    x, stats = jnp.zeros((8, 1)), running(0.1, 1.0)
    _, kept = batch_norm(x, None, None, stats, momentum=0.0)
    assert kept["mean"].item() == 0
    # The running mean itself is no shift for it.
    assert batch_moments(x, stats["mean"], **AXES).mean.item() > 1e5
