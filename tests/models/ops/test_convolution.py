"""The convolution and its gradients, against loops in NumPy and against JAX's."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arrays import normal
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from bn_jax.models.ops.convolution import same_convolution


def by_hand(x, kernel):
    """Every output as the sum that it is, in float64."""
    x, kernel = np.float64(x), np.float64(kernel)
    height, width = kernel.shape[:2]
    top, left = (height - 1) // 2, (width - 1) // 2
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i, j, di, dj in np.ndindex(*x.shape[1:3], height, width):
        row, column = i + di - top, j + dj - left
        if 0 <= row < x.shape[1] and 0 <= column < x.shape[2]:
            y[:, i, j] += x[:, row, column] @ kernel[di, dj]
    return y


@pytest.mark.parametrize("kernel_shape", [(1, 1), (3, 3), (2, 2), (5, 3), (4, 2)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_convolution_is_a_sum_over_each_pixels_neighbourhood(kernel_shape, stride):
    x, kernel = normal(3, 6, 5, 2), normal(*kernel_shape, 2, 4, seed=1)
    y = jax.jit(partial(same_convolution, stride=stride))(x, kernel)
    expected = by_hand(x, kernel)[:, ::stride, ::stride]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# Even kernels are padded by one more pixel behind than before.
@pytest.mark.parametrize("kernel_shape", [(3, 3), (2, 2), (4, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_finite_differences(kernel_shape, stride):
    arrays = normal(2, 5, 4, 2, seed=2), normal(*kernel_shape, 2, 3, seed=3)
    # Differences of float32 numbers are too coarse.
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays)
        check_grads(partial(same_convolution, stride=stride), (x, kernel), 1, ("rev",))


@pytest.mark.parametrize("kernel_size", [1, 2, 5])
@pytest.mark.parametrize(("stride", "shape"), [(1, (7, 9)), (2, (4, 5)), (3, (3, 3))])
def test_gradients_are_those_of_jax(kernel_size, stride, shape):
    kernel = normal(kernel_size, kernel_size, 3, 4, seed=5)
    x, dy = normal(8, 7, 9, 3, seed=4), normal(8, *shape, 4, seed=6)
    padding = ((kernel_size - 1) // 2, kernel_size // 2)

    def reference(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride,) * 2, (padding,) * 2, dimension_numbers=layout
        )

    expected = jax.jit(lambda *xs: jax.vjp(reference, *xs)[1](dy))(x, kernel)
    ours = partial(same_convolution, stride=stride)
    gradients = jax.jit(lambda *xs: jax.vjp(ours, *xs)[1](dy))(x, kernel)
    chex.assert_trees_all_close(gradients, expected, rtol=1e-5, atol=1e-4)


def test_gradients_in_a_loop_are_those_outside():
    x, kernel = normal(3, 4, 6, 6, 2, seed=7), normal(3, 3, 2, 3, seed=8)

    def gradient(x):
        return jax.grad(lambda k: jnp.sum(same_convolution(x, k) ** 2))(kernel)

    looped = jax.jit(lambda x: jax.lax.map(gradient, x))(x)
    alone = jax.jit(gradient)
    chex.assert_trees_all_close(looped, jnp.stack([*map(alone, x)]), rtol=1e-5)


SPLIT = {"x": PartitionSpec("d"), "kernel": PartitionSpec(None, None, None, "d")}


@pytest.mark.parametrize("split", SPLIT)
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_on_checked_devices_are_those_of_all_arrays(make_mesh, split, stride):
    x, kernel = normal(4, 6, 5, 2, seed=15), normal(3, 3, 2, 4, seed=16)
    ours = partial(same_convolution, stride=stride)

    def gradients(x, kernel):
        return jax.grad(lambda *xs: jnp.sum(jnp.sin(ours(*xs))), (0, 1))(x, kernel)

    specs = tuple(SPLIT[n] if n == split else PartitionSpec() for n in SPLIT)
    mapped = jax.shard_map(
        gradients, mesh=make_mesh(d=2), in_specs=specs, out_specs=specs
    )
    actual, expected = jax.jit(mapped)(x, kernel), jax.jit(gradients)(x, kernel)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["fwd", "rev"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_have_derivatives_in_either_mode(stride, mode):
    arrays = normal(2, 5, 4, 2, seed=17), normal(3, 3, 2, 3, seed=18)

    def gradients(x, kernel):
        ours = partial(same_convolution, stride=stride)
        return jax.grad(lambda *xs: jnp.sum(jnp.sin(ours(*xs))), (0, 1))(x, kernel)

    # Differences of float32 numbers are too coarse.
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays)
        check_grads(gradients, (x, kernel), 1, (mode,))


def test_an_accelerator_multiplies_no_zeros():
    x, kernel = normal(4, 6, 6, 2, seed=11), normal(3, 3, 2, 3, seed=12)
    gradients = jax.grad(lambda *xs: jnp.sum(same_convolution(*xs, 2) ** 2), (0, 1))
    traced = jax.jit(gradients).trace(x, kernel)
    assert "lhs_dilate = [2, 2]" in traced.lower(lowering_platforms=("tpu",)).as_text()
