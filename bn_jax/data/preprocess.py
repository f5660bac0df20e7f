"""Conversion of pixels to model inputs, for NumPy and JAX arrays."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bn_jax.errors import UserError


def make_preprocess(
    *, binarize_threshold: int | None, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Any]:
    """Returns a function that converts stored images to model inputs.

    The function binarizes or scales uint8 pixels, subtracts `mean` and divides by
    `std`. Images of another dtype are neither binarized nor scaled; with a mean of 0
    and a std of 1 they stay as they are, so that integers may be indices of words. The
    function raises UserError if the number of channels does not fit `mean` or `std`, or
    if other images than uint8 shall be binarized.

    Args:
        binarize_threshold: Threshold of `binarize`; None chooses `scale_to_one`.
        mean: One value for each channel, or one for all channels.
        std: One positive value for each channel, or one for all channels.
    """
    scale_pixels = scale_to_one
    if binarize_threshold is not None:
        scale_pixels = partial(binarize, threshold=binarize_threshold)
    is_centered = any(mean) or any(value != 1 for value in std)

    def scale(images: Any) -> Any:
        if images.dtype == np.uint8:
            return scale_pixels(images)
        if binarize_threshold is not None:
            raise UserError(
                "config.pixels.binarize_threshold is for uint8 pixels, but the images "
                f"are {images.dtype}; set it to None."
            )
        return images

    def preprocess(images: Any) -> Any:
        if images.dtype != np.uint8 and not is_centered:
            return scale(images)
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
