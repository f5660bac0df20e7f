"""Debiased and cumulative running statistics, which count their batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from arrays import normal
from core.steps import running, step, traced_step
from jax.experimental import checkify


def test_debiased_statistics_of_the_first_batch_are_its_own():
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1), "count": jnp.zeros(())}
    x = jnp.array([[3.0], [7.0]])
    _, stats = step(x, stats, momentum=0.99, debias=True)
    np.testing.assert_allclose(stats["mean"], [5.0], rtol=1e-6)
    np.testing.assert_allclose(stats["var"], [4.0], rtol=1e-6)
    assert stats["count"].item() == 1


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_debiased_statistics_are_the_corrected_averages_of_adam(momentum):
    batches, stats = normal(10, 6, 2, mean=3), running(0.0)
    biased = {"mean": np.zeros(2), "var": np.zeros(2)}
    for t, x in enumerate(batches, start=1):
        _, stats = step(x, stats, momentum=momentum, debias=True)
        _, mean, var = oracles.moments(x)
        for name, new in {"mean": mean, "var": var}.items():
            biased[name] = oracles.moving_average(biased[name], new, momentum)
            corrected = biased[name] / (1 - momentum**t)
            np.testing.assert_allclose(stats[name], corrected, rtol=1e-5)


def test_a_count_of_infinity_is_a_moving_average_without_correction():
    x = normal(6, 2)
    _, debiased = step(x, running(jnp.inf), debias=True)
    _, plain = step(x, running())
    chex.assert_trees_all_close(
        debiased, plain | {"count": jnp.float32(2**24)}, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("use", "settings"),
    [(True, {}), (False, {}), (False, {"debias": True}), (False, {"momentum": None})],
)
def test_a_count_of_infinity_is_kept_as_a_finite_one(use, settings):
    _, stats = step(normal(6, 2), running(jnp.inf), use_running_average=use, **settings)
    assert stats["count"] == 2**24
    # The call is Optax's way to average parameters.
    averaged = optax.incremental_update(stats, stats, 1.0)
    chex.assert_trees_all_equal(averaged, stats)
    chex.assert_tree_all_finite(stats)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.0, "debias": True}, {"debias": True}, {"momentum": None}],
)
def test_the_average_makes_no_infinity_and_no_nan_on_its_way(settings):
    checked = jax.jit(
        checkify.checkify(
            lambda x, stats: traced_step(x, stats, **settings),
            errors=checkify.float_checks,
        )
    )
    for count in (0.0, 1.0, 2.0**24):
        with jax.debug_infs(True), jax.debug_nans(True):
            step(normal(6, 2), running(count), **settings)
        error, _ = checked(normal(6, 2), running(count))
        error.throw()


def test_without_momentum_all_batches_weigh_alike():
    batches, stats = normal(10, 6, 2), running(0.0)
    for x in batches:
        _, stats = step(x, stats, momentum=None)
    moments = [oracles.moments(x) for x in batches]
    for index, name in enumerate(("mean", "var"), start=1):
        expected = np.mean([m[index] for m in moments], axis=0)
        np.testing.assert_allclose(stats[name], expected, rtol=1e-5)
    assert stats["count"].item() == 10


def test_a_fully_masked_batch_does_not_count():
    x, mask = normal(6, 2), jnp.zeros((6, 1), bool)
    _, stats = step(x, running(3.0), momentum=None, mask=mask)
    chex.assert_trees_all_equal(stats, running(3.0))


@pytest.mark.parametrize("settings", [{"debias": True}, {"momentum": None}], ids=str)
def test_inference_leaves_the_count_alone(settings):
    _, stats = step(normal(6, 2), running(3.0), use_running_average=True, **settings)
    chex.assert_trees_all_equal(stats, running(3.0))


@pytest.mark.parametrize("settings", [{"debias": True}, {"momentum": None}], ids=str)
def test_statistics_without_a_count_are_refused(settings):
    with pytest.raises(ValueError, match=r"batch_stats\['count'\], 0.0 at first"):
        step(normal(6, 2), running(), **settings)


def test_debiasing_a_cumulative_average_is_refused():
    with pytest.raises(ValueError, match="Leave one of them out"):
        step(normal(6, 2), running(0.0), momentum=None, debias=True)
