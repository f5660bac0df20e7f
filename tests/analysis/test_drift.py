import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.analysis.drift import statistics_drift


def statistics(seed, size=50):
    rng = np.random.default_rng(seed)
    return {"mean": rng.normal(size=size), "var": rng.uniform(0.1, 3, size=size)}


def on_device(stats):
    return {name: jnp.asarray(value, jnp.float32) for name, value in stats.items()}


def test_the_drift_is_a_root_mean_square_over_features():
    new, old = statistics(0), statistics(1)
    drift = statistics_drift(on_device(new), on_device(old), epsilon=0.01)
    old_var, new_var = old["var"] + 0.01, new["var"] + 0.01
    mean = np.sqrt(np.mean((new["mean"] - old["mean"]) ** 2 / old_var))
    log_std = np.sqrt(np.mean((np.log(new_var / old_var) / 2) ** 2))
    np.testing.assert_allclose(drift.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(drift.log_std, log_std, rtol=1e-5)


def test_equal_statistics_have_not_drifted():
    stats = on_device(statistics(0))
    assert statistics_drift(stats, stats) == (0.0, 0.0)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_drift_of_means_has_no_unit(factor):
    new, old = statistics(0), statistics(1)
    scale = {"mean": factor, "var": factor**2}

    def scaled(stats):
        return on_device({name: value * scale[name] for name, value in stats.items()})

    expected = statistics_drift(on_device(new), on_device(old), epsilon=0.0)
    drift = statistics_drift(scaled(new), scaled(old), epsilon=0.0)
    np.testing.assert_allclose(drift, expected, rtol=1e-5)


def test_a_feature_that_is_always_the_same_has_not_drifted():
    dead = {"mean": jnp.zeros(3), "var": jnp.zeros(3)}
    assert statistics_drift(dead, dead) == (0.0, 0.0)
