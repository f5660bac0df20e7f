"""Dtype of the input that both Flax layers pass to the operator."""

from flax.typing import Dtype
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
