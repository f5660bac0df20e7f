"""What is done to pixels before a model sees them, on NumPy or JAX arrays alike."""

from collections.abc import Callable
from functools import partial
from typing import Any


def make_preprocess(*, binarize_threshold: int | None) -> Callable[[Any], Any]:
    """What turns stored pixels into the input of a model.

    Args:
        binarize_threshold: As for `binarize`; None for `scale_to_one`.
    """
    if binarize_threshold is None:
        return scale_to_one
    return partial(binarize, threshold=binarize_threshold)


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
