"""Conversion of pixels to model inputs, for NumPy and JAX arrays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bn_jax.errors import UserError


def make_preprocess(
    *, binarize_threshold: int | None, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Any]:
    """Returns a function that converts stored pixels to model inputs.

    The function binarizes or scales the pixels, subtracts `mean` and divides by `std`.
    It raises UserError if the number of channels does not fit `mean` or `std`.

    Args:
        binarize_threshold: Threshold of `binarize`; None chooses `scale_to_one`.
        mean: One value for each channel, or one for all channels.
        std: One positive value for each channel, or one for all channels.
    """
    scale = scale_to_one
    if binarize_threshold is not None:
        scale = partial(binarize, threshold=binarize_threshold)

    def preprocess(images: Any) -> Any:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, images.shape[-1]):
                raise UserError(
                    f"config.pixels.{name} must have one value, or one for each of "
                    f"the {images.shape[-1]} channels, but is {tuple(values)}."
                )
        centered = scale(images) - _broadcastable(mean, images)
        return centered / _broadcastable(std, images)

    return preprocess


def binarize(images: Any, *, threshold: int) -> Any:
    """Returns 1.0 where a pixel is above the threshold, else 0.0, in float32.

    Source: Ioffe & Szegedy (2015), section 4.1 ("28x28 binary image"; the threshold
    is not stated).

    Args:
        images: uint8 pixels of any shape, a NumPy or a JAX array.
        threshold: Largest pixel value that becomes 0, from 0 to 254.
    """
    return (images > threshold).astype("float32")


def scale_to_one(images: Any) -> Any:
    """Scales pixels to [0, 1], in float32.

    Args:
        images: uint8 pixels of any shape, a NumPy or a JAX array.
    """
    return images.astype("float32") / 255


def _broadcastable(values: Sequence[float], images: Any) -> np.ndarray:
    array = np.asarray(values, np.float32)
    return np.expand_dims(array, tuple(range(images.ndim - 1)))
