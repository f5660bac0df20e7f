"""Choice of the statistics, and their update by one batch."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from arrays import normal
from core.steps import running, step, traced_step

FLAGS = [(use, update) for use in (True, False) for update in (True, False)]


def assert_step(results, x, *, use, update):
    """Compares with the oracle's output and running statistics."""
    y, stats = results
    old = running()
    _, mean, var = oracles.moments(x)
    expected = oracles.batch_norm(x)
    if use:
        expected = oracles.inference(x, None, None, old["mean"], old["var"])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for name, new in {"mean": mean, "var": var}.items():
        kept = oracles.moving_average(old[name], new, 0.9 if update else 1.0)
        np.testing.assert_allclose(stats[name], kept, rtol=1e-5)


@pytest.mark.parametrize(("use", "update"), FLAGS)
def test_use_and_update_are_independent(use, update):
    x = normal(6, 2)
    results = step(x, running(), use_running_average=use, update_running_average=update)
    assert_step(results, x, use=use, update=update)


@pytest.mark.parametrize("use", [True, False])
def test_an_update_follows_use_by_default(use):
    x = normal(6, 2)
    results = step(x, running(), use_running_average=use)
    assert_step(results, x, use=use, update=not use)


def test_both_flags_may_be_traced():
    x = normal(6, 2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def traced(use, update):
        return traced_step(
            x, running(), use_running_average=use, update_running_average=update
        )

    for use, update in FLAGS:
        assert_step(traced(use, update), x, use=use, update=update)


def test_a_traced_use_decides_the_update_too():
    x = normal(6, 2)
    traced = jax.jit(lambda use: traced_step(x, running(), use_running_average=use))
    for use in (True, False):
        assert_step(traced(use), x, use=use, update=not use)


def test_the_update_alone_may_be_traced():
    x = normal(6, 2)
    traced = jax.jit(
        lambda flag: traced_step(x, running(), update_running_average=flag)
    )
    for update in (True, False):
        assert_step(traced(update), x, use=False, update=update)


def test_flags_may_be_scanned_over():
    x, flags = normal(4, 6, 2), [True, False, False, True]

    @jax.jit
    def scanned(flags, x):
        def body(stats, inputs):
            flag, batch = inputs
            return traced_step(batch, stats, use_running_average=flag)[::-1]

        return jax.lax.scan(body, running(), (flags, x))

    stats, ys = running(), []
    for flag, batch in zip(flags, x, strict=True):
        y, stats = step(batch, stats, use_running_average=flag)
        ys.append(y)
    chex.assert_trees_all_close(
        scanned(jnp.array(flags), x), (stats, jnp.stack(ys)), rtol=1e-5, atol=1e-6
    )


def test_an_update_in_inference_does_not_reach_the_result():
    x = normal(6, 2)
    y, _ = step(x, running(), use_running_average=True, update_running_average=True)
    chex.assert_trees_all_equal(y, step(x, running(), use_running_average=True)[0])


@pytest.mark.parametrize(("correction", "expected"), [(0, 1.0), (1, 2.0)])
def test_the_correction_makes_the_running_variance_unbiased(correction, expected):
    x, stats = jnp.array([[0.0], [2.0]]), {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    _, stats = step(x, stats, momentum=0.0, variance_correction=correction)
    assert stats["var"].item() == expected


def test_the_correction_leaves_the_result_alone():
    x = normal(3, 2)
    y, _ = step(x, running(), variance_correction=1)
    chex.assert_trees_all_equal(y, step(x, running())[0])


@pytest.mark.parametrize("masked", [False, True])
def test_the_correction_counts_all_valid_positions_of_a_convolution(masked):
    x = normal(2, 3, 2, 2)
    mask = np.random.default_rng(1).random((2, 3, 2, 1)) < 0.5 if masked else None
    given = None if mask is None else jnp.asarray(mask)
    _, stats = step(x, running(), momentum=0.0, variance_correction=1, mask=given)
    num_samples, _, var = oracles.moments(x, mask=mask)
    expected = var * num_samples / (num_samples - 1)
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-5)


def test_the_correction_counts_the_valid_values_of_all_devices(over_devices):
    x = normal(4, 3, 2)
    mask = np.arange(3)[None, :, None] < np.array([3, 0, 1, 2])[:, None, None]
    settings = {"axis_name": "devices", "momentum": 0.0, "variance_correction": 1}
    mapped = over_devices(lambda x, mask: step(x, running(), mask=mask, **settings))
    _, stats = mapped(x, jnp.asarray(mask))
    flat, mask = np.reshape(x, (12, 2)), np.reshape(mask, (12, 1))
    num_samples, _, var = oracles.moments(flat, mask=mask)
    expected = var * num_samples / (num_samples - 1)
    np.testing.assert_allclose(stats["var"], np.tile(expected, (4, 1)), rtol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("settings", [{}, {"debias": True}, {"momentum": None}])
def test_a_batch_that_is_not_finite_is_skipped(bad, settings):
    x = normal(6, 2).at[2, 0].set(bad)
    _, stats = step(x, running(3.0), skip_nonfinite=True, **settings)
    chex.assert_trees_all_equal(stats, running(3.0))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_batch_that_is_not_finite_spoils_the_statistics_otherwise(bad):
    _, stats = step(normal(6, 2).at[2, 0].set(bad), running())
    chex.assert_tree_all_finite([stats["mean"][1], stats["var"][1]])
    assert not np.isfinite([stats["mean"][0], stats["var"][0]]).any()


def test_a_finite_batch_is_not_skipped():
    x = normal(6, 2)
    chex.assert_trees_all_equal(
        step(x, running(), skip_nonfinite=True), step(x, running())
    )


def test_one_device_that_is_not_finite_makes_all_skip(over_devices):
    x = normal(4, 3, 2).at[2, 1, 0].set(jnp.nan)
    settings = {"axis_name": "devices", "skip_nonfinite": True}
    _, stats = over_devices(lambda x: step(x, running(), **settings))(x)
    expected = jax.tree.map(lambda old: jnp.tile(old, (4, 1)), running())
    chex.assert_trees_all_equal(stats, expected)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_spoiled_running_statistics_do_not_spoil_the_result(bad):
    x, stats = normal(6, 2), running()
    stats["mean"] = stats["mean"].at[0].set(bad)
    y, _ = step(x, stats)
    np.testing.assert_allclose(y, oracles.batch_norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"debias": True}])
def test_a_traced_momentum_is_a_known_one(settings):
    x, stats = normal(6, 2), running(3.0)
    traced = jax.jit(
        lambda momentum: traced_step(x, stats, momentum=momentum, **settings)
    )
    for momentum in (0.0, 0.9):
        expected = step(x, stats, momentum=momentum, **settings)
        chex.assert_trees_all_close(traced(momentum), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "to keep all of them, set update_running_average=False"),
        ({"variance_correction": 2}, "must be 0 .biased. or 1 .unbiased., but is 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        step(normal(6, 2), running(), **settings)
