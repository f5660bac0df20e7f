"""Poolings and their gradients, against windows in NumPy and against Flax's."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.models.ops.pooling import average_pool, max_pool

# Window, stride and padding.
CASES = {
    "of Inception": (3, 1, ((1, 1), (1, 1))),
    "of Inception, halving": (3, 2, ((0, 1), (0, 1))),
    "halving": (2, 2, ((0, 0), (0, 0))),
    "uneven": (2, 1, ((1, 0), (0, 1))),
    "far apart": (2, 3, ((0, 0), (1, 1))),
    "one pixel": (1, 1, ((0, 0), (0, 0))),
}
# Ours, Flax's, NumPy's, and what lies beyond the edges.
KINDS = {
    "average": (average_pool, nn.avg_pool, np.mean, 0.0),
    "max": (max_pool, nn.max_pool, np.max, -np.inf),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def settings(request):
    return request.param


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def images(seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(3, 6, 5, 4))
    return jnp.asarray(values, dtype)


def by_hand(kind, x, window, stride, padding):
    *_, join, beyond = kind
    zeros = ((0, 0), *padding, (0, 0))
    x = np.pad(np.float64(x), zeros, constant_values=beyond)
    windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
    return join(windows[:, ::stride, ::stride], axis=(-2, -1))


def ours(kind, settings):
    window, stride, padding = settings
    return jax.jit(partial(kind[0], window=window, stride=stride, padding=padding))


def of_flax(kind, settings):
    window, stride, padding = settings
    return partial(
        kind[1],
        window_shape=(window, window),
        strides=(stride, stride),
        padding=padding,
    )


def assert_flax_gradients(kind, settings, x):
    pools = ours(kind, settings), of_flax(kind, settings)
    shape = jax.eval_shape(pools[0], x).shape
    dy = jnp.asarray(np.random.default_rng(1).normal(size=shape), x.dtype)
    actual, expected = (
        jax.jit(lambda x, dy, pool=pool: jax.vjp(pool, x)[1](dy))(x, dy)
        for pool in pools
    )
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_an_output_is_what_its_window_makes(kind, settings):
    y = ours(kind, settings)(images())
    expected = by_hand(kind, images(), *settings)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_flax(kind, settings):
    assert_flax_gradients(kind, settings, images())


def test_the_first_of_several_largest_pixels_gets_the_gradient(settings):
    x = jnp.asarray(np.random.default_rng(2).integers(0, 2, (3, 6, 5, 4)), jnp.float32)
    assert_flax_gradients(KINDS["max"], settings, x)


def test_a_nan_is_in_every_window_that_has_it(kind):
    x = images().at[0, 2, 3, 1].set(jnp.nan)
    settings = CASES["of Inception"]
    y = ours(kind, settings)(x)
    chex.assert_trees_all_equal(np.isnan(y), np.isnan(by_hand(kind, x, *settings)))


def test_half_precision_stays_half_precision(kind):
    x = images(dtype=jnp.bfloat16)
    settings = CASES["of Inception, halving"]
    y = ours(kind, settings)(x)
    assert y.dtype == jnp.bfloat16
    expected = by_hand(kind, x, *settings)
    np.testing.assert_allclose(np.float64(y), expected, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize(
    ("platform", "has_windows"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_only_a_cpu_joins_shifted_images(kind, platform, has_windows):
    gradient = jax.jit(
        jax.grad(lambda x: jnp.sum(ours(kind, CASES["halving"])(x) ** 2))
    )
    traced = gradient.trace(images())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("reduce_window" in text) == has_windows
