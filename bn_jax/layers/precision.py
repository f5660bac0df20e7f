"""Dtypes of the layers: of the operator's input, and of the result."""

import jax
import jax.numpy as jnp
from flax.nnx.nn import dtypes
from flax.typing import Dtype, PromoteDtypeFn
from jaxtyping import Array, Inexact, Shaped

from bn_jax.core.dtypes import wide_dtype


def promote_without_rounding(
    x: Shaped[Array, "*shape"], dtype: Dtype
) -> Inexact[Array, "*shape"] | Shaped[Array, "*shape"]:
    """Returns x without rounding it to the result's dtype.

    An input of the result's dtype stays as it is, because the operator widens half
    precision without a copy. Any other input is cast to at least float32. Integers, and
    inputs wider than the result, are therefore not rounded before they are averaged.

    Args:
        x: Activations.
        dtype: Dtype of the layer's result.
    """
    return x if x.dtype == dtype else x.astype(wide_dtype(x.dtype, dtype))


def promoted_dtype(
    promote_dtype: PromoteDtypeFn,
    arrays: tuple[Array | None, ...],
    *,
    dtype: Dtype | None,
) -> Dtype:
    """Returns the dtype of the result of `flax.nnx.BatchNorm`.

    Args:
        promote_dtype: Function that promotes arrays, as the layer's field.
        arrays: Input, mean, var, scale and bias; None where the layer has none.
        dtype: Dtype that the user chose; None promotes the dtypes of the arrays.
    """

    def promoted(arrays: tuple[Array | None, ...]) -> Array:
        x, _, _, scale, bias = promote_dtype(arrays, dtype=dtype)
        return jnp.zeros((), dtypes.canonicalize_dtype(x, scale, bias, dtype=dtype))

    # `eval_shape` gives the dtype without computing, or rounding, any value.
    return jax.eval_shape(promoted, arrays).dtype
