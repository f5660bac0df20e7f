"""The precision of the input that both Flax layers give to the operator."""

from flax.typing import Dtype
from jaxtyping import Array, Inexact, Shaped

from bn_jax.core.dtypes import wide_dtype


def unrounded(
    x: Shaped[Array, "*shape"], dtype: Dtype
) -> Inexact[Array, "*shape"] | Shaped[Array, "*shape"]:
    """Returns x in a dtype in which it loses nothing before it is averaged.

    Half precision that stays half precision is kept as it is, because the operator
    widens it without a copy. Integers, and arrays that are wider than the result, are
    not rounded to the result's dtype.

    Args:
        x: Activations.
        dtype: Dtype that the layer's result will have.
    """
    return x if x.dtype == dtype else x.astype(wide_dtype(x.dtype, dtype))
