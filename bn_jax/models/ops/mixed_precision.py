"""Products in half precision whose float32 parameters get float32 gradients.

Flax's layers cast their parameters to the dtype they compute in, which rounds the
gradients to that dtype too. In the mode in which XLA partitions the program ("jit"),
the devices would then sum gradients that were rounded to bfloat16. The functions here
replace Flax's own functions in its layers:
`nn.Dense(promote_dtype=promote_inputs, dot_general=dot_general)` and
`nn.Conv(promote_dtype=promote_inputs, conv_general_dilated=convolve)`. The layer then
adds its bias in float32; cast its result by `jnp.asarray(layer(x), dtype)`.

If inputs and parameters have the same dtype, the layers are exactly Flax's. If not,
forward-mode derivatives are not defined, and the gradient of a kernel is a product of
float32 numbers, which may be slower on a GPU.
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

# Function of inputs and kernel of one dtype, linear in each of them.
_Product = Callable[[Array, Array], Array]


def promote_inputs(
    *arrays: Any, dtype: Dtype | None = None, inexact: bool = True
) -> Any:
    """Casts a layer's inputs to the dtype it computes in, but not its parameters.

    Args:
        arrays: Inputs, kernel and bias; the bias may be None.
        dtype: Dtype to compute in; by default the dtype to which inputs and parameters
            promote.
        inexact: True converts integers to floating-point numbers.
    """
    dtype = canonicalize_dtype(*arrays, dtype=dtype, inexact=inexact)
    x, *parameters = arrays
    return jnp.asarray(x, dtype), *parameters


def dot_general(
    x: Array, kernel: Array, dimension_numbers: Any, **settings: Any
) -> Array:
    """Computes `jax.lax.dot_general` in the dtype of `x`.

    Args:
        x: Inputs.
        kernel: Weights.
        dimension_numbers: Contracting and batch axes, as for `jax.lax.dot_general`.
        settings: Other arguments of `jax.lax.dot_general`.
    """
    product = partial(
        jax.lax.dot_general, dimension_numbers=dimension_numbers, **settings
    )
    return _multiply(product, x, kernel)


def convolve(x: Array, kernel: Array, *shape: Any, **settings: Any) -> Array:
    """Computes `jax.lax.conv_general_dilated` in the dtype of `x`.

    Args:
        x: Pixels.
        kernel: Weights.
        shape: Strides and padding, as for `jax.lax.conv_general_dilated`.
        settings: Other arguments of `jax.lax.conv_general_dilated`.
    """

    def product(x: Array, kernel: Array) -> Array:
        return jax.lax.conv_general_dilated(x, kernel, *shape, **settings)

    return _multiply(product, x, kernel)


def convolve_same(
    x: Array, kernel: Array, strides: Sequence[int], *_: Any, **__: Any
) -> Array:
    """Computes `same_convolution` in the dtype of `x`.

    Other arguments are ignored, so Flax's layer must have the padding of
    `same_convolution` and its default dilations and groups.

    Args:
        x: Pixels.
        kernel: Weights.
        strides: Stride in each direction; both must be equal.
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
    # The casts to the wider dtype are exact. A product of half-precision arrays with a
    # float32 result would be equal, but JAX cannot transpose such a convolution.
    wide = jnp.promote_types(x.dtype, kernel.dtype)
    wide_x = x.astype(wide)
    _, pull_kernel = jax.vjp(lambda k: product(wide_x, k.astype(wide)), kernel)
    return *pull_x(dy), *pull_kernel(dy.astype(wide))


_multiply_mixed.defvjp(_forward, _backward)
