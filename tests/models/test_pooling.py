"""The average of windows, against loops in NumPy and against Flax's."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_jax.models.pooling import average_pool

# Window, stride and padding.
CASES = {
    "of Inception": (3, 1, ((1, 1), (1, 1))),
    "halving": (3, 2, ((0, 1), (0, 1))),
    "uneven": (2, 1, ((1, 0), (0, 1))),
    "far apart": (2, 3, ((0, 0), (2, 2))),
    "one pixel": (1, 1, ((0, 0), (0, 0))),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def settings(request):
    return request.param


def images(seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(size=(3, 6, 5, 4))
    return jnp.asarray(values, dtype)


def by_hand(x, window, stride, padding):
    x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (window, window), (1, 2))
    return windows[:, ::stride, ::stride].mean((-2, -1))


def ours(settings):
    window, stride, padding = settings
    return jax.jit(partial(average_pool, window=window, stride=stride, padding=padding))


def test_an_output_is_the_average_of_its_window(settings):
    y = ours(settings)(images())
    np.testing.assert_allclose(y, by_hand(images(), *settings), rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_flax(settings):
    window, stride, padding = settings
    y, pullback = jax.vjp(ours(settings), images())
    reference = partial(
        nn.avg_pool,
        window_shape=(window, window),
        strides=(stride, stride),
        padding=padding,
    )
    _, expected = jax.vjp(reference, images())
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype)
    chex.assert_trees_all_close(pullback(dy), expected(dy), rtol=1e-5, atol=1e-6)


def test_half_precision_stays_half_precision(settings):
    x = images(dtype=jnp.bfloat16)
    y = ours(settings)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.float64(y), by_hand(x, *settings), rtol=2**-6, atol=2**-6
    )


@pytest.mark.parametrize(
    ("platform", "has_windows"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_only_a_cpu_adds_up_shifted_images(platform, has_windows):
    traced = ours(CASES["of Inception"]).trace(images())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("reduce_window" in text) == has_windows
