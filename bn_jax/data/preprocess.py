"""What is done to pixels before a model sees them, on NumPy or JAX arrays alike."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from bn_jax.errors import UserError


def make_preprocess(
    *, binarize_threshold: int | None, mean: Sequence[float], std: Sequence[float]
) -> Callable[[Any], Any]:
    """What turns stored pixels into the input of a model.

    It raises UserError for images of another number of channels than it was made for.

    Args:
        binarize_threshold: As for `binarize`; None for `scale_to_one`.
        mean: Subtracted from either, one value a channel or one for all.
        std: Divides what is left, likewise; positive.
    """
    scale = scale_to_one
    if binarize_threshold is not None:
        scale = partial(binarize, threshold=binarize_threshold)

    def preprocess(images: Any) -> Any:
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, images.shape[-1]):
                raise UserError(
                    f"config.pixels.{name} must have one value, or one for each of "
                    f"the {images.shape[-1]} channels, and is {tuple(values)}."
                )
        return (scale(images) - _like_images(mean, images)) / _like_images(std, images)

    return preprocess


def binarize(images: Any, *, threshold: int) -> Any:
    """1.0 where a pixel is above the threshold, else 0.0, in float32.

    Source: Ioffe & Szegedy (2015), section 4.1 ("28x28 binary image"; the threshold
    is not stated).

    Args:
        images: uint8 pixels of any shape, a NumPy or a JAX array.
        threshold: Largest pixel value that becomes 0, in 0 to 254.
    """
    return (images > threshold).astype("float32")


def scale_to_one(images: Any) -> Any:
    """Pixels in [0, 1], in float32.

    Args:
        images: uint8 pixels of any shape, a NumPy or a JAX array.
    """
    return images.astype("float32") / 255


def _like_images(values: Sequence[float], images: Any) -> np.ndarray:
    array = np.asarray(values, np.float32)
    return np.expand_dims(array, tuple(range(images.ndim - 1)))
