"""What the layers of both Flax interfaces share: precision, and errors with a name."""

from collections.abc import Iterator
from contextlib import contextmanager

from flax.typing import Dtype
from jaxtyping import Array, Inexact, Shaped

from bn_jax.core.dtypes import wide_dtype


def unrounded(
    x: Shaped[Array, "*shape"], dtype: Dtype
) -> Inexact[Array, "*shape"] | Shaped[Array, "*shape"]:
    """X in a dtype in which nothing of it is lost before it is averaged.

    Half precision that stays half precision is kept as it is, because the operator
    widens it without a copy; what is wider than the result or an integer is not
    rounded to the result's dtype.

    Args:
        x: Activations.
        dtype: Dtype that the layer's result will have.
    """
    return x if x.dtype == dtype else x.astype(wide_dtype(x.dtype, dtype))


@contextmanager
def errors_naming(where: str) -> Iterator[None]:
    """A context in which the operator's errors say which layer they come from.

    Args:
        where: Path or name of the layer, put in front of the message.

    Raises:
        ValueError: If the body raises it.
        NameError: If the body raises it.
        NotImplementedError: If the body raises it.
    """
    try:
        yield
    except (ValueError, NameError, NotImplementedError) as error:
        raise type(error)(f"{where}: {error}") from error
