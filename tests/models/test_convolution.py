"""The convolution and its gradients, against loops in NumPy and against JAX's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from bn_jax.models.convolution import same_convolution


def random(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


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
def test_a_convolution_is_a_sum_over_each_pixels_neighbourhood(kernel_shape):
    x, kernel = random(0, 3, 6, 5, 2), random(1, *kernel_shape, 2, 4)
    y = jax.jit(same_convolution)(x, kernel)
    np.testing.assert_allclose(y, by_hand(x, kernel), rtol=1e-5, atol=1e-5)


# Even kernels are padded by one more pixel behind than before.
@pytest.mark.parametrize("kernel_shape", [(3, 3), (2, 2), (4, 3)])
def test_gradients_are_those_of_finite_differences(kernel_shape):
    arrays = random(2, 2, 5, 4, 2), random(3, *kernel_shape, 2, 3)
    # Differences of float32 numbers are too coarse.
    with jax.enable_x64(True):
        x, kernel = (jnp.asarray(array, jnp.float64) for array in arrays)
        check_grads(same_convolution, (x, kernel), 1, ("rev",))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 5])
def test_gradients_are_those_of_jax(kernel_size):
    x, kernel = random(4, 8, 7, 9, 3), random(5, kernel_size, kernel_size, 3, 4)
    dy = random(6, 8, 7, 9, 4)

    def reference(x, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=layout
        )

    expected = jax.jit(lambda *xs: jax.vjp(reference, *xs)[1](dy))(x, kernel)
    gradients = jax.jit(lambda *xs: jax.vjp(same_convolution, *xs)[1](dy))(x, kernel)
    chex.assert_trees_all_close(gradients, expected, rtol=1e-5, atol=1e-4)


def test_gradients_in_a_loop_are_those_outside():
    x, kernel = random(7, 3, 4, 6, 6, 2), random(8, 3, 3, 2, 3)

    def gradient(x):
        return jax.grad(lambda k: jnp.sum(same_convolution(x, k) ** 2))(kernel)

    looped = jax.jit(lambda x: jax.lax.map(gradient, x))(x)
    chex.assert_trees_all_close(looped, jnp.stack([*map(gradient, x)]), rtol=1e-5)


def test_no_convolution_of_a_step_is_laid_out_in_another_way():
    x, kernel = random(9, 4, 6, 6, 2), random(10, 3, 3, 2, 3)
    gradient = jax.grad(lambda *xs: jnp.sum(same_convolution(*xs) ** 2), (0, 1))
    text = jax.jit(gradient).lower(x, kernel).as_text()
    layouts = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(layouts) == 3
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in layouts)
