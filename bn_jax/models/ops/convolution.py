"""Convolutions whose gradients are as fast inside a loop as outside, also on a CPU."""

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
    """Each pixel's neighbourhood times the kernel; zeros lie beyond the edges.

    The values and gradients are those of JAX, computed in another way. XLA compiles the
    convolutions of a loop's body for a CPU as they are written: to code that takes ten
    times as long if channels are not the last in memory, or if zeros are to be thought
    between the pixels. A kernel of one pixel is a product of matrices to begin with.
    JAX takes gradients of it, and derivatives of those in either mode; a forward-mode
    derivative of the convolution itself (`jax.jvp`) is not defined.

    Args:
        x: Pixels.
        kernel: Weights.
        stride: Of every so many pixels, in each direction, the first has an output.
    """
    if stride == 1 and kernel.shape[:2] == (1, 1):
        return jnp.tensordot(x, kernel[0, 0], 1)
    return _convolution(*_of_one_type(x, kernel), stride)


def _of_one_type(x: Array, kernel: Array) -> tuple[Array, Array]:
    """Both as arrays that differ on the axes on which either does.

    Only `shard_map` tells these types apart, when it checks them. What is the same on
    all devices gets its gradient summed over them here, as by JAX's convolutions.
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
    # Not by the function with this rule, of which forward mode has no derivative: it
    # may be the gradient that is differentiated.
    return _convolve(x, kernel, _padding(kernel), stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    if stride == 1:
        return _gradients(*residuals, dy)

    def with_zeros_between(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        return _gradients(x, kernel, _spread(dy, stride, x.shape))

    def of_jax(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
        def convolve(x: Array, kernel: Array) -> Array:
            return _convolve(x, kernel, _padding(kernel), stride)

        _, pullback = jax.vjp(convolve, x, kernel)
        return pullback(dy)

    # Zeros are multiplied too, which accelerators need not do.
    return jax.lax.platform_dependent(
        *residuals, dy, cpu=with_zeros_between, default=of_jax
    )


_convolution.defvjp(_forward, _backward)


def _gradients(x: Array, kernel: Array, dy: Array) -> tuple[Array, Array]:
    """The gradients of a convolution of stride 1."""
    padding = _padding(kernel)
    # What an output took from a pixel, the pixel takes back from the output.
    turned = jnp.transpose(jnp.flip(kernel, (0, 1)), (0, 1, 3, 2))
    dx = _convolve(dy, turned, [(after, before) for before, after in padding])
    # Every weight's gradient is a sum over examples, which take the channels' place.
    examples_last = jnp.transpose(x, (3, 1, 2, 0))
    dkernel = _convolve(examples_last, jnp.transpose(dy, (1, 2, 0, 3)), padding)
    return dx, jnp.transpose(dkernel, (1, 2, 0, 3))


def _spread(dy: Array, stride: int, shape: tuple[int, ...]) -> Array:
    """An image of that shape with zeros for the pixels that a stride leaves out."""
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
