"""Layers in half precision whose float32 parameters get float32 gradients.

Flax's layers round their parameters to the dtype they compute in, and the gradients
with them: devices would then sum, in the mode in which XLA divides the program, what
was rounded to bfloat16. The functions here take the place of Flax's own in its layers:
`nn.Dense(promote_dtype=promote_inputs, dot_general=dot_general)` and
`nn.Conv(promote_dtype=promote_inputs, conv_general_dilated=convolve)`. A bias is added
in float32, and `jnp.asarray(layer(x), dtype)` is the layer's result.

Where inputs and parameters have one dtype, nothing is different from Flax's layers.
Where they have not, forward-mode derivatives are not defined, and the gradient of a
kernel is a product of float32 numbers, which a GPU may take longer for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from flax.typing import Dtype
from jaxtyping import Array

from bn_jax.models.ops.convolution import same_convolution

# Linear in each of the two, inputs and kernel, which have one dtype.
_Product = Callable[[Array, Array], Array]


def promote_inputs(
    *arrays: Any, dtype: Dtype | None = None, inexact: bool = True
) -> Any:
    """The inputs in the dtype that a layer computes in, its parameters as they are.

    Args:
        arrays: Inputs, kernel and bias, or None in its place.
        dtype: Dtype to compute in; by default that of inputs and parameters promoted.
        inexact: Whether integers become floating-point numbers.
    """
    dtype = canonicalize_dtype(*arrays, dtype=dtype, inexact=inexact)
    x, *parameters = arrays
    return jnp.asarray(x, dtype), *parameters


def dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, **settings: Any
) -> Array:
    """`jax.lax.dot_general` in the inputs' dtype.

    Args:
        x: Inputs.
        kernel: Weights.
        dimension_numbers: As there.
        settings: As there.
    """
    product = partial(
        jax.lax.dot_general, dimension_numbers=dimension_numbers, **settings
    )
    return _multiply(product, x, kernel)


def convolve(x: Array, kernel: Array, *shape: Any, **settings: Any) -> Array:
    """`jax.lax.conv_general_dilated` in the inputs' dtype.

    Args:
        x: Pixels.
        kernel: Weights.
        shape: Strides and padding, as there.
        settings: As there.
    """

    def product(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, *shape, **settings)

    return _multiply(product, x, kernel)


def convolve_same(
    x: Array, kernel: Array, strides: Sequence[int], *_: Any, **__: Any
) -> Array:
    """`same_convolution` in the inputs' dtype.

    Dilations and groups that Flax's layer passes on must be those that it has by
    default, and its padding that of `same_convolution`.

    Args:
        x: Pixels.
        kernel: Weights.
        strides: The same in both directions.
    """
    return _multiply(partial(same_convolution, stride=strides[0]), x, kernel)


def _multiply(product: _Product, x: Array, kernel: Array) -> Array:
    if x.dtype == kernel.dtype:
        return product(x, kernel)
    return _multiply_mixed(product, x, kernel)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _multiply_mixed(product: _Product, x: Array, kernel: Array) -> Array:
    return product(x, kernel.astype(x.dtype))


def _forward(
    product: _Product, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return _multiply_mixed(product, x, kernel), (x, kernel)


def _backward(
    product: _Product, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    x, kernel = residuals
    _, pull_x = jax.vjp(lambda x: product(x, kernel.astype(x.dtype)), x)
    # Half precision is widened without a loss. A product of half precision that gives
    # float32 would be the same, and JAX has no transpose of such a convolution.
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    wide_x = x.astype(wide)
    _, pull_kernel = jax.vjp(lambda k: product(wide_x, k.astype(wide)), kernel)
    return *pull_x(dy), *pull_kernel(dy.astype(wide))


_multiply_mixed.defvjp(_forward, _backward)
