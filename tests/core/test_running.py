import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from core.jitted import compiled
from core.static_config import static_config

from bn_jax.core.batch_norm import batch_norm
from bn_jax.core.running import unbiased_variance, update_batch_stats
from bn_jax.core.types import Moments

CONFIG = static_config()


def moments_of(*values):
    x = np.array(values, np.float64)
    return Moments(*(jnp.asarray(m, jnp.float32) for m in oracles.moments(x)))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_one_step_keeps_the_momentum_and_adds_the_rest(momentum):
    old = {"mean": jnp.array([2.0, -1.0]), "var": jnp.array([3.0, 0.5])}
    new = update_batch_stats(
        old, moments_of([3.0, 1.0], [7.0, 1.0]), CONFIG, momentum=momentum
    )
    mean = oracles.moving_average(old["mean"], [5.0, 1.0], momentum)
    var = oracles.moving_average(old["var"], [4.0, 0.0], momentum)
    np.testing.assert_allclose(new["mean"], mean, rtol=1e-6)
    np.testing.assert_allclose(new["var"], var, rtol=1e-6)


def test_the_first_step_of_the_default_momentum_is_that_of_flax(initial_stats):
    x = jnp.array([[3.0], [7.0]])
    _, batch_stats = compiled(x, None, None, initial_stats(1))
    np.testing.assert_allclose(batch_stats["mean"], [0.05], rtol=1e-6)
    np.testing.assert_allclose(batch_stats["var"], [1.03], rtol=1e-6)


def test_the_running_variance_is_the_biased_one(initial_stats):
    x = jnp.array([[0.0], [2.0]])
    _, batch_stats = compiled(x, None, None, initial_stats(1), momentum=0.0)
    assert batch_stats["var"].item() == 1.0


def test_many_steps_match_the_oracle(initial_stats):
    batches = np.random.default_rng(0).normal(5, 3, (100, 4, 3)).astype(np.float32)
    mean, var = np.zeros(3), np.ones(3)
    for x in batches:
        _, batch_mean, batch_var = oracles.moments(x)
        mean = oracles.moving_average(mean, batch_mean, 0.9)
        var = oracles.moving_average(var, batch_var, 0.9)

    def step(batch_stats, x):
        return batch_norm(x, None, None, batch_stats, momentum=0.9)[::-1]

    batch_stats, _ = jax.lax.scan(step, initial_stats(3), jnp.asarray(batches))
    np.testing.assert_allclose(batch_stats["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(batch_stats["var"], var, rtol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_batches_do_not_stall_the_running_mean(initial_stats):
    x = jnp.ones((2, 1), jnp.bfloat16)

    def step(batch_stats, _):
        return batch_norm(x, None, None, batch_stats)[::-1]

    batch_stats, _ = jax.lax.scan(step, initial_stats(1), length=800)
    np.testing.assert_allclose(batch_stats["mean"], [1 - 0.99**800], rtol=1e-5)


def test_a_feature_without_a_value_keeps_its_statistics():
    old = {"mean": jnp.array([2.0, 3.0]), "var": jnp.array([4.0, 5.0])}
    moments = Moments(jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0]), jnp.zeros(2))
    new = update_batch_stats(old, moments, CONFIG, momentum=0.5)
    chex.assert_trees_all_equal(new["mean"], jnp.array([2.0, 2.0]))
    chex.assert_trees_all_equal(new["var"], jnp.array([4.0, 2.5]))


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int32])
def test_statistics_of_few_bits_become_float32_and_do_not_stall(dtype):
    moments = moments_of([1.0], [1.0])

    def step(stats, _):
        return update_batch_stats(stats, moments, CONFIG, momentum=0.99), None

    start = {"mean": jnp.zeros(1, dtype), "var": jnp.ones(1, dtype)}
    first, _ = jax.jit(step)(start, None)
    stats, _ = jax.lax.scan(step, first, length=799)
    chex.assert_type([stats["mean"], stats["var"]], jnp.float32)
    np.testing.assert_allclose(stats["mean"], 1 - 0.99**800, rtol=1e-5)


@pytest.mark.usefixtures("standard_promotion")
def test_statistics_in_float64_keep_its_precision():
    with jax.enable_x64(True):
        old = {"mean": jnp.full(1, 1 / 3), "var": jnp.ones(1)}
        moments = Moments(jnp.full(1, 2.0), jnp.full(1, 1 / 7), jnp.full(1, 0.1))
        new = update_batch_stats(old, moments, CONFIG, momentum=0.99)
        chex.assert_type([new["mean"], new["var"]], jnp.float64)
        np.testing.assert_allclose(new["mean"], 0.99 / 3 + 0.01 / 7, rtol=1e-15)


@pytest.mark.usefixtures("standard_promotion")
def test_a_complex_batch_makes_the_running_mean_complex(initial_stats):
    x = jnp.array([[1 + 2j], [3 - 2j]], jnp.complex64)
    _, batch_stats = compiled(x, None, None, initial_stats(1), momentum=0.5)
    chex.assert_type(batch_stats["mean"], jnp.complex64)
    chex.assert_type(batch_stats["var"], jnp.float32)
    np.testing.assert_allclose(batch_stats["mean"], [1 + 0j], rtol=1e-6)
    np.testing.assert_allclose(batch_stats["var"], [0.5 + 0.5 * 5], rtol=1e-6)


@pytest.mark.parametrize("num_samples", [2, 3, 60])
def test_the_corrected_variance_is_numpys_with_one_degree_less(num_samples):
    x = np.random.default_rng(0).normal(size=(num_samples, 4))
    var = unbiased_variance(moments_of(*x))
    np.testing.assert_allclose(var, x.var(axis=0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("num_samples", [0.0, 1.0])
def test_the_variance_of_less_than_two_values_stays_as_it_is(num_samples):
    moments = Moments(jnp.array([num_samples]), jnp.zeros(1), jnp.array([0.25]))
    assert unbiased_variance(moments).item() == 0.25
