"""A convolution whose gradients are fast inside a compiled loop too, even on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def same_convolution(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "kernel_height kernel_width inputs outputs"],
    stride: int = 1,
) -> Float[Array, "batch output_height output_width outputs"]:
    """Convolves images that are padded with zeros, so that stride 1 keeps their size.

    Values and gradients equal those of `jax.lax.conv_general_dilated`, but the
    gradients are written differently. On a CPU, XLA does not optimize convolutions in
    the body of a loop. If their channels are not the last axis in memory, or if their
    input is dilated (zeros between pixels), they take ten times as long; JAX's own
    gradients have both. A kernel of one pixel becomes a matrix product.

    JAX can differentiate this function in reverse mode, and the gradient in either
    mode. The forward-mode derivative of the function itself (`jax.jvp`) is not defined.

    Args:
        x: Pixels.
        kernel: Weights.
        stride: Pixels from one output to the next in each direction, starting with
            the first pixel.
    """
    if stride == 1 and kernel.shape[:2] == (1, 1):
        return jnp.tensordot(x, kernel[0, 0], 1)
    return _convolution(*_vary_alike(x, kernel), stride)


def _vary_alike(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Casts both arrays to vary over every mesh axis over which one of them varies.

    These types differ only inside a `shard_map` that checks them. The transpose of the
    cast sums the gradient of a replicated array over the devices, as JAX's own
    convolution does.
    """
    axes = [jax.typeof(array).manual_axis_type.varying for array in (x, kernel)]

    def vary(array: Array, its_axes: frozenset[str]) -> Array:
        lacking = tuple(axes[0].union(axes[1]) - its_axes)
        return jax.lax.pcast(array, lacking, to="varying") if lacking else array

    return vary(x, axes[0]), vary(kernel, axes[1])


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x: Array, kernel: Array, stride: int) -> Array:
    return _convolve(x, kernel, _padding(kernel), stride)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    # `_convolve` instead of `_convolution`: the caller may differentiate the gradient
    # in forward mode, which `_convolution` does not support.
    return _convolve(x, kernel, _padding(kernel), stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    if stride == 1:
        return _gradients(*residuals, dy)

    def dilated_gradients(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return _gradients(x, kernel, _dilate(dy, stride, x.shape))

    def jax_gradients(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        def convolve(x: Array, kernel: Array) -> Array:
            return _convolve(x, kernel, _padding(kernel), stride)

        _, pullback = jax.vjp(convolve, x, kernel)
        return pullback(dy)

    # Only for a CPU: `dilated_gradients` also multiplies by the zeros that it inserts,
    # which JAX's gradients avoid on an accelerator.
    return jax.lax.platform_dependent(
        *residuals, dy, cpu=dilated_gradients, default=jax_gradients
    )


_convolution.defvjp(_forward, _backward)


def _gradients(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """Returns the gradients of x and kernel for a convolution of stride 1."""
    padding = _padding(kernel)
    # A pixel collects the gradients of the outputs that read it, each times the weight
    # that the output used: a convolution with the kernel flipped.
    turned = jnp.transpose(jnp.flip(kernel, (0, 1)), (0, 1, 3, 2))
    dx = _convolve(dy, turned, [(after, before) for before, after in padding])
    # The gradient of a weight is a sum over the examples, and a convolution sums over
    # its input channels. So the examples take the place of the channels.
    examples_last = jnp.transpose(x, (3, 1, 2, 0))
    dkernel = _convolve(examples_last, jnp.transpose(dy, (1, 2, 0, 3)), padding)
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


def _dilate(dy: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """Enlarges dy to `shape`, with zeros at the pixels that the stride skips."""
    sizes = zip(shape[1:3], dy.shape[1:3], strict=True)
    rest = [size - 1 - stride * (outputs - 1) for size, outputs in sizes]
    zeros = [(0, 0, 0), *((0, after, stride - 1) for after in rest), (0, 0, 0)]
    return jax.lax.pad(dy, jnp.zeros((), dy.dtype), zeros)


def _padding(kernel: Array) -> list[tuple[int, int]]:
    return [((size - 1) // 2, size // 2) for size in kernel.shape[:2]]


def _convolve(
    x: Array, kernel: Array, padding: list[tuple[int, int]], stride: int = 1
) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_LAYOUT
    )
