"""Moments of parts, merged into the moments of the whole."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from bn_jax.core.moments import merge_moments
from bn_jax.core.types import Moments

merged = jax.jit(merge_moments)


def parts_of(*arrays):
    """Returns the oracle's moments of each array, stacked."""
    leaves = zip(*(oracles.moments(x) for x in arrays), strict=True)
    return Moments(*(jnp.asarray(np.stack(leaf), jnp.float32) for leaf in leaves))


def assert_close(moments, x, rtol=1e-5):
    for got, want in zip(moments, oracles.moments(x), strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol)


@pytest.mark.parametrize("mean", [0.0, 5.0, 1e4])
@pytest.mark.parametrize("cuts", [[30], [1, 2, 50]])
def test_moments_of_parts_merge_into_those_of_the_whole(cuts, mean):
    x = np.random.default_rng(0).normal(mean, 1, (60, 4))
    # float32 rounds a part's mean of 1e4, and so its distance from others, by 5e-4.
    rtol = 2e-4 if mean == 1e4 else 1e-5
    assert_close(merged(parts_of(*np.split(x, cuts))), x, rtol)


def test_parts_without_a_value_add_nothing():
    x = np.random.default_rng(0).normal(5, 1, (6, 4))
    assert_close(merged(parts_of(x[:2], x[:0], x[2:], x[:0])), x)


def test_no_value_at_all_gives_zeros():
    moments = merged(parts_of(np.zeros((0, 3)), np.zeros((0, 3))))
    chex.assert_trees_all_equal(moments, Moments(*[jnp.zeros(3)] * 3))


def test_one_part_is_the_whole():
    x = np.random.default_rng(0).normal(5, 1, (6, 4))
    assert_close(merged(parts_of(x)), x)


def test_merging_is_differentiable_where_nothing_counts():
    def total(mean):
        zeros = jnp.zeros_like(mean)
        moments = merge_moments(Moments(zeros, mean, zeros))
        return jnp.sum(moments.mean) + jnp.sum(moments.var)

    chex.assert_tree_all_finite(jax.jit(jax.grad(total))(jnp.ones((2, 3))))
